"""The installation's database: one process, clear errors, a full disk loses nothing."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from services.kernel import sqlite
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.log import Message
from services.kernel.sqlite import FILE_NAME, Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention
from services.kernel.topics import CHANGES


def big(number: int) -> Message:
    return Message(CHANGES, str(number).encode(), b"x" * 100_000, "test", 0, partition=0)


async def test_a_full_disk_refuses_with_the_cure_and_work_goes_on_when_there_is_space(
    database: Database, log: SqliteLog
) -> None:
    await log.append([big(0)])
    pages = database.writer.execute("PRAGMA page_count").fetchone()[0]
    database.writer.execute(f"PRAGMA max_page_count={pages + 30}")
    with pytest.raises(UnavailableError, match=r"full.*free some space"):
        for number in range(1, 50):
            await log.append([big(number)])
    kept = await log.read(CHANGES, 0, 0, max_bytes=1 << 30)
    database.writer.execute("PRAGMA max_page_count=1000000")
    await log.append([big(99)])
    after = await log.read(CHANGES, 0, 0, max_bytes=1 << 30)
    assert after[:-1] == kept
    assert [record.offset for record in after] == list(range(len(after)))


def test_a_second_process_is_told_who_has_the_folder(database: Database) -> None:
    script = (
        "import sys, pathlib\nfrom services.kernel.sqlite import Database\n"
        "try:\n    Database(pathlib.Path(sys.argv[1]))\nexcept Exception as e:\n    print(type(e).__name__, e)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(database.folder)], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("UnavailableError")
    assert "is in use by process" in out.stdout
    assert "--data" in out.stdout


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("not a database, but somebody's notes " * 100)
    with pytest.raises(UnavailableError, match="cannot be opened as a database"):
        Database(tmp_path)
    assert (tmp_path / FILE_NAME).read_text().startswith("not a database")


def test_a_folder_that_cannot_be_made_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="--data"):
        Database(tmp_path / "file" / "data")


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    database.migrate("part", ["CREATE TABLE part_a (x)", "CREATE TABLE part_b (x)"])
    database.migrate("part", ["CREATE TABLE part_a (x)", "CREATE TABLE part_b (x)"])
    with pytest.raises(InvalidInputError, match="newer version"):
        database.migrate("part", ["CREATE TABLE part_a (x)"])


async def test_units_of_work_take_turns_in_order_of_arrival(database: Database) -> None:
    database.migrate("turns", ["CREATE TABLE turns (n INTEGER)"])

    async def write(number: int) -> None:
        async with database.transaction(durable=number % 2 == 0) as unit:
            unit.execute("INSERT INTO turns VALUES (?)", (number,))
            await asyncio.sleep(0.001)

    await asyncio.gather(*(write(number) for number in range(10)))
    assert [row[0] for row in database.reader.execute("SELECT n FROM turns ORDER BY rowid")] == list(range(10))


async def test_scrubbing_leaves_no_deleted_byte(database: Database, log: SqliteLog) -> None:
    await log.append([Message(CHANGES, b"k", b"canary-7e57", "test", 0)])
    await Retention(log, database).erase(lambda _record: True, ())
    await database.scrub()
    assert all(b"canary-7e57" not in path.read_bytes() for path in database.folder.iterdir())


async def test_checkpoints_keep_the_write_ahead_log_small(database: Database, log: SqliteLog) -> None:
    task = asyncio.create_task(database.checkpoint_forever())
    wal = database.path.with_name(FILE_NAME + "-wal")
    for number in range(150):
        await log.append([big(number)], durable=False)
    await asyncio.sleep(1.5)
    for number in range(20):  # the log begins anew when all of it has been copied
        await log.append([big(number)], durable=False)
    assert wal.stat().st_size < 30 << 20
    assert len(await log.read(CHANGES, 0, 0, max_records=500, max_bytes=1 << 30)) == 170
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_unit_that_publishes_twice_and_rolls_back_leaves_no_gap(database: Database, log: SqliteLog) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as unit:
            unit.emit([big(0)])
            unit.emit([big(1)])
            raise ZeroDivisionError
    await log.append([big(2)])
    assert [record.offset for record in await log.read(CHANGES, 0, 0)] == [0]


async def test_a_statement_that_its_values_make_fail_is_no_outage(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="malformed JSON"):
        async with database.transaction() as unit:
            unit.execute("SELECT value FROM json_each(?)", ("{",)).fetchall()


async def test_a_snapshot_shows_what_was_there_when_it_was_opened(database: Database, log: SqliteLog) -> None:
    with database.snapshot() as connection:
        await log.append([big(0)])
        assert connection.execute(f"SELECT count(*) FROM {log.table(CHANGES, 0)}").fetchone() == (0,)


async def test_writers_go_on_while_a_reader_keeps_the_write_ahead_log_from_being_emptied(
    database: Database, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_EVERY_S", 0.01)
    monkeypatch.setattr(sqlite, "TRUNCATE_BYTES", 0)
    tried = asyncio.Event()
    empty = Database._empty_wal  # wrapped, to know when a checkpoint has run into the reader

    async def emptied(self: Database, connection: sqlite3.Connection) -> bool:
        tried.set()
        return await empty(self, connection)

    monkeypatch.setattr(Database, "_empty_wal", emptied)
    await log.append([big(0)])
    with database.snapshot():
        task = asyncio.create_task(database.checkpoint_forever())
        await tried.wait()
        async with asyncio.timeout(sqlite.BUSY_TIMEOUT_S / 2):
            for number in range(1, 20):
                await log.append([big(number)])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_scrubbing_waits_for_those_who_still_read_what_was_deleted(
    database: Database, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_EVERY_S", 0.01)
    await log.append([Message(CHANGES, b"k", b"canary-7e58", "test", 0)])
    with database.snapshot():
        await Retention(log, database).erase(lambda _record: True, ())
        scrubbing = asyncio.create_task(database.scrub())
        await log.append([big(0)])  # writers go on
        assert not (await asyncio.wait([scrubbing], timeout=0.2))[0]
    await scrubbing
    assert all(b"canary-7e58" not in path.read_bytes() for path in database.folder.iterdir())


async def test_a_scrub_for_which_there_is_no_space_is_an_error(
    database: Database, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite, "_in_thread", full)
    with pytest.raises(UnavailableError, match="free some space"):
        await database.scrub()


async def test_a_cancelled_scrub_has_ended_when_the_next_unit_begins(database: Database, log: SqliteLog) -> None:
    for number in range(50):
        await log.append([big(number)], durable=False)
    scrubbing = asyncio.create_task(database.scrub())
    await asyncio.sleep(0.001)
    scrubbing.cancel()
    await asyncio.gather(scrubbing, return_exceptions=True)
    assert scrubbing.cancelled()
    await log.append([big(50)])
    assert len(await log.read(CHANGES, 0, 0, max_bytes=1 << 30)) == 51


async def test_what_fails_after_a_commit_keeps_nobody_from_hearing_of_it(database: Database, log: SqliteLog) -> None:
    async with database.transaction() as unit:
        unit.on_commit.append(lambda: 1 // 0)  # type: ignore[arg-type]
        unit.emit([big(0)])
    assert await log.end(CHANGES) == [1, 0, 0, 0]
