"""A log on Kafka and a store of its own: the ledger brings them in step, whatever ends in between."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.kernel.errors import UnavailableError
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Message, PartitionLostError, Progress, Record, Tally
from services.kernel.outbox import LocalLedger, decode_messages, encode_messages
from services.kernel.processor import Decision, Outcome, Processor, ProcessorLoop
from services.kernel.sqlite import Database
from services.kernel.topics import ANSWERS_TOUCHED, CHANGES, PROFILES, RATINGS, TOPICS
from tests.engines import Kafka


def message(topic: str, value: str, key: str = "k") -> Message:
    return Message(topic, key.encode(), value.encode(), "test", 1_000)


class Sum:
    """How often each key was seen, in the local database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("sum", ("CREATE TABLE seen (value TEXT PRIMARY KEY, times INTEGER NOT NULL)",))

    async def load(self, batch: object) -> list[str]:
        return []

    async def save(self, state: list[str], progress: Progress) -> None:
        for value in state:
            self._database.unit.execute(
                "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times=times+1", (value,)
            )

    def rows(self) -> list[tuple[str, int]]:
        return self._database.reader.execute("SELECT value, times FROM seen ORDER BY value").fetchall()


def decide(state: list[str], record: Record) -> Decision:
    value = (record.value or b"").decode()
    state.append(value)
    return Decision(Outcome.APPLIED, [message(PROFILES, value, value), message(RATINGS, value)])


@pytest.fixture
async def open_log(kafka_engine: Kafka, tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[KafkaLog]]]:
    """Open logs on the same topics, each with the local database of a name."""
    settings = KafkaSettings(kafka_engine.address, prefix=f"{uuid.uuid4().hex}.", replication=1)
    opened: list[tuple[KafkaLog, Database]] = []

    async def open_one(name: str) -> KafkaLog:
        database = Database(tmp_path / name)
        log = KafkaLog(settings, database)
        opened.append((log, database))
        await log.start()
        await log.create_topics(TOPICS)
        return log

    yield open_one
    for log, database in opened:
        await log.close()
        database.close()


async def drain(log: KafkaLog, processor: Processor[list[str]]) -> None:
    """Let a processor work until nothing is left for it and for its store."""
    loop = ProcessorLoop(processor, log)
    task = asyncio.create_task(loop.run())
    try:
        async with asyncio.timeout(60):
            while await log.lag(processor.name, processor.topics) or loop.failing:
                await asyncio.sleep(0.05)
    finally:
        await loop.pause()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def values(log: KafkaLog, topic: str) -> list[str]:
    return [
        (record.value or b"").decode()
        for partition in range(log.partitions(topic))
        for record in await log.read(topic, partition, 0)
    ]


def database_of(log: KafkaLog) -> Database:
    database, _ = log._local_store()
    return database


def counting(log: KafkaLog, internal: tuple[str, ...] = ()) -> tuple[Sum, Processor[list[str]]]:
    store = Sum(database_of(log))
    return store, Processor("g", (CHANGES,), store, decide, internal_topics=internal)


