"""The configuration: a file, the environment, options, and clear refusals."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.kernel.errors import InvalidInputError
from services.kernel.settings import Section, Settings, address, load


def written(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "headwater.toml"
    path.write_text(text)
    return path


def test_nothing_configured_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environment={}) == Settings()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'data = "here"\n[rag_gateway]\ntop_k = 3\nmodel = "m"\n')
    settings = load(
        path, {"HEADWATER_DATA": "there", "HEADWATER__RAG_GATEWAY__TOP_K": "7", "HEADWATER__PROFILE__X": "a b"}
    )
    assert settings.data == Path("there")
    assert settings.table("rag_gateway") == {"top_k": 7, "model": "m"}
    assert settings.table("profile") == {"x": "a b"}


def test_every_top_level_setting_can_be_set_by_a_variable(tmp_path: Path) -> None:
    variables = {
        "HEADWATER_DATA": "7",  # a path, whatever it looks like
        "HEADWATER_GRPC_ADDRESS": "0.0.0.0:1",
        "HEADWATER_HTTP_ADDRESS": "localhost:2",
        "HEADWATER_PARTITIONS": "9",
        "HEADWATER_LOG_LEVEL": "debug",
        "HEADWATER_LOG_JSON": "true",
    }
    found = load(written(tmp_path), variables)
    assert found == Settings(Path("7"), "0.0.0.0:1", "localhost:2", 9, "DEBUG", log_json=True)


def test_an_option_goes_before_the_environment(tmp_path: Path) -> None:
    options = {"data": Path("option"), "grpc_address": None, "log_json": True}
    settings = load(written(tmp_path), {"HEADWATER_DATA": "variable", "HEADWATER_GRPC_ADDRESS": "h:1"}, options=options)
    assert (settings.data, settings.grpc_address, settings.log_json) == (Path("option"), "h:1", True)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, 'data = "~/water"')
    assert load(environment={"HEADWATER_CONFIG": "~/headwater.toml"}).data == tmp_path / "water"
    assert load(tmp_path / "headwater.toml", {"HEADWATER_DATA": "~/other"}).data == tmp_path / "other"


def test_a_variable_may_name_a_key_of_a_table_within_a_table(tmp_path: Path) -> None:
    path = written(tmp_path, '[rag_gateway.llm]\nmodel = "old"\ntimeout_s = 3.0\n')
    settings = load(path, {"HEADWATER__RAG_GATEWAY__LLM__MODEL": "new", "HEADWATER__RAG_GATEWAY__TOP_K": "4"})
    assert settings.table("rag_gateway") == {"llm": {"model": "new", "timeout_s": 3.0}, "top_k": 4}


def test_a_key_goes_before_its_table_whatever_the_order_of_the_variables(tmp_path: Path) -> None:
    variables = {
        "HEADWATER__RAG_GATEWAY__LLM__MODEL": "new",
        "HEADWATER__RAG_GATEWAY__LLM": '{model = "old", base_url = "http://x"}',
    }
    for some in (variables, dict(reversed(variables.items()))):
        assert load(written(tmp_path), some).table("rag_gateway") == {"llm": {"model": "new", "base_url": "http://x"}}


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("CONFIG", "DATA", "GRPC_ADDRESS", "PARTITIONS", "_INGEST__RESCAN_S", "_NOWHERE__X")
    assert load(environment={f"HEADWATER_{name}": "" for name in names}) == Settings()


def test_a_value_over_several_lines_is_text(tmp_path: Path) -> None:
    assert load(written(tmp_path), {"HEADWATER__PROFILE__X": "1\ny = 2"}).table("profile") == {"x": "1\ny = 2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta = 1", r"headwater.toml: dta is not a setting; known are data, .*log_json, \[ingest\], "),
        ("tables = 1", "tables is not a setting"),
        ("partitions = 'four'", "headwater.toml: partitions must be a whole number from 1 to 1024, not 'four'"),
        ("partitions = 0", "partitions must be a whole number from 1"),
        ("partitions = true", "partitions must be a whole number from 1"),
        ("log_level = 'LOUD'", "log_level must be one of DEBUG, INFO, WARNING, ERROR, not 'LOUD'"),
        ("log_json = 'yes'", "log_json must be true or false, not 'yes'"),
        ("data = 1", "data must be a text, not 1"),
        ("data = ''", "data is missing"),
        ("grpc_address = '7070'", "headwater.toml: grpc_address: '7070' is not host:port"),
        ("http_address = 'localhost'", "headwater.toml: http_address: 'localhost' is not host:port"),
        ("ingest = 3", r"headwater.toml: \[ingest\] must be a table, not 3"),
        ("[[profile]]", r"headwater.toml: \[profile\] must be a table"),
        ("data = [", "headwater.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        load(written(tmp_path, text), {})
    assert "tables" not in str(caught.value).partition("known are")[2]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HEADWATER_PARTITIONS", "0", "HEADWATER_PARTITIONS must be a whole number from 1 to 1024, not 0"),
        ("HEADWATER_LOG_JSON", "1", "HEADWATER_LOG_JSON must be true or false, not 1"),
        ("HEADWATER_LOG_LEVEL", "LOUD", "HEADWATER_LOG_LEVEL must be one of DEBUG"),
        ("HEADWATER_GRPC_ADDRESS", "here", "HEADWATER_GRPC_ADDRESS: 'here' is not host:port"),
        ("HEADWATER__INGESTT__X", "1", r"HEADWATER__INGESTT__X: there is no table \[ingestt\]; there are ingest, "),
        ("HEADWATER__INGEST", "1", "HEADWATER__INGEST names no setting: write HEADWATER__SECTION__KEY"),
        ("HEADWATER__INGEST__", "1", "HEADWATER__INGEST__ names no setting"),
        (
            "HEADWATER__RAG_GATEWAY__TOP_K__X",
            "1",
            r"HEADWATER__RAG_GATEWAY__TOP_K__X: rag_gateway.top_k is not a table",
        ),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        load(written(tmp_path, "[rag_gateway]\ntop_k = 3\n"), {name: value})


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--grpc-address: 'x' is not host:port"):
        load(written(tmp_path), {}, options={"grpc_address": "x"})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such configuration file"):
        load(tmp_path / "missing.toml", {})


@pytest.mark.parametrize("text", ["localhost", "localhost:", ":1", "h:99999", "h:x", "h:\u00b2"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="host:port"):
        address(text, "here")


def test_an_address_is_split() -> None:
    assert address("127.0.0.1:7070", "here") == ("127.0.0.1", 7070)


# A table that is being read -----------------------------------------------------------------------------------------


class Tone(Enum):
    SOFT = "soft"
    LOUD = "loud"


class Inner(NamedTuple):
    tone: Tone = Tone.SOFT
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outer:
    count: int = 3
    share: float = 0.5
    name: str = ""
    on: bool = False


def outer(**values: Any) -> Section:
    return Section("outer", values, Outer())


def test_a_setting_that_is_not_there_has_its_default() -> None:
    read = outer()
    assert (read.whole("count"), read.number("share", 0, 1), read.text("name"), read.flag("on")) == (3, 0.5, "", False)
    inner = read.section("inner", Inner())
    assert (Tone(inner.choice("tone", Tone)), inner.texts("words")) == (Tone.SOFT, ())


def test_a_whole_number_is_a_number() -> None:
    share = outer(share=1).number("share", 0, 1)
    assert (share, type(share)) == (1.0, float)


def test_tables_within_a_table_are_read_in_the_same_way() -> None:
    read = Section("outer", {"inner": {"tone": "loud", "words": ["a", "b"]}, "each": [{"name": "x"}, {}]}, None)
    inner = read.section("inner", Inner())
    assert (inner.choice("tone", Tone), inner.texts("words")) == ("loud", ("a", "b"))
    assert [one.text("name") for one in read.sections("each", Outer())] == ["x", ""]
    assert list(read.values) == ["inner", "each"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1.5, -0.1, "0.5", True, None])
def test_a_number_is_finite_and_within_its_range(number: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"\[outer\] share must be a number from 0 to 1, not "):
        outer(share=number).number("share", 0, 1)


@pytest.mark.parametrize(
    ("values", "read", "words"),
    [
        ({"count": 0}, lambda read: read.whole("count"), "[outer] count must be a whole number from 1, not 0"),
        ({"count": 1.0}, lambda read: read.whole("count", 0, 9), "[outer] count must be a whole number from 0 to 9"),
        ({"count": 1 << 80}, lambda read: read.whole("count"), "[outer] count must be a whole number from 1 to 21474"),
        ({"name": 1}, lambda read: read.text("name"), "[outer] name must be a text, not 1"),
        ({"name": ""}, lambda read: read.text("name", required=True), "[outer] name is missing"),
        ({}, lambda read: read.text("name", required=True), "[outer] name is missing"),
        (
            {"name": "x.io"},
            lambda read: read.url("name"),
            "[outer] name must begin with http:// or https://, not be 'x.io'",
        ),
        ({"on": 1}, lambda read: read.flag("on"), "[outer] on must be true or false, not 1"),
        ({"name": "x"}, lambda read: read.choice("name", Tone), "[outer] name must be one of soft, loud, not 'x'"),
        ({"name": []}, lambda read: read.choice("name", ("a", "b")), "[outer] name must be one of a, b, not []"),
        ({"name": "a"}, lambda read: read.texts("name"), "[outer] name must be a list of texts, not 'a'"),
        ({"name": [""]}, lambda read: read.texts("name"), "[outer] name must be a list of texts, not ['']"),
        ({"name": []}, lambda read: read.texts("name", least=1), "[outer] name must not be empty"),
        ({"name": 1}, lambda read: read.section("name"), "[outer.name] must be a table, not 1"),
        ({"name": {}}, lambda read: read.sections("name"), "[outer] name must be tables, each headed [[outer.name]]"),
        ({"name": [1]}, lambda read: read.sections("name"), "[outer] name must be tables, each headed [[outer.name]]"),
        ({"name": {"a/b": 1}}, lambda read: read.section("name").section("a/b"), '[outer.name."a/b"] must be a table'),
        ({"name": [{}, {"x": 1}]}, lambda read: read.sections("name", Outer()), "[[outer.name]] number 2: x is not a"),
    ],
)
def test_a_wrong_setting_is_named_with_its_table_and_the_cure(values: dict[str, Any], read: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(outer(**values))
    assert str(caught.value).startswith(words)


def test_a_url_may_be_empty() -> None:
    assert (outer().url("name"), outer(name="https://x.io/v1").url("name")) == ("", "https://x.io/v1")


@pytest.mark.parametrize("name", ["password", "secret_key", "access_key", "session_token"])
def test_a_secret_is_not_told(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Section("outer", {name: 1234}).text(name)
    assert str(caught.value) == f"[outer] {name} must be a text, not a value of another kind"


def test_an_unknown_setting_is_named_with_those_that_are() -> None:
    with pytest.raises(InvalidInputError) as caught:
        outer(colour=1)
    assert str(caught.value) == "[outer] colour is not a setting; known are count, share, name, on"


def test_a_secret_of_the_environment_is_a_text_whatever_it_looks_like() -> None:
    environment = {"HEADWATER__NEO4J__PASSWORD": "12345", "HEADWATER__KAFKA__SASL_PASSWORD": "true"}
    settings = load(Path("/dev/null"), environment)
    assert settings.table("neo4j")["password"] == "12345"
    assert settings.table("kafka")["sasl_password"] == "true"
