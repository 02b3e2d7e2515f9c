"""The conversations in MongoDB: what they hold, whatever is interrupted and repeated, is what SQLite's would hold."""

import asyncio
import itertools
import random
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings as hypothesis_settings, strategies as st

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import Message, PartitionLostError, Progress, Record, Tally, key_of, message_of
from services.kernel.mongo_ledger import MongoLedger
from services.kernel.mongodb import Mongo, MongoSettings
from services.kernel.processor import Processor, ProcessorLoop
from services.kernel.service import Peers, Platform
from services.kernel.settings import Settings
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS
from services.rag_gateway.conversations import ERASURE_GROUP, TURNS_GROUP, Erased, decide_erasure, decide_turn
from services.rag_gateway.mongo_store import PLANS, TURNS, MongoErasures, MongoTurns
from services.rag_gateway.sqlite_store import SqliteErasures, SqliteTurns
from tests.engines.mongo import MongoServer

pytestmark = [pytest.mark.slow, pytest.mark.engine]
PEOPLE = ("p1", "p2", "p3")
NOTHING = Tally()
Work = Callable[[Sequence[Record]], Awaitable[object]]


class World(NamedTuple):
    """A log, and the conversations in a database of its own."""

    log: SqliteLog
    database: Database
    mongo: Mongo

    @property
    def turns(self) -> MongoTurns:
        """A worker that knows nothing of what others do."""
        return MongoTurns(self.mongo, MongoLedger(self.mongo, "gateway"))

    @property
    def erasures(self) -> MongoErasures:
        return MongoErasures(self.mongo, MongoLedger(self.mongo, "gateway"), self.log, lambda: 9.0)

    async def records(self, topic: str) -> list[list[Record]]:
        return [await self.log.read(topic, p, 0) for p in range(self.log.partitions(topic))]

    async def take(self, batch: Sequence[Record]) -> None:
        """A batch of turns: loaded, decided and saved."""
        store = self.turns
        state = await store.load(batch)
        for record in batch:
            decide_turn(state, record)
        await store.save(state, progress(TURNS_GROUP, batch))

    async def erase(self, batch: Sequence[Record]) -> list[Erased]:
        store = self.erasures
        state = await store.load(batch)
        outputs = [output for record in batch for output in decide_erasure(state, record).outputs]
        await store.save(state, progress(ERASURE_GROUP, batch, outputs))
        return list(state.done.values())

    async def hash(self) -> str:
        return await self.turns.state_hash(None)


def progress(group: str, batch: Sequence[Record], outputs: Sequence[Message] = ()) -> Progress:
    first, last = batch[0], batch[-1]
    return Progress(group, first.topic, first.partition, first.offset, last.offset + 1, outputs, NOTHING)


@asynccontextmanager
async def world(server: MongoServer) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        mongo = Mongo(MongoSettings(server.uri, f"gateway_{uuid.uuid4().hex}"))
        try:
            log = SqliteLog(database)
            await log.create_topics(TOPICS)
            made = World(log, database, mongo)
            await made.turns.start()
            yield made
        finally:
            await mongo.close()
            database.close()


def turn(
    answer_id: str, conversation_id: str, profile_id: str = "", asked_as: str = "", reference: str = ""
) -> Message:
    event = events_pb2.TurnCompleted(
        tenant="default", answer_id=answer_id, conversation_id=conversation_id, profile_id=profile_id,
        asked_as=asked_as, question="Where to?", answer="There.",
    )  # fmt: skip
    if reference:
        event.context.parts.add(reference=reference)
    event.asked_at.FromMilliseconds(1_000 + len(answer_id))
    return message_of(topics.CONVERSATIONS, key_of("", conversation_id), event, 1_000)


def erasure(*profile_ids: str) -> Message:
    event = common_pb2.ErasureRequested(erasure_id="-".join(profile_ids), tenant="default", profile_ids=profile_ids)
    return message_of(topics.ERASURES, event.erasure_id.encode(), event, 2_000)


