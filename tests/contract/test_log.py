"""What every adapter of the log promises."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from services.kernel import sqlite_retention
from services.kernel.errors import InvalidInputError
from services.kernel.log import (
    Log,
    Message,
    PartitionLostError,
    Progress,
    Tally,
    decode_token,
    encode_token,
    key_of,
    partition_of,
    position_of,
)  # fmt: skip
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention
from services.kernel.topics import CHANGES, DOCUMENTS, PROFILES, RATINGS, TOPICS, Cleanup, TopicSpec


def message(topic: str, key: str, value: str | None, partition: int | None = None) -> Message:
    return Message(topic, key.encode(), value.encode() if value is not None else None, "test", 1_000, partition)


@pytest.fixture
def retention(log: SqliteLog, database: Database) -> Retention:
    return Retention(log, database)


async def everything(log: Log, topic: str) -> list[tuple[int, int, bytes | None, bytes | None]]:
    return [
        (record.partition, record.offset, record.key, record.value)
        for partition in range(log.partitions(topic))
        for record in await log.read(topic, partition, 0, max_records=10_000)
    ]


def progress(group: str, topic: str, partition: int, offset: int, outputs: list[Message] | None = None) -> Progress:
    return Progress(group, topic, partition, 0, offset, outputs or [], Tally(applied=offset))


async def test_records_of_one_key_stay_in_order_in_one_partition(any_log: Log) -> None:
    await any_log.append([message(CHANGES, f"k{n % 7}", str(n)) for n in range(100)])
    seen = await everything(any_log, CHANGES)
    for key in {row[2] for row in seen}:
        rows = [row for row in seen if row[2] == key]
        assert len({row[0] for row in rows}) == 1
        assert [int(row[3] or b"") for row in rows] == sorted(int(row[3] or b"") for row in rows)


async def test_offsets_have_no_gaps_and_the_position_follows_the_last(any_log: Log) -> None:
    position = await any_log.append([message(CHANGES, str(n), "v") for n in range(50)])
    for place in position.offsets:
        records = await any_log.read(CHANGES, place.partition, 0, max_records=100)
        assert [record.offset for record in records] == list(range(place.offset))


async def test_an_append_that_fails_leaves_nothing(any_log: Log) -> None:
    with pytest.raises(InvalidInputError, match="no topic 'nowhere'"):
        await any_log.append([message(CHANGES, "a", "1"), message("nowhere", "a", "1")])
    assert await everything(any_log, CHANGES) == []
    await any_log.append([message(CHANGES, "a", "2")])
    assert [row[1:] for row in await everything(any_log, CHANGES)] == [(0, b"a", b"2")]


async def test_an_open_unit_is_invisible_until_it_commits(database: Database, log: SqliteLog) -> None:
    async with database.transaction() as unit:
        unit.emit([message(CHANGES, "a", "1")])
        assert await everything(log, CHANGES) == []
        assert sum(await log.end(CHANGES)) == 0
    assert len(await everything(log, CHANGES)) == 1


async def test_what_was_acknowledged_is_there_after_reopening(tmp_path: Path) -> None:
    database = Database(tmp_path)
    log = SqliteLog(database)
    await log.create_topics(TOPICS)
    await log.append([message(CHANGES, "a", "1")])
    consumer = log.consumer("g", [CHANGES])
    batch = await consumer.poll(10, 1 << 20)
    async with consumer.unit():
        await consumer.commit(progress("g", batch.topic, batch.partition, batch.next_offset))
    database.close()
    database = Database(tmp_path)
    log = SqliteLog(database)
    assert [row[3] for row in await everything(log, CHANGES)] == [b"1"]
    assert await log.committed("g") == {(CHANGES, batch.partition): 1}
    database.close()


async def test_an_uncommitted_batch_is_delivered_again(any_log: Log) -> None:
    await any_log.append([message(CHANGES, "a", "1")])
    consumer = any_log.consumer("g", [CHANGES])
    first = await consumer.poll(10, 1 << 20)
    with pytest.raises(ZeroDivisionError):
        async with consumer.unit():
            await consumer.commit(progress("g", first.topic, first.partition, first.next_offset))
            raise ZeroDivisionError
    assert await consumer.poll(10, 1 << 20) == first


async def test_partitions_are_shared_and_move_when_members_come_and_go(log: SqliteLog) -> None:
    one = log.consumer("g", [CHANGES])
    await log.append([message(CHANGES, "x", "1", partition) for partition in range(4)])
    batches = [await one.poll(10, 1 << 20) for _ in range(4)]
    assert sorted(batch.partition for batch in batches) == [0, 1, 2, 3]
    two = log.consumer("g", [CHANGES])
    assert set(one.assigned) | set(two.assigned) == {(CHANGES, partition) for partition in range(4)}
    assert not set(one.assigned) & set(two.assigned)
    lost = next(batch for batch in batches if (CHANGES, batch.partition) not in one.assigned)
    with pytest.raises(PartitionLostError):
        async with one.unit():
            await one.commit(progress("g", CHANGES, lost.partition, lost.next_offset))
    await two.close()
    assert len(one.assigned) == 4
    assert (await one.poll(10, 1 << 20)).records


async def test_groups_are_independent(any_log: Log) -> None:
    await any_log.append([message(CHANGES, "a", "1")])
    for group in ("g", "h"):
        assert len((await any_log.consumer(group, [CHANGES]).poll(10, 1 << 20)).records) == 1


async def test_poll_waits_for_an_append_and_respects_its_bounds(any_log: Log) -> None:
    consumer = any_log.consumer("g", [CHANGES])
    polling = asyncio.create_task(consumer.poll(3, 1 << 20))
    await asyncio.sleep(0)
    await any_log.append([message(CHANGES, "a", "x" * 100) for _ in range(10)])
    assert len((await polling).records) == 3
    assert len((await consumer.poll(10, 150)).records) == 2


async def test_waiting_for_a_position_ends_when_it_is_reached(any_log: Log) -> None:
    consumer = any_log.consumer("g", [CHANGES])
    position = await any_log.append([message(CHANGES, "a", "1")])
    assert not await any_log.wait_committed(["g"], position, 0.01)
    waiting = asyncio.create_task(any_log.wait_committed(["g"], position, 10))
    batch = await consumer.poll(10, 1 << 20)
    async with consumer.unit():
        await consumer.commit(progress("g", batch.topic, batch.partition, batch.next_offset))
    assert await waiting


async def test_a_record_is_read_as_it_was_appended(any_log: Log) -> None:
    headers = {"traceparent": "00-ü", "empty": ""}
    sent = Message(RATINGS, b"t\x1fk\xff", b"\x00v", "a.b.C", 1_763_000_000_123, 2, "id-1", headers)
    await any_log.append([sent, sent._replace(value=None, event_id="id-2", headers={})])
    first, second = await any_log.read(RATINGS, 2, 0)
    assert first[3:] == (sent.key, sent.value, sent.type, sent.event_id, sent.timestamp_ms, sent.headers)
    assert (second.key, second.value, second.event_id, dict(second.headers)) == (sent.key, None, "id-2", {})


async def test_reading_goes_on_from_any_offset_within_its_bounds(any_log: Log) -> None:
    await any_log.append([message(CHANGES, "k", str(n) * 10, 1) for n in range(10)])
    assert [r.offset for r in await any_log.read(CHANGES, 1, 4, max_records=3)] == [4, 5, 6]
    assert [r.offset for r in await any_log.read(CHANGES, 1, 7)] == [7, 8, 9]
    assert [r.offset for r in await any_log.read(CHANGES, 1, 2, max_bytes=15)] == [2, 3]
    assert await any_log.read(CHANGES, 1, 10) == []
    assert (await any_log.end(CHANGES))[1] == 10


async def test_waiting_for_records_ends_when_there_are_some(any_log: Log) -> None:
    assert not await any_log.wait_for([CHANGES], {}, 0.01)
    waiting = asyncio.create_task(any_log.wait_for([CHANGES], {}, 30))
    await asyncio.sleep(0)
    await any_log.append([message(CHANGES, "a", "1", 0)])
    assert await waiting
    assert not await any_log.wait_for([CHANGES], {(CHANGES, 0): 1}, 0.01)


async def test_outputs_and_offset_become_lasting_together(any_log: Log) -> None:
    await any_log.append([message(CHANGES, "a", "1", 0)])
    consumer = any_log.consumer("g", [CHANGES])
    batch = await consumer.poll(10, 1 << 20)
    done = progress("g", CHANGES, 0, batch.next_offset, [message(PROFILES, "a", "out")])
    with pytest.raises(ZeroDivisionError):
        async with consumer.unit():
            await consumer.commit(done)
            raise ZeroDivisionError
    assert await everything(any_log, PROFILES) == []
    await consumer.poll(10, 1 << 20)
    async with consumer.unit():
        await consumer.commit(done)
        assert await any_log.committed("g") == {}
    assert await any_log.committed("g") == {(CHANGES, 0): 1}
    assert await any_log.wait_for([PROFILES], {}, 30)
    assert [row[3] for row in await everything(any_log, PROFILES)] == [b"out"]


async def test_compaction_keeps_the_newest_of_each_key_and_drops_old_tombstones(
    log: SqliteLog, retention: Retention
) -> None:
    await log.append([message(PROFILES, key, value) for key, value in
                      [("a", "1"), ("b", "1"), ("a", "2"), ("b", None), ("c", "1")]])  # fmt: skip
    before = {row[2]: row[3] for row in await everything(log, PROFILES)}
    assert await retention.clean(now_ms=0) == 0  # nothing is old enough yet
    assert await retention.clean(now_ms=1 << 62) == 3
    assert {row[2]: row[3] for row in await everything(log, PROFILES)} == {
        key: value for key, value in before.items() if value is not None
    }
    position = await log.append([message(PROFILES, "a", "3")])
    assert position.offsets[0].offset >= 3  # offsets are never used again


async def test_nothing_is_removed_that_a_group_has_not_passed(log: SqliteLog, retention: Retention) -> None:
    await log.append([message(PROFILES, "a", str(n)) for n in range(5)])
    place = partition_of(b"a", 4)
    consumer = log.consumer("g", [PROFILES])
    async with consumer.unit():
        await consumer.commit(progress("g", PROFILES, place, 2))
    await retention.clean(now_ms=1 << 62)
    assert [row[3] for row in await everything(log, PROFILES)] == [b"1", b"2", b"3", b"4"]


async def test_retention_by_time_and_by_size(log: SqliteLog, retention: Retention) -> None:
    await log.create_topics([
        TopicSpec("short", Cleanup.DELETE, partitions=1, retention_ms=1000),
        TopicSpec("small", Cleanup.DELETE, partitions=1, retention_bytes=30),
    ])  # fmt: skip
    for topic in ("short", "small"):
        await log.append([message(topic, "k", "x" * 9) for _ in range(10)])
    await retention.clean()
    assert len(await everything(log, "short")) == 10
    assert len(await everything(log, "small")) == 3
    await retention.clean(now_ms=1 << 62)
    assert await everything(log, "short") == []


async def test_a_consumer_goes_on_past_compacted_records(log: SqliteLog, retention: Retention) -> None:
    await log.append([message(PROFILES, "a", None)])
    await retention.clean(now_ms=1 << 62)
    batch = await log.consumer("g", [PROFILES]).poll(10, 1 << 20)
    assert (list(batch.records), batch.next_offset) == ([], 1)


async def test_erasing_removes_matching_records_from_every_topic(log: SqliteLog, retention: Retention) -> None:
    await log.append([message(CHANGES, "a", "1"), message(PROFILES, "a", "1"), message(RATINGS, "b", "1")])
    assert await retention.erase(lambda record: record.key == b"a", {DOCUMENTS}) == {CHANGES: 1, PROFILES: 1}
    assert await retention.erase(lambda record: record.key == b"a", set(), dry_run=True) == {}
    assert len(await everything(log, RATINGS)) == 1


@given(st.dictionaries(st.tuples(st.text(max_size=20), st.integers(0, 99)), st.integers(0, 1 << 60), max_size=8))
@settings(max_examples=50)
def test_position_tokens_round_trip(offsets: dict[tuple[str, int], int]) -> None:
    position = position_of(offsets)
    assert decode_token(encode_token(position)) == position


@given(st.text(max_size=60))
def test_a_bad_token_is_refused_or_decodes(text: str) -> None:
    try:
        decode_token(text)
    except InvalidInputError as error:
        assert "position token" in str(error)


def test_an_empty_tenant_is_the_default_one() -> None:
    assert key_of("", "a") == key_of("default", "a") != key_of("other", "a")


async def test_a_position_is_not_reached_while_the_group_has_no_member(any_log: Log) -> None:
    position = await any_log.append([message(CHANGES, "a", "1"), message(CHANGES, "a", "2")])
    consumer = any_log.consumer("g", [CHANGES])
    batch = await consumer.poll(1, 1 << 20)
    async with consumer.unit():
        await consumer.commit(progress("g", batch.topic, batch.partition, batch.next_offset))
    await consumer.close()
    assert not await any_log.wait_committed(["g"], position, 0)


async def test_a_position_is_not_reached_by_a_group_that_stood_before_the_end_when_the_log_was_closed(
    database: Database, log: SqliteLog
) -> None:
    position = await log.append([message(CHANGES, "a", "1"), message(CHANGES, "a", "2")])
    consumer = log.consumer("g", [CHANGES])
    batch = await consumer.poll(1, 1 << 20)
    async with consumer.unit():
        await consumer.commit(progress("g", batch.topic, batch.partition, batch.next_offset))
    assert not await SqliteLog(database).wait_committed(["g"], position, 0)


async def test_a_batch_that_another_member_did_meanwhile_is_refused(log: SqliteLog) -> None:
    await log.append([message(CHANGES, "a", "1", partition=1)])
    one = log.consumer("g", [CHANGES])
    mine = await one.poll(10, 1 << 20)
    two = log.consumer("g", [CHANGES])
    theirs = await two.poll(10, 1 << 20)
    assert mine == theirs
    async with two.unit():
        await two.commit(progress("g", CHANGES, 1, theirs.next_offset))
    await two.close()  # the partition is back
    with pytest.raises(PartitionLostError):
        async with one.unit():
            await one.commit(progress("g", CHANGES, 1, mine.next_offset))


async def test_what_a_group_has_not_begun_to_read_is_kept(log: SqliteLog, retention: Retention) -> None:
    await log.create_topics([TopicSpec("short", Cleanup.DELETE, partitions=1, retention_ms=1000)])
    await log.append([message("short", "k", "v")])
    log.consumer("g", ["short"])
    assert await retention.clean(now_ms=1 << 62) == 0


async def test_a_large_partition_is_cleaned_in_slices(
    log: SqliteLog, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_retention, "SLICE_RECORDS", 7)
    monkeypatch.setattr(sqlite_retention, "KEYS_PER_PASS", 10)
    await log.create_topics([TopicSpec("short", Cleanup.DELETE, partitions=1, retention_ms=1000)])
    await log.append([message("short", "k", "v") for _ in range(50)])
    await log.append([message(PROFILES, f"k{n % 5}", str(n), 0) for n in range(50)])
    assert await retention.clean(now_ms=1 << 62) == 50 + 45
    await log.append([message(PROFILES, f"k{n % 5}", str(n), 0) for n in range(50, 60)])
    assert await retention.clean(now_ms=1 << 62) == 10
    assert sorted(row[3] or b"" for row in await everything(log, PROFILES)) == [b"55", b"56", b"57", b"58", b"59"]


async def test_who_waits_for_the_log_to_open_does_not_slip_in_when_it_closes_again(log: SqliteLog) -> None:
    async with log.standing_still():
        appending = asyncio.create_task(log.append([message(CHANGES, "a", "1")]))
        await asyncio.sleep(0.01)
    async with log.standing_still():
        before = await everything(log, CHANGES)
        for _ in range(20):
            await asyncio.sleep(0)
        assert await everything(log, CHANGES) == before
    await appending


async def test_groups_stay_muted_when_the_process_ends(database: Database, log: SqliteLog) -> None:
    async with log.rebuilding(["g"], [RATINGS]):
        pass
    again = SqliteLog(database)
    assert again.is_muted("g")
    waiting = asyncio.create_task(again.append([message(CHANGES, "a", "1")]))
    async with database.transaction() as unit:
        outputs = [message(PROFILES, "a", "1"), message(RATINGS, "a", "1")]
        again.advance(unit, progress("g", CHANGES, 0, 1, outputs))
    assert (sum(await again.end(PROFILES)), sum(await again.end(RATINGS))) == (0, 1)
    assert not waiting.done()
    await again.rebuilt(["g"])
    await waiting
    assert not SqliteLog(database).is_muted("g")
