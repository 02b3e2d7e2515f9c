"""Watched folders on a real file system: documents in the log equal the files, whatever happens in between.

What is known of the files is in the local database; the log is the embedded one, or Kafka.
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.ingest.v1 import events_pb2
from services.ingest.folder_source import FolderSource
from services.ingest.folder_store import SCHEMA
from services.ingest.settings import Settings
from services.kernel import topics
from services.kernel.log import Log, Record
from services.kernel.positions import newer
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from tests.contract.conftest import Tables
from tests.contract.test_ingest_api import records

PUT, DELETE = events_pb2.DOCUMENT_OPERATION_PUT, events_pb2.DOCUMENT_OPERATION_DELETE
PATIENCE_S = 20.0


class Watched:
    """A folder, what the log says of it, and the watcher."""

    def __init__(self, root: Path, database: Database, log: Log) -> None:
        self.root, self.database, self.log = root, database, log
        database.migrate("ingest", SCHEMA)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def source(self, **folder: Any) -> FolderSource:
        table = {"folders": [{"path": str(self.root), "source": "policies", **folder}], **self.limits}
        settings = Settings.from_config(table)
        return FolderSource(settings.folders[0], settings, self.database, self.log, time.time)

    limits: dict[str, Any] = {}  # noqa: RUF012 - set by a test for itself

    @contextlib.asynccontextmanager
    async def watching(self, **folder: Any) -> AsyncIterator[FolderSource]:
        source = self.source(**folder)
        task = asyncio.create_task(source.watch())
        try:
            yield source
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def events(self) -> list[events_pb2.DocumentChange]:
        found = [
            events_pb2.DocumentChange.FromString(record.value or b"") for record in await self.records(topics.DOCUMENTS)
        ]
        return sorted(found, key=lambda event: event.position)

    async def records(self, topic: str) -> list[Record]:
        """All records of a topic, with those that are on their way from the local database to it."""
        if not isinstance(self.log, SqliteLog):
            while self.database.reader.execute("SELECT count(*) FROM outbox").fetchone() != (0,):
                await asyncio.sleep(0.005)
        return await records(self.log, topic)

    async def documents(self) -> dict[str, str]:
        """The newest content of each document, as one who reads the log has it."""
        newest: dict[str, events_pb2.DocumentChange] = {}
        for event in await self.events():
            before = newest.get(event.document_id)
            if before is None or newer(event.position, before.position):
                newest[event.document_id] = event
        return {
            name.removeprefix("policies/"): event.content.decode()
            for name, event in newest.items()
            if event.operation == PUT
        }

    async def until(self, **expected: str) -> None:
        """Wait until the documents are these; names are written with `_` for `.`."""
        wanted = {name.replace("_", "."): text for name, text in expected.items()}
        await self.eventually(lambda documents: documents == wanted)

    async def eventually(self, holds: Callable[[dict[str, str]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(documents := await self.documents()):
            assert time.monotonic() < deadline, f"in vain; the documents are {documents}"
            await asyncio.sleep(0.005)


@pytest.fixture
async def watched(tmp_path: Path, database: Database, log_engine: Tables) -> AsyncIterator[Watched]:
    root = tmp_path / "files"
    root.mkdir()
    async with opened(log_engine, database) as log:
        yield Watched(root, database, log)


@contextlib.asynccontextmanager
async def opened(tables: Tables, database: Database) -> AsyncIterator[Log]:
    """The log of an installation, with what publishes for its local database."""
    if not tables:
        log = SqliteLog(database)
        await log.create_topics(topics.TOPICS)
        yield log
        return
    from services.kernel.kafka_log import KafkaLog
    from services.kernel.kafka_settings import KafkaSettings

    kafka = KafkaLog(KafkaSettings.from_config(tables["kafka"]), database)
    await kafka.start()
    await kafka.create_topics(topics.TOPICS)
    relay = asyncio.create_task(kafka.relay())
    yield kafka
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    await kafka.close()


async def test_what_is_there_at_first_is_published_once(watched: Watched) -> None:
    watched.write("a.md", "A")
    watched.write("deep/b.md", "B")
    async with watched.watching():
        await watched.eventually(lambda documents: documents == {"a.md": "A", "deep/b.md": "B"})
    async with watched.watching():
        watched.write("c.md", "C")
        await watched.eventually(lambda documents: "c.md" in documents)
    assert len(await watched.events()) == 3


async def test_new_changed_and_deleted_files_are_followed(watched: Watched) -> None:
    async with watched.watching():
        file = watched.write("a.md", "one")
        await watched.until(a_md="one")
        file.write_text("two")
        await watched.until(a_md="two")
        file.unlink()
        await watched.until()
    assert [event.operation for event in await watched.events()][-1] == DELETE


async def test_a_document_says_where_it_comes_from(watched: Watched) -> None:
    watched.write("deep/a.md", "A")
    await watched.source(tenant="acme", access=["staff"]).reconcile()
    (event,) = await watched.events()
    assert (event.tenant, event.source, event.document_id) == ("acme", "policies", "policies/deep/a.md")
    assert (event.name, event.media_type, dict(event.metadata)) == ("a.md", "text/markdown", {"path": "deep/a.md"})
    assert event.uri == str(watched.root / "deep/a.md")
    assert list(event.access) == ["staff"]
    assert event.occurred_at.ToNanoseconds() // 1000 == (watched.root / "deep/a.md").stat().st_mtime_ns // 1000


async def test_what_happened_while_nobody_watched_is_noticed(watched: Watched) -> None:
    for name in ("kept", "changed", "deleted"):
        watched.write(f"{name}.md", name)
    async with watched.watching():
        await watched.eventually(lambda documents: len(documents) == 3)
    before = len(await watched.events())
    watched.write("changed.md", "anew")
    (watched.root / "deleted.md").unlink()
    watched.write("new.md", "new")
    async with watched.watching():
        await watched.until(kept_md="kept", changed_md="anew", new_md="new")
    assert len(await watched.events()) == before + 3


async def test_the_same_content_again_is_not_published(watched: Watched) -> None:
    file = watched.write("a.md", "A")
    async with watched.watching():
        await watched.until(a_md="A")
        file.touch()
        file.write_text("A")
        watched.write("b.md", "B")
        await watched.until(a_md="A", b_md="B")
    assert len(await watched.events()) == 2


async def test_a_file_with_an_older_time_still_takes_the_place_of_a_newer_one(watched: Watched) -> None:
    import os

    file = watched.write("a.md", "new")
    await watched.source().reconcile()
    file.write_text("restored from a backup")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    await watched.source().reconcile()
    assert await watched.documents() == {"a.md": "restored from a backup"}


async def test_a_change_within_the_same_instant_and_of_the_same_size_is_noticed(watched: Watched) -> None:
    import os

    file = watched.write("a.md", "one")
    moment = file.stat().st_mtime_ns
    await watched.source().reconcile()
    file.write_text("two")
    os.utime(file, ns=(moment, moment))
    await watched.source().reconcile()
    assert await watched.documents() == {"a.md": "two"}


async def test_a_folder_that_vanishes_deletes_nothing_and_is_compared_when_it_returns(watched: Watched) -> None:
    watched.write("a.md", "A")
    watched.write("b.md", "B")
    async with watched.watching() as source:
        await watched.until(a_md="A", b_md="B")
        away = watched.root.with_name("away")
        watched.root.rename(away)
        (away / "b.md").unlink()
        deadline = time.monotonic() + PATIENCE_S
        while (check := await source.check()).ok or "documents stay" not in str(source._trouble):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert "is not there" in check.detail
        assert await watched.documents() == {"a.md": "A", "b.md": "B"}
        away.rename(watched.root)
        await watched.until(a_md="A")
        watched.write("c.md", "C")
        await watched.until(a_md="A", c_md="C")


async def test_a_folder_that_is_removed_with_all_its_files_deletes_nothing(watched: Watched) -> None:
    watched.write("a.md", "A")
    async with watched.watching():
        await watched.until(a_md="A")
        shutil.rmtree(watched.root)
        await asyncio.sleep(0.3)
        assert await watched.documents() == {"a.md": "A"}


async def test_an_empty_folder_in_the_place_of_the_known_one_is_a_mount_that_went_away(watched: Watched) -> None:
    watched.write("a.md", "A")
    await watched.source().reconcile()
    watched.root.rename(watched.root.with_name("away"))
    watched.root.mkdir()
    async with watched.watching():
        await asyncio.sleep(0.2)
        assert await watched.documents() == {"a.md": "A"}
        watched.write("b.md", "B")
        await watched.until(b_md="B")


async def test_the_same_folder_may_become_empty(watched: Watched) -> None:
    watched.write("a.md", "A")
    async with watched.watching():
        await watched.until(a_md="A")
    (watched.root / "a.md").unlink()
    async with watched.watching():
        await watched.until()


async def test_a_folder_that_is_not_there_yet_is_waited_for(watched: Watched) -> None:
    watched.root.rmdir()
    async with watched.watching():
        await asyncio.sleep(0.05)
        watched.write("a.md", "A")
        await watched.until(a_md="A")


async def test_folders_that_come_go_and_move_take_their_files_along(watched: Watched, tmp_path: Path) -> None:
    async with watched.watching():
        made = tmp_path / "made"
        (made / "x").mkdir(parents=True)
        (made / "x" / "a.md").write_text("A")
        made.rename(watched.root / "one")
        await watched.eventually(lambda documents: documents == {"one/x/a.md": "A"})
        (watched.root / "one").rename(watched.root / "two")
        await watched.eventually(lambda documents: documents == {"two/x/a.md": "A"})
        shutil.rmtree(watched.root / "two")
        await watched.until()


async def test_saving_by_renaming_is_a_change_and_no_deletion(watched: Watched) -> None:
    file = watched.write("a.md", "one")
    async with watched.watching():
        await watched.until(a_md="one")
        watched.write("a.md.tmp", "two").rename(file)
        await watched.until(a_md="two")
        file.unlink()
        file.write_text("three")
        await watched.until(a_md="three")
    assert all(event.operation == PUT for event in await watched.events())


async def test_a_file_that_is_written_bit_by_bit_ends_up_whole(watched: Watched) -> None:
    async with watched.watching():
        with (watched.root / "a.md").open("w") as file:
            for _ in range(20):
                file.write("x" * 1000)
                file.flush()
                await asyncio.sleep(0.01)
        await watched.until(a_md="x" * 20_000)


async def test_only_wanted_files_are_documents(watched: Watched, tmp_path: Path) -> None:
    for path in ("a.md", "b.txt", "drafts/c.md", "deep/d.md", ".hidden.md", ".git/e.md", "f.md~", "g.md.swp"):
        watched.write(path, path)
    outside = tmp_path / "outside.md"
    outside.write_text("secret")
    (watched.root / "link.md").symlink_to(outside)
    (watched.root / "inner.md").symlink_to(watched.root / "a.md")
    await watched.source(include=["*.md"], exclude=["drafts/*"]).reconcile()
    assert sorted(await watched.documents()) == ["a.md", "deep/d.md", "inner.md"]


async def test_a_file_over_the_limit_is_left_out_and_told_of(watched: Watched) -> None:
    watched.limits = {"document_bytes_max": 10}
    watched.write("a.md", "short")
    file = watched.write("b.md", "short")
    source = watched.source()
    await source.reconcile()
    file.write_text("longer than that")
    await source.reconcile()
    assert await watched.documents() == {"a.md": "short"}
    check = await source.check()
    assert not check.ok
    assert "1 files are over 10 bytes" in check.detail


async def test_new_access_labels_are_published_for_every_document(watched: Watched) -> None:
    watched.write("a.md", "A")
    await watched.source().reconcile()
    await watched.source(access=["staff"]).reconcile()
    await watched.source(access=["staff"]).reconcile()
    assert [list(event.access) for event in await watched.events()] == [[], ["staff"]]


def line(number: int, text: str) -> str:
    return orjson.dumps({"_id": str(number), "text": text}).decode() + "\n"


async def test_a_file_of_documents_is_as_many_as_it_has_lines(watched: Watched) -> None:
    watched.write("faq.jsonl", line(1, "one") + line(2, "two") + line(3, "three"))
    source = watched.source(access=["staff"])
    await source.reconcile()
    assert await watched.documents() == {"faq.jsonl#1": "one", "faq.jsonl#2": "two", "faq.jsonl#3": "three"}
    before = len(await watched.events())
    watched.write("faq.jsonl", line(3, "three") + line(2, "TWO") + line(4, "four"))
    await source.reconcile()
    assert await watched.documents() == {"faq.jsonl#2": "TWO", "faq.jsonl#3": "three", "faq.jsonl#4": "four"}
    assert len(await watched.events()) == before + 3
    (watched.root / "faq.jsonl").unlink()
    await source.reconcile()
    assert await watched.documents() == {}


async def test_a_file_of_many_documents_is_published_in_parts_and_none_is_lost(watched: Watched) -> None:
    watched.write("faq.jsonl", "".join(line(number, f"text {number}") for number in range(1_234)))
    source = watched.source()
    await source.reconcile()
    assert len(await watched.documents()) == 1_234
    await source.reconcile()
    assert len(await watched.events()) == 1_234
    (watched.root / "faq.jsonl").unlink()
    await source.reconcile()
    assert await watched.documents() == {}
    assert (await source.check()).ok


async def test_a_bad_line_in_a_file_of_documents_goes_to_dead_letters(watched: Watched) -> None:
    watched.write("faq.jsonl", line(1, "one") + "nonsense\n" + line(2, "two"))
    await watched.source().reconcile()
    assert len(await watched.documents()) == 2
    (record,) = await watched.records(topics.DEAD_LETTERS)
    letter = common_pb2.DeadLetter.FromString(record.value or b"")
    assert (letter.value, letter.origin) == (b"nonsense", f"{watched.root}/faq.jsonl:2")


async def test_other_json_lines_are_one_document(watched: Watched) -> None:
    watched.write("log.jsonl", '{"level":"info"}\n{"level":"warn"}\n')
    await watched.source().reconcile()
    assert list(await watched.documents()) == ["log.jsonl"]


async def test_a_crash_at_any_write_is_made_good_by_the_next_start(watched: Watched) -> None:
    """The documents and what is known of the files are one transaction: neither is ever there without the other."""

    class CrashError(Exception): ...

    emitted = watched.database._appender
    fuse = 0

    def append(unit: Any, messages: Any) -> None:
        nonlocal fuse
        emitted(unit, messages)
        fuse -= 1
        if fuse == 0:
            raise CrashError

    watched.database.set_appender(append)
    watched.write("a.md", "A")
    watched.write("b.md", "B")
    for step in range(1, 4):
        fuse = 1
        with contextlib.suppress(CrashError):
            await watched.source().reconcile()
        fuse = 0
        await watched.source().reconcile()
        assert await watched.documents() == {path.name: path.read_text() for path in sorted(watched.root.glob("*.md"))}
        watched.write("a.md", f"A{step}")
        (watched.root / "b.md").unlink(missing_ok=True)


async def test_names_that_are_no_text_are_told_of_and_disturb_nothing(watched: Watched) -> None:
    import os

    watched.write("a.md", "A")
    (watched.root / os.fsdecode(b"\xff.md")).write_text("x")
    source = watched.source()
    await source.reconcile()
    assert await watched.documents() == {"a.md": "A"}
    assert "1 cannot be read" in (await source.check()).detail
