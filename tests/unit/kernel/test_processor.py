"""The processing loop on a real log: once, poison, outages, batches."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from headwater.common.v1 import events_pb2
from services.kernel.errors import UnavailableError
from services.kernel.log import Message, Progress, Record, Tally
from services.kernel.processor import (
    APPLIED,
    SUPERSEDED,
    Decision,
    Outcome,
    Processor,
    ProcessorLoop,
)
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention
from services.kernel.topics import CHANGES, DEAD_LETTERS, DECISIONS, PROFILES


class Counts:
    """A store that counts per key, in the log's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.outages = 0
        database.migrate("test", ["CREATE TABLE counts (key BLOB PRIMARY KEY, n INTEGER NOT NULL)"])

    async def load(self, batch: Sequence[Record]) -> dict[bytes, int]:
        if self.outages:
            self.outages -= 1
            raise UnavailableError("the store is away")
        rows = dict(self._database.unit.execute("SELECT key, n FROM counts").fetchall())
        return {record.key or b"": rows.get(record.key or b"", 0) for record in batch}

    async def save(self, state: dict[bytes, int], progress: Progress) -> None:
        self._database.unit.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?)", state.items())

    def read(self) -> dict[bytes, int]:
        return dict(self._database.reader.execute("SELECT key, n FROM counts"))


def count(state: dict[bytes, int], record: Record) -> Decision:
    if record.value == b"poison":
        raise ValueError("cannot be counted")
    if record.value == b"old":
        return SUPERSEDED
    state[record.key or b""] += 1
    outputs = [
        Message(topic, record.key, str(state[record.key or b""]).encode(), "n", 0) for topic in (PROFILES, DECISIONS)
    ]
    return Decision(Outcome.APPLIED, outputs)


def change(key: str, value: str = "v") -> Message:
    return Message(CHANGES, key.encode(), value.encode(), "test", 7, partition=0)


async def drain(log: SqliteLog, processor: Processor[Any]) -> ProcessorLoop[Any]:
    loop = ProcessorLoop(processor, log)
    task = asyncio.create_task(loop.run())
    end = (await log.end(CHANGES))[0]
    async with asyncio.timeout(20):
        while (await log.committed(processor.name)).get((CHANGES, 0), 0) < end:
            await asyncio.sleep(0.001)
    await loop.pause()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return loop


async def test_every_input_takes_effect_once_and_is_tallied(database: Database, log: SqliteLog) -> None:
    store = Counts(database)
    await log.append([change(f"k{n % 3}") for n in range(300)] + [change("k0", "old")])
    await drain(log, Processor("g", (CHANGES,), store, count))
    assert store.read() == {b"k0": 100, b"k1": 100, b"k2": 100}
    assert await log.tallies("g") == (301, Tally(applied=300, superseded=1))


async def test_only_the_last_output_per_key_of_a_batch_goes_to_a_compacted_topic(
    database: Database, log: SqliteLog
) -> None:
    await log.append([change("k") for _ in range(10)])
    await drain(log, Processor("g", (CHANGES,), Counts(database), count))
    assert sum(await log.end(PROFILES)) == 1
    assert sum(await log.end(DECISIONS)) == 10


async def test_event_ids_follow_from_the_input(database: Database, log: SqliteLog) -> None:
    await log.append([change("k")])
    await drain(log, Processor("g", (CHANGES,), Counts(database), count))
    ids = [r.event_id for p in range(4) for r in await log.read(DECISIONS, p, 0)]
    assert ids == ["g:changes/0/0#1"]


@pytest.mark.parametrize("position", [0, 5, 19])
async def test_a_poisonous_record_becomes_a_dead_letter_and_the_others_go_on(
    database: Database, log: SqliteLog, position: int
) -> None:
    store = Counts(database)
    await log.append([change("k", "poison" if n == position else "v") for n in range(20)])
    await drain(log, Processor("g", (CHANGES,), store, count))
    assert store.read() == {b"k": 19}
    assert await log.tallies("g") == (20, Tally(applied=19, dead_lettered=1))
    (letter,) = [events_pb2.DeadLetter.FromString(r.value or b"") for r in await log.read(DEAD_LETTERS, 0, 0)]
    assert (letter.stage, letter.topic, letter.offset, letter.value) == ("g", CHANGES, position, b"poison")
    assert letter.error == "ValueError: cannot be counted"


