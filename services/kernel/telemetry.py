"""Structured logs on standard error, and Prometheus metrics."""

import logging
import sys

import structlog
from prometheus_client import Counter, Gauge, Histogram

INPUTS = Counter("headwater_inputs", "Inputs by what became of them.", ["group", "outcome"])
BATCH_SECONDS = Histogram(
    "headwater_batch_seconds",
    "From loading a batch's state to its commit.",
    ["group"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
)
LAG = Gauge("headwater_lag_records", "Records in the log that a group has not read yet.", ["group"])


def configure_logging(level: str = "INFO", *, as_json: bool = False) -> None:
    """Send log lines to standard error: for people, or one JSON object a line."""
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # the other ones show variables, and so personal data
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else _unchanged,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # It tells of every attempt to reach a broker: what that comes to is told by who uses it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _unchanged(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