@pytest.mark.slow
@pytest.mark.engine
async def test_what_a_store_has_and_the_log_has_not_is_published_once(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    log = await open_log("a")
    store, processor = counting(log)
    await log.append([message(CHANGES, str(n)) for n in range(5)])
    # The process ends when the store has the batch and the log does not know.
    consumer = log.consumer("g", (CHANGES,))
    consumer._publish = _crash  # type: ignore[method-assign,assignment]
    batch = await consumer.poll(100, 1 << 20)
    with pytest.raises(UnavailableError, match="crash"):
        async with consumer.unit():
            state: list[str] = []
            outputs = [each for record in batch.records for each in decide(state, record).outputs]
            named = [each._replace(event_id=f"e{n}") for n, each in enumerate(outputs)]
            progress = Progress("g", CHANGES, batch.partition, batch.start, batch.next_offset, named, Tally(5))
            await store.save(state, progress)
            await consumer.commit(progress)
    await consumer.close()
    assert await values(log, PROFILES) == []
    assert await log.committed("g") == {}
    await drain(log, processor)
    assert store.rows() == [(str(n), 1) for n in range(5)]
    assert sorted(await values(log, PROFILES)) == sorted(await values(log, RATINGS)) == [str(n) for n in range(5)]
    assert await log.tallies("g") == (5, (5, 0, 0, 0))


async def _crash(*_: object) -> None:
    raise UnavailableError("crash")


@pytest.mark.slow
@pytest.mark.engine
async def test_a_store_that_was_lost_takes_in_again_what_it_lacks_and_publishes_only_what_is_internal(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    log = await open_log("a")
    store, processor = counting(log)
    for n in range(3):  # three transactions, whose ends take offsets
        await log.append([message(CHANGES, f"{n}{m}", str(m)) for m in range(20)])
        await drain(log, processor)
    before = (store.rows(), sorted(await values(log, PROFILES)), await log.tallies("g"))
    await log.append([message(CHANGES, "new")])
    other = await open_log("b")
    store, processor = counting(other, internal=(RATINGS,))
    await drain(other, processor)
    rows, published, _ = before
    assert store.rows() == sorted([*rows, ("new", 1)])
    assert sorted(await values(other, PROFILES)) == sorted([*published, "new"])
    assert sorted(await values(other, RATINGS)) == sorted([*published, *published, "new"])
    assert await other.tallies("g") == (61, (61, 0, 0, 0))


@pytest.mark.slow
@pytest.mark.engine
async def test_a_rebuild_leads_to_the_same_state_while_the_members_stay(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    log = await open_log("a")
    store, processor = counting(log)
    await log.append([message(CHANGES, str(n), str(n)) for n in range(100)])
    loop = ProcessorLoop(processor, log)
    task = asyncio.create_task(loop.run())
    for _ in range(3):
        async with asyncio.timeout(60):
            while await log.lag("g", (CHANGES,)):
                await asyncio.sleep(0.05)
        before = store.rows()
        await loop.pause()
        async with log.rebuilding(("g",), ()) as unit:
            unit.execute("DELETE FROM seen")
        loop.resume()
        assert await log.lag("g", (CHANGES,)) > 0
        assert log.is_muted("g")
    async with asyncio.timeout(60):
        while await log.lag("g", (CHANGES,)):
            await asyncio.sleep(0.05)
    assert store.rows() == before == [(str(n), 1) for n in sorted(map(str, range(100)))]
    assert len(await values(log, PROFILES)) == 100
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.engine
async def test_a_store_is_not_emptied_while_another_process_writes_into_it(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    one, two = await open_log("a"), await open_log("b")
    store, processor = counting(one)
    _, same = counting(two)
    loops = [ProcessorLoop(processor, one), ProcessorLoop(same, two)]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    await one.append([message(CHANGES, str(n), str(n)) for n in range(20)])
    async with asyncio.timeout(60):
        while await one.lag("g", (CHANGES,)) or not (store.rows() and Sum(database_of(two)).rows()):
            await one.append([message(CHANGES, str(n), str(n)) for n in range(20)])
            await asyncio.sleep(0.5)
    with pytest.raises(UnavailableError, match="has 2 workers"):
        async with one.rebuilding(("g",), ()):
            raise AssertionError
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.engine
async def test_a_store_that_somebody_else_has_moved_on_is_looked_at_anew(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    log = await open_log("a")
    store, processor = counting(log)
    await log.append([message(CHANGES, "1")])
    consumer = log.consumer("g", (CHANGES,))
    batch = await consumer.poll(100, 1 << 20)
    _, ledger = log._local_store()
    outputs = [message(PROFILES, "by the other")._replace(event_id="x")]
    progress = Progress("g", CHANGES, batch.partition, batch.start, batch.next_offset, outputs, Tally(1))
    async with database_of(log).transaction():
        await ledger.record(progress)
    with pytest.raises(PartitionLostError):
        async with consumer.unit():
            await store.save(["1"], progress)
            await consumer.commit(progress._replace(outputs=[message(PROFILES, "late")]))
    await consumer.close()
    await drain(log, processor)
    assert await values(log, PROFILES) == ["by the other"]
    assert store.rows() == []  # the other's store has it


@pytest.mark.slow
@pytest.mark.engine
async def test_units_of_the_local_database_publish_by_the_outbox(
    open_log: Callable[[str], Awaitable[KafkaLog]],
) -> None:
    log = await open_log("a")
    relay = asyncio.create_task(log.relay())
    with pytest.raises(UnavailableError):
        async with log.unit_from_outside() as unit:
            unit.emit([message(CHANGES, "never")])
            raise UnavailableError("rolled back")
    for n in range(3):
        async with log.unit_from_outside(durable=True) as unit:
            unit.emit([message(CHANGES, str(n)), message(ANSWERS_TOUCHED, str(n))])
    async with asyncio.timeout(30):
        while len(await values(log, ANSWERS_TOUCHED)) < 3:
            await asyncio.sleep(0.05)
    assert await values(log, CHANGES) == ["0", "1", "2"]
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)


async def test_a_relay_that_is_cut_off_publishes_again_under_the_same_ids(database: Database) -> None:
    ledger = LocalLedger(database)
    published: list[Message] = []

    async def append(messages: object) -> None:
        published.extend(messages)  # type: ignore[arg-type]
        if len(published) == 3:
            raise UnavailableError("cut off before the outbox was cleared")

    async with database.transaction() as unit:
        unit.emit([message(CHANGES, str(n)) for n in range(3)])
    with pytest.raises(UnavailableError):
        await ledger.relay(append)
    relay = asyncio.create_task(ledger.relay(append))
    while ledger.waiting():
        await asyncio.sleep(0)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    assert [each.value for each in published] == [b"0", b"1", b"2"] * 2
    ids = [each.event_id for each in published]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


async def test_the_local_ledger_takes_only_what_follows(database: Database) -> None:
    ledger = LocalLedger(database)
    assert await ledger.pending("g", CHANGES, 0) is None
    outputs = [message(PROFILES, "v"), Message(PROFILES, None, None, "t", 5, 2, "id", {"traceparent": "x"})]
    first = Progress("g", CHANGES, 0, 0, 10, outputs, Tally(1))
    async with ledger.unit():
        await ledger.record(first)
    assert await ledger.pending("g", CHANGES, 0) == first
    for start in (0, 5, 11):
        with pytest.raises(PartitionLostError):
            async with ledger.unit():
                await ledger.record(first._replace(start=start, next_offset=20))
    assert await ledger.pending("g", CHANGES, 0) == first
    async with database.transaction() as unit:
        ledger.forget(unit, ["g"])
    assert await ledger.pending("g", CHANGES, 0) is None


def test_an_outbox_keeps_messages_as_they_are() -> None:
    odd = Message("t", b"\xff\x00", b"", "x.Y", -1, None, "id", {"a": "ü"})
    assert decode_messages(encode_messages([odd, odd._replace(value=None, key=None, partition=3)])) == [
        odd,
        odd._replace(value=None, key=None, partition=3),
    ]