async def test_what_makes_a_whole_batch_fail_is_found_by_halving(database: Database, log: SqliteLog) -> None:
    class Refusing(Counts):
        async def save(self, state: dict[bytes, int], progress: Progress) -> None:
            if b"bad" in state:
                raise OverflowError("too large for a column")
            await super().save(state, progress)

    store = Refusing(database)
    await log.append([change("bad" if n == 11 else "k") for n in range(20)])
    await drain(log, Processor("g", (CHANGES,), store, count))
    assert store.read() == {b"k": 19}
    assert await log.tallies("g") == (20, Tally(applied=19, dead_lettered=1))


async def test_an_outage_of_the_store_is_waited_for(database: Database, log: SqliteLog) -> None:
    store = Counts(database)
    store.outages = 3
    await log.append([change("k") for _ in range(5)])
    loop = await drain(log, Processor("g", (CHANGES,), store, count))
    assert store.read() == {b"k": 5}
    assert loop.failing is None
    assert await log.read(DEAD_LETTERS, 0, 0) == []


async def test_a_cancelled_batch_leaves_no_trace(database: Database, log: SqliteLog) -> None:
    reached = asyncio.Event()

    class Hanging(Counts):
        async def save(self, state: dict[bytes, int], progress: Progress) -> None:
            await super().save(state, progress)
            reached.set()
            await asyncio.Event().wait()

    await log.append([change("k")])
    task = asyncio.create_task(ProcessorLoop(Processor("g", (CHANGES,), Hanging(database), count), log).run())
    await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store = Counts(database)
    assert store.read() == {}
    await drain(log, Processor("g", (CHANGES,), store, count))
    assert store.read() == {b"k": 1}


async def test_finish_publishes_once_a_batch(database: Database, log: SqliteLog) -> None:
    await log.append([change("k") for _ in range(40)])
    processor = Processor(
        "g", (CHANGES,), Counts(database), lambda _state, _record: APPLIED,
        finish=lambda state: [Message(DECISIONS, key, b"", "t", 0) for key in state],
    )  # fmt: skip
    await drain(log, processor)
    assert sum(await log.end(DECISIONS)) == 1


async def test_what_has_left_the_log_counts_as_superseded(database: Database, log: SqliteLog) -> None:
    await log.append([change("k", "poison" if n == 6 else "v") for n in range(10)])
    await Retention(log, database).erase(lambda record: record.offset in {0, 4, 5, 9}, ())
    await drain(log, Processor("g", (CHANGES,), Counts(database), count))
    assert await log.tallies("g") == (10, Tally(applied=5, superseded=4, dead_lettered=1))


async def test_pausing_does_not_wait_for_an_outage_to_end(database: Database, log: SqliteLog) -> None:
    store = Counts(database)
    store.outages = 1 << 60
    loop = ProcessorLoop(Processor("g", (CHANGES,), store, count), log)
    task = asyncio.create_task(loop.run())
    await log.append([change("k")])
    async with asyncio.timeout(20):
        while loop.failing is None:
            await asyncio.sleep(0.001)
        await loop.pause()
        store.outages = 0
        loop.resume()
        while not await log.committed("g"):
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.read() == {b"k": 1}


async def test_a_value_that_a_statement_cannot_take_is_poison_and_no_outage(database: Database, log: SqliteLog) -> None:
    class Strict(Counts):
        async def save(self, state: dict[bytes, int], progress: Progress) -> None:
            for key in state:
                self._database.unit.execute("SELECT json(?)", (key.decode(),)).fetchall()

    await log.append([change("{}"), change("{"), change("{}")])
    await drain(log, Processor("g", (CHANGES,), Strict(database), lambda _state, _record: APPLIED))
    assert await log.tallies("g") == (3, Tally(applied=2, dead_lettered=1))


async def test_inputs_gather_while_nobody_asks_and_not_longer(database: Database, log: SqliteLog) -> None:
    waiting = True

    async def may_wait() -> bool:
        return waiting

    processor = Processor("g", (CHANGES,), Counts(database), count, may_wait=may_wait)
    loop = ProcessorLoop(processor, log)
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.05)
    await log.append([change("k") for _ in range(10)])
    await asyncio.sleep(0.05)
    assert (await log.tallies("g"))[0] == 0
    waiting = False
    assert await log.wait_committed(["g"], await log.append([change("k")]), 10)
    assert (await log.tallies("g"))[0] == 11
    await loop.pause()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
