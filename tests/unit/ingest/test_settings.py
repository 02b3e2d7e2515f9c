from pathlib import Path
from typing import Any

import pytest

from services.ingest.settings import Settings, from_config
from services.kernel.errors import InvalidInputError


def test_without_a_table_the_defaults_hold() -> None:
    assert from_config({}) == Settings()


def test_a_folder_is_named_after_itself_and_its_path_is_made_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (folder,) = from_config({"folders": [{"path": "policies", "access": ["staff"]}]}).folders
    assert folder.path == tmp_path / "policies"
    assert (folder.source, folder.tenant, folder.access) == ("policies", "default", ("staff",))


def test_keys_are_columns_by_entity() -> None:
    assert from_config({"keys": {"crm/customers": ["a", "b"]}}).keys == {"crm/customers": ("a", "b")}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"recordbytes": 1}, "recordbytes"),
        ({"record_bytes_max": 0}, "record_bytes_max must be above 0"),
        ({"record_bytes_max": "4MiB"}, "record_bytes_max must be int"),
        ({"keys": ["id"]}, "keys must be a table"),
        ({"keys": {"crm/customers": "id"}}, "keys.crm/customers must be a list"),
        ({"keys": {"crm/customers": []}}, "must not be empty"),
        ({"folders": {"path": "x"}}, "folders must be tables"),
        ({"folders": [{"source": "x"}]}, "number 1: give its path"),
        ({"folders": [{"path": "x", "globs": ["*"]}]}, "globs"),
        ({"folders": [{"path": "x", "access": "staff"}]}, "access must be a list"),
        ({"folders": [{"path": "x", "include": []}]}, "include must not be empty"),
        ({"folders": [{"path": "a/x"}, {"path": "b/x"}]}, "two folders have the source 'x'"),
    ],
)
def test_a_wrong_setting_is_named(table: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        from_config(table)
    assert words in str(caught.value)
