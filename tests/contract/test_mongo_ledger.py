"""The ledger in MongoDB: a batch has happened or it has not, whoever is cut off, paused or late."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.kernel.errors import UnavailableError
from services.kernel.freshness import Sighting, Sightings
from services.kernel.log import Message, PartitionLostError, Progress, Tally
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, MongoSettings
from tests.engines.mongo import MongoServer

pytestmark = [pytest.mark.slow, pytest.mark.engine]

OUT = Message("out", b"k\xff", b"v", "t", 5, None, "id-1", {"traceparent": "x"})


@pytest.fixture
async def mongo(mongo_engine: MongoServer) -> AsyncIterator[Mongo]:
    mongo = Mongo(MongoSettings(mongo_engine.uri, f"t{uuid.uuid4().hex}"))
    await mongo.start()
    yield mongo
    await mongo.close()


async def ledger_of(mongo: Mongo) -> MongoLedger:
    ledger = MongoLedger(mongo, "test", ["things"])
    await ledger.start()
    return ledger


def batch(start: int, end: int, topic: str = "in", outputs: tuple[Message, ...] = (OUT,)) -> Progress:
    return Progress("g", topic, 0, start, end, list(outputs), Tally(end - start))


async def things(mongo: Mongo) -> dict[str, Any]:
    return {each["_id"]: each["n"] for each in await mongo.find("things", PRESENT)}


async def test_a_batch_is_kept_with_its_outputs_and_its_writes(mongo: Mongo) -> None:
    ledger = await ledger_of(mongo)
    assert await ledger.pending("g", "in", 0) is None
    head = await ledger.head("g", 0)
    await ledger.save(head, batch(0, 10), [Write("things", "a", {"n": 1}), Write("things", "b", {"n": 2})])
    await ledger.save(await ledger.head("g", 0), batch(10, 12, outputs=()), [Write("things", "a", None)])
    other = await ledger_of(mongo)
    assert await other.pending("g", "in", 0) == batch(10, 12, outputs=())
    assert await things(mongo) == {"b": 2}
    head = await other.head("g", 0)
    await other.save(head, batch(0, 3, "more"), [Write("things", "a", {"n": 3})])
    assert await other.pending("g", "in", 0) == batch(10, 12, outputs=())
    assert await other.pending("g", "more", 0) == batch(0, 3, "more")
    assert await things(mongo) == {"a": 3, "b": 2}


async def test_a_batch_that_does_not_follow_changes_nothing(mongo: Mongo) -> None:
    one, two = await ledger_of(mongo), await ledger_of(mongo)
    stale = await one.head("g", 0)
    await two.save(await two.head("g", 0), batch(0, 10), [Write("things", "a", {"n": 1})])
    for head, progress in (
        (stale, batch(0, 5)),
        (await two.head("g", 0), batch(0, 5)),
        (await two.head("g", 0), batch(11, 12)),
    ):
        with pytest.raises(PartitionLostError):
            await one.save(head, progress, [Write("things", "a", {"n": 7}), Write("things", "z", {"n": 7})])
    assert await things(mongo) == {"a": 1}
    assert await one.pending("g", "in", 0) == batch(0, 10)


async def test_two_topics_fence_one_another(mongo: Mongo) -> None:
    one, two = await ledger_of(mongo), await ledger_of(mongo)
    stale = await one.head("g", 0)
    await two.save(await two.head("g", 0), batch(0, 1, "other"), [Write("things", "a", {"n": 1})])
    with pytest.raises(PartitionLostError):
        await one.save(stale, batch(0, 1), [Write("things", "a", {"n": 2})])
    assert await things(mongo) == {"a": 1}


async def test_writes_that_were_cut_off_are_carried_out_by_whoever_comes_next(mongo: Mongo) -> None:
    class CutOff(Mongo):
        async def write(self, name: str, operations: Any) -> None:
            if name == "things":
                await super().write(name, operations[:1])
                raise UnavailableError("cut off")
            await super().write(name, operations)

    broken = CutOff.__new__(CutOff)
    broken.__dict__.update(mongo.__dict__)
    ledger = MongoLedger(broken, "test", ["things"])
    writes = [Write("things", str(n), {"n": n}) for n in range(20)]
    with pytest.raises(UnavailableError):
        await ledger.save(await ledger.head("g", 0), batch(0, 20), writes)
    assert len(await things(mongo)) == 1
    again = await ledger_of(mongo)
    assert await again.pending("g", "in", 0) == batch(0, 20)
    assert await things(mongo) == {str(n): n for n in range(20)}


async def test_large_batches_are_kept_in_pieces(mongo: Mongo) -> None:
    ledger = await ledger_of(mongo)
    large = OUT._replace(value=b"x" * (9 << 20))
    for turn in range(2):
        writes = [Write("things", str(n), {"n": n, "text": f"{turn}" * (5 << 20)}) for n in range(4)]
        await ledger.save(await ledger.head("g", 0), batch(turn, turn + 1, outputs=(large,)), writes)
    assert await (await ledger_of(mongo)).pending("g", "in", 0) == batch(1, 2, outputs=(large,))
    assert not [each for each in await mongo.find("test_journal", {}, ["at"]) if "at" in each]  # what happened stays
    assert await things(mongo) == {str(n): n for n in range(4)}
    await ledger.save(await ledger.head("g", 0), batch(2, 3), [])
    assert await mongo.find("test_journal", {}) == []


async def test_a_store_may_begin_where_the_group_stands(mongo: Mongo) -> None:
    ledger, other = await ledger_of(mongo), await ledger_of(mongo)
    await ledger.save(await ledger.head("g", 0), batch(0, 3), [])
    await asyncio.gather(
        *(each.start_at("g", {("in", 0): 7, ("in", 1): 7, ("more", 0): 7}) for each in (ledger, other))
    )
    assert await ledger.reached("g") == {("in", 0): 3, ("in", 1): 7, ("more", 0): 7}
    assert await other.pending("g", "in", 1) == batch(7, 7, outputs=())._replace(partition=1)
    await other.save(await other.head("g", 1), batch(7, 8)._replace(partition=1), [])


async def test_an_amendment_waits_for_what_came_before_to_be_published_and_leaves_nothing_of_it(mongo: Mongo) -> None:
    ledger, other = await ledger_of(mongo), await ledger_of(mongo)
    secret = OUT._replace(value=b"secret" * (1 << 20))
    await ledger.save(await ledger.head("g", 0), batch(0, 5, outputs=(secret,)), [Write("things", "a", {"n": 1})])
    late = await ledger.head("g", 0)
    reached = {("in", 0): 4}

    async def published() -> dict[tuple[str, int], int]:
        reached["in", 0] += 1  # it is, when it is looked at the second time
        return {("in", 0): reached["in", 0] - 1}

    async def gone() -> list[Write]:
        return [Write("things", name, None) for name in await things(mongo)]

    await other.amend("g", 0, gone, published)
    assert reached == {("in", 0): 6}
    assert await things(mongo) == {}
    with pytest.raises(PartitionLostError):
        await ledger.save(late, batch(5, 6), [Write("things", "a", {"n": 2})])
    assert await ledger.pending("g", "in", 0) == batch(0, 5, outputs=())
    assert await mongo.find("test_journal", {}) == []


async def test_sightings_of_all_partitions_are_told_together(mongo: Mongo) -> None:
    ledger = await ledger_of(mongo)
    for partition, at in ((0, 5), (1, 9)):
        sightings = Sightings()
        sightings.note("", "crm", at, f"p{at}")
        sightings.note("acme", "crm", 100, "other")
        sightings.note_heartbeat("", "web", at)
        progress = batch(0, 1)._replace(partition=partition)
        await ledger.save(await ledger.head("g", partition), progress, [], sightings)
    assert await ledger.sightings("") == {"crm": Sighting(9, 0, "p9"), "web": Sighting(0, 9, "")}


async def test_a_reset_takes_away_what_was_written_and_no_more(mongo: Mongo) -> None:
    ledger, other = await ledger_of(mongo), await ledger_of(mongo)
    await ledger.save(await ledger.head("g", 0), batch(0, 1), [Write("things", "a", {"n": 1})])
    await ledger.save(await ledger.head("h", 0), batch(0, 1)._replace(group="h"), [Write("things", "h", {"n": 1})])
    late = await other.head("g", 0)
    await ledger.reset(["g"])
    assert await things(mongo) == {"h": 1}
    assert await ledger.pending("g", "in", 0) is None
    with pytest.raises(PartitionLostError):
        await other.save(late, batch(1, 2), [Write("things", "a", {"n": 2})])
    await other.save(await other.head("g", 0), batch(0, 1), [Write("things", "a", {"n": 3})])
    assert await things(mongo) == {"a": 3, "h": 1}


@pytest.mark.parametrize("seed", range(5))
async def test_workers_that_are_cut_off_paused_and_late_come_to_what_one_alone_comes_to(
    mongo: Mongo, seed: int
) -> None:
    """Several workers take the same batches; each may stop at any of its requests, or go on much later."""
    chance = random.Random(seed)
    inputs = [(str(chance.randrange(6)), chance.choice([None, 1, 2, 3])) for _ in range(60)]

    class Shaky(Mongo):
        async def write(self, name: str, operations: Any) -> None:
            await asyncio.sleep(chance.choice([0, 0, 0.01, 0.05]))
            if chance.random() < 0.15:
                await super().write(name, operations[: chance.randrange(len(operations))])
                raise UnavailableError("cut off")
            await super().write(name, operations)

    async def work() -> None:
        shaky = Shaky.__new__(Shaky)
        shaky.__dict__.update(mongo.__dict__)
        ledger = MongoLedger(shaky, "test", ["things"])
        while True:
            try:
                if chance.random() < 0.2:
                    await ledger.pending("g", "in", 0)
                head = await ledger.head("g", 0)
                start = head.next_of("in")
                if start == len(inputs):
                    return
                end = min(len(inputs), start + chance.randint(1, 5))
                known = {each["_id"]: each["n"] for each in await mongo.find("things", PRESENT)}
                for key, add in inputs[start:end]:
                    known[key] = None if add is None else (known.get(key) or 0) + add
                touched = {key for key, _ in inputs[start:end]}
                writes = [Write("things", k, None if known[k] is None else {"n": known[k]}) for k in sorted(touched)]
                await asyncio.sleep(chance.choice([0, 0, 0.02]))
                await ledger.save(head, batch(start, end), writes)
            except (PartitionLostError, UnavailableError):
                continue

    await (await ledger_of(mongo)).start()
    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(4)))
    expected: dict[str, int] = {}
    for key, add in inputs:
        if add is None:
            expected.pop(key, None)
        else:
            expected[key] = expected.get(key, 0) + add
    await (await ledger_of(mongo)).pending("g", "in", 0)
    assert await things(mongo) == expected