TURNS_SAID = [
    turn(f"a{number}", f"c{number % 4}", profile, asked_as, reference)
    for number, (profile, asked_as, reference) in enumerate(
        itertools.product(["", *PEOPLE], ["", "email:A@x", "email:b@x"], ["", PEOPLE[0]])
    )
]
messages = st.lists(
    st.one_of(st.sampled_from(TURNS_SAID), st.sampled_from(TURNS_SAID), st.builds(erasure, st.sampled_from(PEOPLE))),
    max_size=25,
)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=messages, seed=st.integers(0, 1 << 16))
@example(  # the second erasure must not take the name of a turn that the first one has removed from the log
    said=[turn("a2", "c2", asked_as="email:A@x"), turn("a21", "c1", "p3", "email:A@x", "p1"), erasure("p1"),
          erasure("p3")],
    seed=0,
)  # fmt: skip
def test_any_batches_any_interruptions_and_repetitions_give_the_state_of_the_embedded_store(
    mongo_engine: MongoServer, said: list[Message], seed: int
) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        async with world(mongo_engine) as w:
            await w.log.append(said)
            await embedded(w)
            todo: list[tuple[Work, list[Record]]] = [(w.take, each) for each in await w.records(topics.CONVERSATIONS)]
            todo += [(w.erase, each) for each in await w.records(topics.ERASURES)]
            while todo := [(work, records) for work, records in todo if records]:
                index = chance.randrange(len(todo))
                work, records = todo[index]
                batch, rest = records[: (size := chance.randint(1, 4))], records[size:]
                if chance.random() < 0.3:  # it is cut off before it is done
                    await (w.turns if work == w.take else w.erasures).load(batch)
                    continue
                await work(batch)
                if chance.random() < 0.3:  # somebody else does it again
                    with pytest.raises(PartitionLostError):
                        await work(batch)
                todo[index] = (work, rest)
            platform = Platform(w.log, w.database, Settings(), lambda: 9.0, Peers(str))
            assert await w.hash() == await SqliteTurns(platform.database).state_hash(w.database.reader)
            assert await w.mongo.find(PLANS, {}) == []
            before = await w.hash()
            await w.turns.reset()
            assert await w.mongo.find(TURNS, {"gone": None}) == []
            for records in await w.records(topics.CONVERSATIONS):
                if records:
                    await w.take(records)
            assert await w.hash() == before

    asyncio.run(scenario())


async def embedded(w: World) -> None:
    """The same log into the embedded store."""
    platform = Platform(w.log, w.database, Settings(), lambda: 9.0, Peers(str))
    processors: tuple[Processor[Any], ...] = (
        Processor(TURNS_GROUP, (topics.CONVERSATIONS,), SqliteTurns(w.database), decide_turn),
        Processor(ERASURE_GROUP, (topics.ERASURES,), SqliteErasures(platform), decide_erasure),
    )
    for processor in processors:
        consumer = w.log.consumer(processor.name, processor.topics)
        loop = ProcessorLoop(processor, w.log)
        while await w.log.lag(processor.name, processor.topics):
            await loop._handle(consumer, await consumer.poll(1000, 1 << 20))
        await consumer.close()


async def test_an_erasure_that_is_cut_off_is_acknowledged_in_full(mongo_engine: MongoServer) -> None:
    async with world(mongo_engine) as w:
        await w.log.append([turn("a1", "c1", "p1"), turn("a2", "c1", "p2"), turn("a3", "c3", "p1"), erasure("p1")])
        for records in await w.records(topics.CONVERSATIONS):
            if records:
                await w.take(records)
        (requests,) = await w.records(topics.ERASURES)
        await w.erasures.load(requests)  # everything is removed, and nothing of it acknowledged
        (done,) = await w.erase(requests)
        assert done.related == ("a1", "a3", "c3")
        assert (done.removed, done.remaining) == ({"turns": 2}, {"turns": 0})
        assert [each.answer_id for each in await w.turns.turns("", "c1")] == ["a2"]


async def test_an_erased_turn_does_not_come_back_by_a_worker_that_was_paused(mongo_engine: MongoServer) -> None:
    async with world(mongo_engine) as w:
        await w.log.append([turn("a1", "c1", "p1", asked_as="email:a@x"), erasure("p1")])
        (batch,) = [records for records in await w.records(topics.CONVERSATIONS) if records]
        paused = w.turns
        state = await paused.load(batch)
        decide_turn(state, batch[0])
        (requests,) = await w.records(topics.ERASURES)
        (done,) = await w.erase(requests)
        assert done.related == ("a1", "c1")  # found in the log, for it was not stored yet
        assert done.removed == {"turns": 0}
        await paused.save(state, progress(TURNS_GROUP, batch))
        assert await w.turns.turns("", "c1") == []
        (left,) = await w.mongo.find(TURNS, {})
        assert set(left) == {"_id", "gone"}  # nothing that could be read


async def test_an_erasure_reaches_the_turns_that_an_emptied_store_lacks(mongo_engine: MongoServer) -> None:
    async with world(mongo_engine) as w:
        await w.log.append([turn("a1", "c1", "p1"), erasure("p1")])
        await embedded(w)  # the group has passed the turn
        (requests,) = await w.records(topics.ERASURES)
        (done,) = await w.erase(requests)
        assert done.related == ("a1", "c1")
        (batch,) = [records for records in await w.records(topics.CONVERSATIONS) if records]
        await w.take(batch)
        assert await w.turns.turns("", "c1") == []
