"""What the log on Kafka promises beyond the common contract: rebalances, zombies, brokers that die."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.kernel import kafka_consumer, topics
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.kafka_consumer import KafkaConsumer
from services.kernel.kafka_log import KafkaLog
from services.kernel.log import Batch, Log, Message, PartitionLostError, Progress, Tally
from services.kernel.processor import APPLIED, Decision, Processor, ProcessorLoop
from services.kernel.topics import CHANGES, DEAD_LETTERS, PROFILES, RATINGS, TOUCHED, Cleanup, TopicSpec
from tests.contract.conftest import OpenKafka
from tests.engines import Kafka

pytestmark = [pytest.mark.slow, pytest.mark.engine]
BYTES = 1 << 20


def message(topic: str, key: str, value: str | None, partition: int | None = None) -> Message:
    return Message(topic, key.encode(), value.encode() if value is not None else None, "test", 1_000, partition)


async def everything(log: Log, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    found: list[tuple[bytes | None, bytes | None]] = []
    for partition in range(log.partitions(topic)):
        offset = 0
        while records := await log.read(topic, partition, offset):
            offset = records[-1].offset + 1
            found.extend((record.key, record.value) for record in records)
    return found


def copied(batch: Batch, group: str = "g", topic: str = RATINGS) -> Progress:
    """What a batch leads to where each record is copied."""
    outputs = [Message(topic, record.key, record.value, "test", 1) for record in batch.records]
    tally = Tally(applied=len(batch.records))
    return Progress(group, batch.topic, batch.partition, batch.start, batch.next_offset, outputs, tally)


async def copy_all(member: KafkaConsumer, lost: list[str]) -> None:
    """Copy records until cancelled, as the loop of a processor does."""
    while True:
        batch = await member.poll(20, BYTES)
        try:
            async with member.unit():
                await asyncio.sleep(0.005)  # the store's time, in which partitions may move
                await member.commit(copied(batch))
        except PartitionLostError as error:
            lost.append(str(error))
        except UnavailableError:
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def at_work(log: KafkaLog, lost: list[str]) -> AsyncIterator[KafkaConsumer]:
    member = log.consumer("g", [CHANGES])
    task = asyncio.create_task(copy_all(member, lost))
    try:
        yield member
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await member.close()


async def append_steadily(log: KafkaLog, count: int, size: int = 10) -> None:
    for start in range(0, count, size):
        messages = [message(CHANGES, f"k{n % 13}", str(n)) for n in range(start, min(start + size, count))]
        while True:
            try:
                await log.append(messages)
                break
            except UnavailableError:
                await asyncio.sleep(0.2)
        await asyncio.sleep(0.02)


async def passed_the_end(log: KafkaLog, group: str, topic: str) -> None:
    async with asyncio.timeout(90):
        while True:
            offsets, ends = await log.committed(group), await log.end(topic)
            if all(offsets.get((topic, partition), 0) >= end for partition, end in enumerate(ends)):
                return
            await asyncio.sleep(0.05)


async def assert_copied_once_in_order(log: KafkaLog, count: int) -> None:
    rows = await everything(log, RATINGS)
    values = Counter(int(value or b"") for _, value in rows)
    assert [n for n in range(count) if values[n] != 1] == []
    by_key = defaultdict(list)
    for key, value in rows:
        by_key[key].append(int(value or b""))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_members_that_come_and_go_lose_nothing_and_double_nothing(open_kafka: OpenKafka) -> None:
    one, two, lost = await open_kafka(), await open_kafka(), list[str]()
    async with at_work(one, lost) as first:
        appending = asyncio.create_task(append_steadily(one, 1500))
        moved: set[tuple[str, int]] = set()
        for _ in range(3):
            async with at_work(two, lost) as second:
                async with asyncio.timeout(60):
                    while len(second.assigned) != 2 or len(first.assigned) != 2:
                        await asyncio.sleep(0.02)
                moved.update(second.assigned)
                await asyncio.sleep(0.3)
            async with asyncio.timeout(60):
                while len(first.assigned) != 4:
                    await asyncio.sleep(0.02)
        await appending
        await passed_the_end(one, "g", CHANGES)
    assert moved
    await assert_copied_once_in_order(one, 1500)
    assert await two.tallies("g") == (1500, Tally(applied=1500))


async def test_a_member_that_dies_leaves_its_transaction_to_nobody(open_kafka: OpenKafka) -> None:
    one, two = await open_kafka(), await open_kafka()
    await one.append([message(CHANGES, "a", "1", 0)])
    zombie = one.consumer("g", [CHANGES])
    batch = await zombie.poll(10, BYTES)
    with pytest.raises(PartitionLostError):
        async with zombie.unit():
            await zombie.commit(copied(batch))
            # What the next holder of the partition does first, while this one knows nothing of a rebalance.
            heir = two.new_producer(two.named(f"g:{CHANGES}:0"))
            await heir.start()
            await heir.stop()
    assert await everything(two, RATINGS) == []
    assert await two.committed("g") == {}
    again = await zombie.poll(10, BYTES)  # the group gives it the partition still, or again
    async with zombie.unit():
        await zombie.commit(copied(again))
    assert await two.wait_for([RATINGS], {}, 30)
    assert await everything(two, RATINGS) == [(b"a", b"1")]


async def test_a_rebalance_waits_for_the_unit_in_hand(open_kafka: OpenKafka) -> None:
    one, two = await open_kafka(), await open_kafka()
    await one.append([message(CHANGES, "a", "1", partition) for partition in range(4)])
    first, second = one.consumer("g", [CHANGES]), two.consumer("g", [CHANGES])
    batch = await first.poll(10, BYTES)
    async with first.unit():
        polling = asyncio.create_task(second.poll(10, BYTES))
        await asyncio.sleep(1.5)  # the rebalance has begun
        assert not second.assigned
        await first.commit(copied(batch))
    theirs = await polling
    assert (theirs.topic, theirs.partition) != (batch.topic, batch.partition)
    assert len(await everything(one, RATINGS)) == 1


async def test_a_unit_that_a_rebalance_has_overtaken_is_refused(
    open_kafka: OpenKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "REVOCATION_S", 0.1)
    one, two = await open_kafka(), await open_kafka()
    await one.append([message(CHANGES, "a", "1", partition) for partition in range(4)])
    first = one.consumer("g", [CHANGES])
    batches: dict[int, Batch] = {}
    while len(batches) < 4:
        batch = await first.poll(10, BYTES)
        batches[batch.partition] = batch
    second = two.consumer("g", [CHANGES])
    polling = asyncio.create_task(second.poll(10, BYTES))
    async with first.unit():
        await polling
        gone = next(batch for batch in batches.values() if (CHANGES, batch.partition) not in first.assigned)
        with pytest.raises(PartitionLostError):
            await first.commit(copied(gone))
    assert await everything(one, RATINGS) == []


async def test_a_broker_that_is_killed_and_comes_back_costs_nothing(open_kafka: OpenKafka, kafka_engine: Kafka) -> None:
    log, lost = await open_kafka(), list[str]()
    async with at_work(log, lost):
        appending = asyncio.create_task(append_steadily(log, 600))
        await asyncio.sleep(1)
        kafka_engine.kill()
        await asyncio.to_thread(kafka_engine.start)
        await appending
        await passed_the_end(log, "g", CHANGES)
    rows = await everything(log, RATINGS)
    # An append that was not acknowledged is repeated: the input may hold it twice, and the copy what the input holds.
    assert Counter(rows) == Counter(await everything(log, CHANGES))
    assert {int(value or b"") for _, value in rows} == set(range(600))


async def test_ends_of_transactions_are_no_inputs_and_no_lag(open_kafka: OpenKafka) -> None:
    log = await open_kafka()
    await log.append([message(CHANGES, str(n), "v") for n in range(40)])
    first, second = log.consumer("g", [CHANGES]), log.consumer("h", [RATINGS])

    async def run(member: KafkaConsumer, group: str, topic: str) -> None:
        while True:
            batch = await member.poll(7, BYTES)
            assert batch.gone == 0
            async with member.unit():
                await member.commit(copied(batch, group, topic))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(first, "g", RATINGS)), group.create_task(run(second, "h", PROFILES))]
        await passed_the_end(log, "g", CHANGES)
        await passed_the_end(log, "h", RATINGS)
        for task in tasks:
            task.cancel()
    assert sum(await log.end(RATINGS)) > 40
    assert await log.tallies("g") == await log.tallies("h") == (40, Tally(applied=40))


async def test_what_is_written_and_not_decided_yet_is_below_the_end_and_cannot_be_read(
    open_kafka: OpenKafka,
) -> None:
    log = await open_kafka()
    producer = log.new_producer(log.named("undecided"))
    await producer.start()
    await producer.begin_transaction()
    await log.sent(producer, [(message(RATINGS, "k", "v"), 0, [])])
    assert (await log.end(RATINGS))[0] == 1
    assert await log.read(RATINGS, 0, 0) == []
    end = (await log.end(RATINGS))[0]
    await producer.commit_transaction()
    assert await log.wait_for([RATINGS], {(RATINGS, 0): end}, 20)  # as who had seen nothing beyond the end
    assert len(await log.read(RATINGS, 0, 0)) == 1
    await producer.stop()


async def test_the_loop_of_processors_runs_on_kafka_and_gives_poison_up(open_kafka: OpenKafka) -> None:
    log = await open_kafka()
    saved: list[Progress] = []

    class Memory:
        async def load(self, batch: object) -> None: ...

        async def save(self, state: None, progress: Progress) -> None:
            saved.append(progress)

    def decide(_state: None, record: Any) -> Decision:
        if record.value == b"13":
            raise ZeroDivisionError
        return APPLIED._replace(outputs=[Message(RATINGS, record.key, record.value, "test", record.timestamp_ms)])

    loop = ProcessorLoop(Processor("p", (CHANGES,), Memory(), decide), log)
    task = asyncio.create_task(loop.run())
    await log.append([message(CHANGES, str(n), str(n)) for n in range(30)])
    await passed_the_end(log, "p", CHANGES)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert sorted(int(value or b"") for _, value in await everything(log, RATINGS)) == [n for n in range(30) if n != 13]
    assert len(await everything(log, DEAD_LETTERS)) == 1
    assert await log.tallies("p") == (30, Tally(applied=29, dead_lettered=1))


async def test_what_another_process_appends_or_commits_is_noticed(open_kafka: OpenKafka) -> None:
    one, two = await open_kafka(), await open_kafka()
    waiting = asyncio.create_task(two.wait_for([CHANGES], {}, 30))
    position = await one.append([message(CHANGES, "a", "1")])
    assert await waiting
    passing = asyncio.create_task(two.wait_committed(["g"], position, 30))
    member = one.consumer("g", [CHANGES])
    batch = await member.poll(10, BYTES)
    async with member.unit():
        await member.commit(copied(batch))
    assert await passing


async def test_topics_are_made_as_they_are_specified_and_changes_are_never_compacted(open_kafka: OpenKafka) -> None:
    log = await open_kafka()
    names = (CHANGES, PROFILES, TOUCHED)
    asked = [ConfigResource(ConfigResourceType.TOPIC, log.named(name)) for name in names]
    configs = {}
    for answer in await log._admin.describe_configs(asked):
        for _code, _words, _kind, name, entries in answer.resources:
            configs[log.unnamed(name)] = {entry[0]: entry[1] for entry in entries}
    policies = {name: (config["cleanup.policy"], config["retention.ms"]) for name, config in configs.items()}
    assert policies[CHANGES] == ("delete", "-1")
    assert policies[PROFILES][0] == "compact"
    assert policies[TOUCHED] == ("delete", str(topics.DAY_MS))
    assert log.partitions(topics.ERASURES) == 1
    await log.create_topics([TopicSpec(PROFILES, Cleanup.COMPACT, partitions=9)])
    assert log.partitions(PROFILES) == 4  # what is there stays
    with pytest.raises(InvalidInputError, match="does not make"):
        await log.create_topics([TopicSpec("no such name!", Cleanup.KEEP)])


async def test_what_cannot_be_appended_is_refused_before_anything_is(open_kafka: OpenKafka) -> None:
    log = await open_kafka()
    for bad in (message(CHANGES, "a", "1", 99), message(CHANGES, "a", "1")._replace(timestamp_ms=1 << 60)):
        with pytest.raises(InvalidInputError):
            await log.append([message(CHANGES, "a", "1"), bad])
    assert await everything(log, CHANGES) == []
    await log.append([Message(CHANGES, b"k", b"x" * (17 << 20), "test", 1)])
    assert len(await everything(log, CHANGES)) == 1
    member = log.consumer("g", [CHANGES])
    assert len((await member.poll(10, BYTES)).records[0].value or b"") == 17 << 20
    with pytest.raises(InvalidInputError, match="longer"):
        await log.append([Message(CHANGES, b"k", b"x" * (32 << 20), "test", 1)])


@pytest.mark.parametrize("records", [3, 500])  # sent one by one, and in batches
async def test_appends_at_the_same_time_keep_the_order_of_each_and_tell_where_they_end(
    open_kafka: OpenKafka, records: int
) -> None:
    log = await open_kafka()
    value = b"v" * 2048

    async def append(number: int) -> list[int]:
        reached = []
        for start in range(0, 2 * records, records):
            messages = [
                Message(RATINGS, f"{number}".encode(), b"%d %s" % (n, value), "test", n, partition=n % 2)
                for n in range(start, start + records)
            ]
            position = await log.append(messages)
            reached += [place.offset for place in position.offsets if place.partition == 0]
        return reached

    reached = await asyncio.gather(*(append(number) for number in range(4)))
    for partition in range(2):
        found = defaultdict(list)
        offset = 0
        while read := await log.read(RATINGS, partition, offset):
            for record in read:
                found[record.key].append(record)
            offset = read[-1].offset + 1
        for number in range(4):
            mine = found[f"{number}".encode()]
            assert [each.timestamp_ms for each in mine] == list(range(partition, 2 * records, 2))
            if partition == 0:
                assert reached[number] == [mine[len(mine) // 2 - 1 + records % 2].offset + 1, mine[-1].offset + 1]


async def test_of_many_records_with_one_that_is_too_long_none_of_its_partition_is_appended(
    open_kafka: OpenKafka,
) -> None:
    log = await open_kafka()
    messages = [Message(RATINGS, b"k", b"v", "test", 1, partition=0) for _ in range(100)]
    with pytest.raises(InvalidInputError, match="longer"):
        await log.append([*messages, messages[0]._replace(value=b"v" * (64 << 20))])
    assert (await log.end(RATINGS))[0] == 0
    await log.append(messages)
    assert (await log.end(RATINGS))[0] == 100
