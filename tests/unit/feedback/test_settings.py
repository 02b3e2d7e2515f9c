"""The table [feedback]."""

import math
from typing import Any

import pytest

from services.feedback.kpis import KPIS, Kpi
from services.feedback.settings import Settings
from services.kernel.errors import InvalidInputError


def test_an_empty_table_gives_the_defaults() -> None:
    settings = Settings.from_config({})
    assert settings == Settings()
    assert [spec.name for spec in settings.windows] == ["60s", "3600s", "300s/60s"]
    assert settings.event_time.allowed_lateness_ms is None


def test_everything_can_be_set() -> None:
    settings = Settings.from_config(
        {
            "windows": ["10s", "session 30s"],
            "dimensions": [[], ["model", "conversation"], ["conversation", "model"]],
            "kpis": [{"name": "slowest", "measure": "latency_ms", "statistic": "p99"}],
            "out_of_order_s": 5,
            "allowed_lateness_s": 90.5,
            "classifier": "off",
            "learn": False,
            "export_root": "/tmp",
        }
    )
    assert settings.dimensions == ((), ("conversation", "model"))
    assert settings.kpis == (*KPIS, Kpi("slowest", "latency_ms", "p99"))
    assert (settings.event_time.out_of_order_ms, settings.event_time.allowed_lateness_ms) == (5000, 90_500)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"window": ["60s"]}, r"^\[feedback\] window is not a setting; known are windows, "),
        ({"windows": "60s"}, r"^\[feedback\] windows must be a list of texts"),
        ({"windows": ["1 minute"]}, "1 minute"),
        ({"dimensions": [["colour"]]}, "colour"),
        ({"dimensions": [[1]]}, "dimensions must be a list of lists of texts"),
        ({"dimensions": "model"}, "dimensions must be a list of lists of texts"),
        ({"kpis": [{"name": "x"}]}, r"^\[\[feedback.kpis\]\] number 1: measure is missing"),
        ({"kpis": [{"name": "x", "colour": 1}]}, "colour is not a setting; known are name, measure, statistic"),
        ({"kpis": 1}, "kpis must be tables"),
        ({"kpis": [{"name": "x", "measure": "joy", "statistic": "mean"}]}, "joy"),
        ({"kpis": [{"name": "x", "measure": "cost", "statistic": "mode"}]}, "mode"),
        ({"kpis": [{"name": "cost", "measure": "cost", "statistic": "mean"}]}, "built in"),
        ({"out_of_order_s": -1}, "out_of_order_s"),
        ({"out_of_order_s": math.inf}, r"^\[feedback\] out_of_order_s must be a number from 0 to 1000000000, not inf"),
        ({"idle_after_s": True}, "idle_after_s"),
        ({"allowed_lateness_s": "1h"}, "allowed_lateness_s"),
        ({"allowed_lateness_s": math.nan}, "allowed_lateness_s"),
        ({"classifier": "oracle"}, "oracle"),
        ({"learn": "yes"}, "learn"),
        ({"export_root": 5}, "export_root"),
    ],
)
def test_refuses_a_wrong_setting_and_names_it(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Settings.from_config(table)
