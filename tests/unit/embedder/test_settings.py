"""Settings and row templates: read, checked, and refused with the name of what is wrong."""

import math
from typing import Any

import pytest

from services.embedder.rows import NOBODY, RowTemplate, parse
from services.embedder.settings import Settings
from services.kernel.errors import InvalidInputError
from services.kernel.settings import Section

TABLE: dict[str, Any] = {"source": "s", "entity": "e", "text": "{a}"}
ENDPOINT = {"provider": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}


def test_everything_has_a_default() -> None:
    assert Settings.from_config({}) == Settings()


def test_tables_are_found_by_source_and_entity() -> None:
    settings = Settings.from_config({"tables": [TABLE], "chunk_tokens": 100})
    assert settings.chunk_tokens == 100
    assert settings.tables["s", "e"].columns == {"a"}


def test_another_embedding_model_is_configured_by_its_provider() -> None:
    model = Settings.from_config({"model": {**ENDPOINT, "dimensions": 768}}).model
    assert (model.provider, model.base_url, model.model, model.dimensions) == (*ENDPOINT.values(), 768)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"colour": 1}, r"^\[embedder\] colour is not a setting; known are .*document_bytes_max, "),
        ({"chunk_tokens": 5}, r"^\[embedder\] chunk_tokens must be a whole number from 16 to 200, not 5"),
        ({"vector_weight": 2.0}, "vector_weight must be a number from 0 to 1, not 2.0"),
        ({"vector_weight": math.nan}, "vector_weight must be a number from 0 to 1, not nan"),
        ({"document_bytes_max": "big"}, "document_bytes_max must be a whole number"),
        ({"document_bytes_max": 31 << 20}, "document_bytes_max must be a whole number from 1 to 31457280"),
        ({"model": "m"}, r"^\[embedder.model\] must be a table"),
        ({"model": {"provider": "cohere"}}, "provider must be one of onnx, openai, sentence-transformers"),
        ({"model": {"model": "m"}}, 'model is of no use with provider = "onnx"'),
        ({"model": {"provider": "sentence-transformers"}}, r"^\[embedder.model\] model is missing"),
        ({"model": {**ENDPOINT, "model": ""}}, "model is missing"),
        ({"model": {**ENDPOINT, "base_url": "ftp://x"}}, "base_url must begin with http://"),
        ({"model": {**ENDPOINT, "api_key": "secret"}}, "api_key is not a setting"),
        ({"model": {**ENDPOINT, "tokens_max": 20}}, "tokens_max must be 0 or at least 64"),
        ({"model": {**ENDPOINT, "requests_max": 0}}, "requests_max must be a whole number from 1 to 64"),
        ({"model": {**ENDPOINT, "timeout_s": math.inf}}, "timeout_s"),
        ({"tables": "x"}, "embedder.tables"),
        ({"tables": [TABLE, TABLE]}, "number 2"),
        ({"tables": [{**TABLE, "text": ""}]}, "text"),
        ({"tables": [{**TABLE, "text": "nothing"}]}, "names no column"),
        ({"tables": [{**TABLE, "text": "{a"}]}, "brace"),
        ({"tables": [{**TABLE, "text": "{a:>5}"}]}, "nothing else"),
        ({"tables": [{**TABLE, "text": "{}"}]}, "nothing else"),
        ({"tables": [{**TABLE, "live": "price"}]}, "live"),
        ({"tables": [{**TABLE, "prices": []}]}, "prices"),
        ({"tables": [{"source": "s", "text": "{a}"}]}, "entity"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Settings.from_config(table)


def template_of(**fields: Any) -> RowTemplate:
    return parse(Section("t", {**TABLE, **fields}))


def test_values_stand_in_a_text_as_a_person_would_write_them() -> None:
    template = template_of(text="{a} {{braces}} {b} {c} {d}")
    assert template.text_of({"a": True, "b": None, "c": ["x", 1], "d": {"k": 1}}) == 'yes {braces}  x, 1 {"k":1}'


def test_a_row_without_any_of_its_columns_has_no_text() -> None:
    assert template_of(text="Name: {a}").text_of({"a": "", "b": 1}) == ""


def test_a_row_whose_access_columns_are_empty_is_for_nobody() -> None:
    template = template_of(access=["who"])
    assert template.access_of({"who": ["b", "a"]}) == ("a", "b")
    assert template.access_of({"who": None}) == (NOBODY,)
    assert template_of().access_of({}) == ()
