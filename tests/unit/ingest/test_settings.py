"""The table [ingest] of the configuration."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.ingest.settings import Settings
from services.kernel.errors import InvalidInputError


def test_without_a_table_the_defaults_hold() -> None:
    assert Settings.from_config({}) == Settings()


def test_a_folder_is_named_after_itself_and_its_path_is_made_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (folder,) = Settings.from_config({"folders": [{"path": "policies", "access": ["staff"]}]}).folders
    assert folder.path == tmp_path / "policies"
    assert (folder.source, folder.tenant, folder.access) == ("policies", "default", ("staff",))


def test_keys_are_columns_by_entity() -> None:
    assert Settings.from_config({"keys": {"crm/customers": ["a", "b"]}}).keys == {"crm/customers": ("a", "b")}


def test_a_bucket_is_named_after_itself_and_its_reader_may_come_from_the_environment() -> None:
    (bucket,) = Settings.from_config({"buckets": [{"name": "policies"}]}).buckets
    assert (bucket.source, bucket.tenant, bucket.region) == ("policies", "default", "us-east-1")
    environment = {"AWS_ACCESS_KEY_ID": "ada", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "t"}
    assert bucket.credentials(environment) == ("ada", "x", "t")
    assert replace(bucket, access_key="bo", secret_key="y").credentials(environment) == ("bo", "y", "")
    assert "hidden" not in repr(replace(bucket, secret_key="hidden", session_token="hidden"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"recordbytes": 1}, "[ingest] recordbytes is not a setting; known are record_bytes_max"),
        ({"record_bytes_max": 0}, "[ingest] record_bytes_max must be a whole number from 1, not 0"),
        ({"record_bytes_max": "4MiB"}, "[ingest] record_bytes_max must be a whole number from 1, not '4MiB'"),
        ({"document_bytes_max": 31 << 20}, "[ingest] document_bytes_max must be a whole number from 1 to 31457280"),
        ({"rescan_s": math.nan}, "[ingest] rescan_s must be a number from 0.1"),
        ({"rescan_s": math.inf}, "[ingest] rescan_s must be a number from 0.1"),
        ({"rescan_s": 0}, "[ingest] rescan_s must be a number from 0.1"),
        ({"keys": ["id"]}, "[ingest.keys] must be a table, not ['id']"),
        ({"keys": {"crm/customers": "id"}}, "[ingest.keys] crm/customers must be a list of texts"),
        ({"keys": {"crm/customers": []}}, "[ingest.keys] crm/customers must not be empty"),
        ({"folders": {"path": "x"}}, "[ingest] folders must be tables, each headed [[ingest.folders]]"),
        ({"folders": [{"source": "x"}]}, "[[ingest.folders]] number 1: path is missing"),
        ({"folders": [{"path": "x", "globs": ["*"]}]}, "globs"),
        ({"folders": [{"path": "x", "access": "staff"}]}, "access must be a list"),
        ({"folders": [{"path": "x", "include": []}]}, "include must not be empty"),
        ({"buckets": [{}]}, "number 1: name is missing"),
        ({"buckets": [{"name": "x", "endpoint": "store:9000"}]}, "endpoint must be a URL"),
        ({"buckets": [{"name": "x"}, {"name": "y", "source": "x"}]}, "two buckets have the source 'x'"),
        ({"schema_registry": {"url": "localhost"}}, "url must be a URL"),
        ({"folders": [{"path": "a/x"}, {"path": "b/x"}]}, "two folders have the source 'x'"),
    ],
)
def test_a_wrong_setting_is_named(table: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_config(table)
    assert words in str(caught.value)
