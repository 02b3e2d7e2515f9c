"""The log lines: what went wrong, but nothing of whom it was about."""

import logging

import pytest
import structlog
from structlog.testing import capture_logs

from services.kernel import telemetry


@pytest.mark.parametrize("as_json", [False, True])
def test_the_variables_of_a_failed_function_are_not_logged(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    def fails(value: str) -> None:
        raise ValueError(f"{len(value)} characters")

    configuration = structlog.get_config()
    telemetry.configure_logging(as_json=as_json)
    try:
        fails("canary" * 2)
    except ValueError:
        structlog.get_logger().exception("it.failed")
    finally:
        structlog.configure(**configuration)
    lines = capsys.readouterr().err
    assert "12 characters" in lines
    assert "canarycanary" not in lines


class RetriableError(Exception):
    retriable = True


def told(*attempts: tuple[float, object]) -> list[str]:
    """What is told of attempts, each at a time and with its error, which one line of a library logs."""
    now = [0.0]
    library = logging.getLogger("library")
    library.handlers, library.propagate = [telemetry.SparingHandler("client", clock=lambda: now[0])], False
    with capture_logs() as lines:
        for now[0], error in attempts:
            library.error("failed: %s", error)
    return [line["says"] for line in lines]


@pytest.mark.parametrize("error", [RetriableError("r"), RetriableError])
def test_what_a_library_tries_again_is_told_only_when_it_goes_on(error: object) -> None:
    assert told(*((each / 10, error) for each in range(50))) == []
    assert told(*((float(each), error) for each in range(70))) == [f"failed: {error}"]
    assert told(*((each * 300.0, error) for each in range(9))) == []  # each time it was over at once


def test_what_it_does_not_try_again_is_told_at_once_and_not_every_time() -> None:
    assert told((0.0, "a"), (0.1, "b"), (59.0, "c")) == ["failed: a"]
    assert told((0.0, "a"), (61.0, "b")) == ["failed: a", "failed: b"]


def test_the_log_of_aiokafka_goes_by_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configuration = structlog.get_config()
    telemetry.configure_logging(as_json=True)
    try:
        logging.getLogger("aiokafka.consumer").error("Failed: %s", RetriableError("not yet"))
        logging.getLogger("aiokafka.consumer").error("Failed: %s", "for good")
    finally:
        structlog.configure(**configuration)
        logging.getLogger("aiokafka").handlers.clear()
        logging.getLogger("aiokafka").propagate = True
    lines = capsys.readouterr().err
    assert "for good" in lines
    assert "not yet" not in lines
