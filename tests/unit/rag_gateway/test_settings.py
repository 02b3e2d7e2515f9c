"""The settings: what is wrong is named."""

import math
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
        ({"budget": 5}, r"^\[rag_gateway\] budget is not a setting; known are llm, budget_tokens, "),
        ({"top_k": 0}, r"^\[rag_gateway\] top_k must be a whole number from 1 to 100, not 0"),
        ({"top_k": "eight"}, "top_k"),
        ({"budget_tokens": -1}, "budget_tokens"),
        ({"llm": 5}, r"^\[rag_gateway.llm\] must be a table, not 5"),
        ({"llm": {"api_key": "secret"}}, "api_key"),
        ({"llm": {"model": "m"}}, "base_url"),
        ({"llm": {"base_url": "http://x"}}, "model"),
        ({"llm": {"base_url": "ftp://x", "model": "m"}}, "http://"),
        ({"llm": {"base_url": "http://x", "model": "m", "timeout_s": 0}}, "timeout_s"),
        ({"search_timeout_s": 0}, "search_timeout_s must be a number from 0.001 to 3600"),
        ({"search_timeout_s": math.inf}, "search_timeout_s"),
        ({"llm": {"prompt_price": -1.0}}, r"^\[rag_gateway.llm\] prompt_price must be a number from 0"),
        ({"llm": {"answer_price": -0.1}}, r"^\[rag_gateway.llm\] answer_price must be a number from 0"),
        ({"llm": {"answer_price": math.inf}}, "answer_price"),
        ({"llm": {"temperature": -0.1}}, r"^\[rag_gateway.llm\] temperature must be a number from 0 to 2"),
        ({"llm": {"temperature": 2.1}}, r"^\[rag_gateway.llm\] temperature must be a number from 0 to 2"),
        ({"llm": {"temperature": math.nan}}, r"^\[rag_gateway.llm\] temperature must be a number from 0 to 2"),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Settings.from_config(table)
