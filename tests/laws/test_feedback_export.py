"""Feedback, law 1 for the lake: the same position in the log gives the same files, byte for byte."""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback import export as export_module, formats
from services.feedback.export import Target, days, export
from services.feedback.sqlite_store import SqliteAnswers
from services.kernel.errors import UnavailableError
from services.kernel.sqlite import Database
from services.kernel.windows import EventTime

DAY_MS = 86_400_000
FIRST_MS = 20_000 * DAY_MS
TURNS = 257


@pytest.fixture
def filled(database: Database) -> Database:
    SqliteAnswers(database, EventTime(), None)
    with database.writer_transaction():
        for index in range(TURNS):
            insert(database.writer, index)
    return database


def insert(writer: sqlite3.Connection, index: int) -> None:
    turn = gateway_pb2.TurnCompleted(answer_id=f"a{index}", question=f"question {index} é", answer="x" * (index % 50))
    asked_ms = FIRST_MS + index * DAY_MS // 100
    row = ("t", f"answer:a{index}", "c", "", "", asked_ms, str(index), 0, "m", 1, None, 1.0, 0.0, 0, index)
    writer.execute(
        f"INSERT INTO feedback_turns VALUES ({', '.join('?' * 16)})",
        (row[0], row[1], row[2], row[3], row[4], *row[5:], turn.SerializeToString()),
    )
    if index % 3 == 0:
        rating = events_pb2.AnswerRated(answer_id=f"a{index}", scale=1 + index % 5)
        writer.execute(
            "INSERT INTO feedback_ratings VALUES ('t', ?, '', 0, 'd', 0, 0, ?)",
            (f"answer:a{index}", rating.SerializeToString()),
        )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_two_exports_are_the_same_byte_for_byte(filled: Database, tmp_path: Path, kind: str) -> None:
    for name in ("one", "two", "two"):
        with filled.snapshot() as connection:
            steps = list(export(connection, Target(tmp_path / name, "t", kind)))
    assert steps[-1].turns == TURNS
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 3


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_bytes_do_not_depend_on_how_rows_are_fetched(
    filled: Database, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fetch in (50, 7):
        monkeypatch.setattr(export_module, "FETCH_ROWS", fetch)
        with filled.snapshot() as connection:
            list(export(connection, Target(tmp_path / str(fetch), "t", kind)))
    assert digests(tmp_path / "50") == digests(tmp_path / "7")


def test_every_turn_is_in_the_file_of_its_day_once(filled: Database, tmp_path: Path) -> None:
    with filled.snapshot() as connection:
        assert days(connection, "t") == ["2024-10-04", "2024-10-05", "2024-10-06"]
        steps = list(export(connection, Target(tmp_path, "t", "parquet")))
        found = [answer for file in steps[-1].files for answer in sorted(formats.answer_ids(file))]
    assert sorted(found) == sorted(f"a{index}" for index in range(TURNS))


def test_an_export_that_ends_half_way_leaves_whole_files_only(filled: Database, tmp_path: Path) -> None:
    target = Target(tmp_path / "lake", "t", "jsonl")
    with filled.snapshot() as connection:
        steps = export(connection, target)
        while not next(steps).files:
            pass
        steps.close()
    assert list(digests(tmp_path / "lake")) == ["conversations/date=2024-10-04/part-t.jsonl"]
    with filled.snapshot() as connection:
        list(export(connection, target))
    assert len(digests(tmp_path / "lake")) == 3


class FullDisk(formats.JsonLines):
    """What a disk does that is full."""

    def write(self, rows: Any) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.WRITERS, "jsonl", FullDisk)
    with filled.snapshot() as connection, pytest.raises(UnavailableError, match=r"No space left.*free some space"):
        list(export(connection, Target(tmp_path / "lake", "t", "jsonl")))
    assert digests(tmp_path / "lake") == {}


def test_memory_is_bounded_by_batches(filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "BATCH_BYTES", 500)
    with filled.snapshot() as connection:
        steps: Iterator[Any] = export(connection, Target(tmp_path, "t", "jsonl"))
        written = [step.turns for step in steps]
    assert max(b - a for a, b in zip([0, *written], written, strict=False)) < 40
