"""The settings: what is wrong is named."""

from typing import Any

import pytest

from services.kernel.errors import InvalidInputError
from services.rag_gateway.settings import Settings


def test_nothing_configured_means_extracts_and_the_defaults() -> None:
    settings = Settings.from_config({})
    assert settings == Settings()
    assert not settings.llm.base_url


def test_a_model_is_configured_by_its_endpoint_and_name() -> None:
    table = {"budget_tokens": 500, "llm": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "timeout_s": 5}}
    settings = Settings.from_config(table)
    assert (settings.budget_tokens, settings.llm.model, settings.llm.timeout_s) == (500, "m", 5.0)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"budget": 5}, "budget"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": "eight"}, "top_k"),
        ({"budget_tokens": -1}, "budget_tokens"),
        ({"llm": 5}, "llm"),
        ({"llm": {"api_key": "secret"}}, "api_key"),
        ({"llm": {"model": "m"}}, "base_url"),
        ({"llm": {"base_url": "http://x"}}, "model"),
        ({"llm": {"base_url": "ftp://x", "model": "m"}}, "http://"),
        ({"llm": {"base_url": "http://x", "model": "m", "timeout_s": 0}}, "timeout_s"),
        ({"search_timeout_s": 0}, "search_timeout_s"),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Settings.from_config(table)
