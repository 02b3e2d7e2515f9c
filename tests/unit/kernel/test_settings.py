"""The configuration: a file, the environment, and clear refusals."""

from pathlib import Path

import pytest

from services.kernel.errors import InvalidInputError
from services.kernel.settings import Settings, address, load


def written(tmp_path: Path, text: str) -> Path:
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta = 1", "unknown setting 'dta'; known are"),
        ("partitions = 'four'", "partitions must be int"),
        ("data = [", "headwater.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        load(written(tmp_path, text), {})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such configuration file"):
        load(tmp_path / "missing.toml", {})


@pytest.mark.parametrize("text", ["localhost", "localhost:", ":1", "h:99999", "h:x"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="host:port"):
        address(text, "here")


def test_an_address_is_split() -> None:
    assert address("127.0.0.1:7070", "here") == ("127.0.0.1", 7070)
