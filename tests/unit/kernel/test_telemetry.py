"""The log lines: what went wrong, but nothing of whom it was about."""

import pytest
import structlog

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
