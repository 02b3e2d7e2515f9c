"""Structured logs on standard error, and Prometheus metrics."""

import logging
import sys
import time
from collections.abc import Callable

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


TOLD_EVERY_S = 60.0
PASSING_S = 10.0


class SparingHandler(logging.Handler):
    """Hands on what a library logs of every single attempt: each line of its code is heard once a minute.

    Lines about an error that the library tries again after (such as that a coordinator is not there yet, on a cluster
    that has just been started) are heard only when that goes on for longer than such things do.
    """

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._event, self._clock = event, clock
        self._log = structlog.get_logger(event)
        self._spells: dict[tuple[str, int], tuple[float, float]] = {}  # per line: since when, and last
        self._told: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Tell, or not."""
        line, now = (record.pathname, record.lineno), self._clock()
        since, last = self._spells.get(line, (now, now))
        if now - last > TOLD_EVERY_S:
            since = now
        self._spells[line] = (since, now)
        if _is_passing(record) and now - since < PASSING_S:
            return
        if now - self._told.get(line, -TOLD_EVERY_S) < TOLD_EVERY_S:
            return
        self._told[line] = now
        self._log.warning(self._event, says=record.getMessage(), exc_info=record.exc_info or None)


def _is_passing(record: logging.LogRecord) -> bool:
    """Whether it is about an error, or a class of errors, that its library calls retriable."""
    values = record.args if isinstance(record.args, tuple) else ()
    return any(getattr(value, "retriable", False) is True for value in values)


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
    client = logging.getLogger("aiokafka")
    client.handlers, client.propagate = [SparingHandler("kafka.client")], False
    client.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _unchanged(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
