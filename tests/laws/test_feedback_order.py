"""Feedback, laws 1 to 4: whatever the order of arrival, repetitions and sizes of batches, the KPIs are the same."""

import asyncio
import contextlib
import itertools
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback import sqlite_kpis
from services.feedback.answers import Key
from services.feedback.app import ANSWERS, KPIS, processors
from services.feedback.classifier import Models
from services.feedback.erasure import Erased
from services.feedback.reconcile import KpiTable, differences, recomputed
from services.feedback.settings import Settings
from services.feedback.sqlite_jobs import SqliteJobs
from services.feedback.sqlite_kpis import SqliteObservations
from services.feedback.sqlite_store import SqliteAnswers
from services.kernel import topics
from services.kernel.erasure import KEPT
from services.kernel.hashing import state_hash
from services.kernel.log import Message, key_of, message_of
from services.kernel.processor import ProcessorLoop
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention
from services.kernel.topics import TOPICS

START_MS = 1_789_999_200_000  # an hour begins
SETTINGS = Settings.from_config(
    {
        "windows": ["60s", "3600s", "300s/60s", "session 120s", "session 600s"],
        "dimensions": [[], ["model"], ["conversation"]],
        "out_of_order_s": 0,
    }
)
TenantKpis = dict[tuple[str, str, int, int, str], list[float]]


@dataclass
class World:
    """An installation that is driven step by step."""

    database: Database
    log: SqliteLog
    answers: SqliteAnswers
    observations: SqliteObservations
    settings: Settings

    async def drive(self, sizes: Callable[[], int] = lambda: 1000) -> None:
        """Let both groups work until nothing is left, in batches of these sizes."""
        for processor in processors(self.answers, self.observations):
            consumer = self.log.consumer(processor.name, processor.topics)
            loop = ProcessorLoop(processor, self.log)
            while await self.log.lag(processor.name, processor.topics):
                await loop._handle(consumer, await consumer.poll(sizes(), 1 << 20))
            await consumer.close()

    async def take(self, messages: Sequence[Message], sizes: Callable[[], int] = lambda: 1000) -> None:
        await self.log.append(messages, durable=False)
        await self.drive(sizes)

    def table(self) -> KpiTable:
        return self.observations.table(self.database.reader)

    def kpis(self, tenant: str) -> TenantKpis:
        """The KPIs of a tenant: window, dimensions, begin, end and name to value and count."""
        rows = self.database.reader.execute(
            "SELECT window, dimensions, start_ms, end_ms, kpi, value, count FROM feedback_kpis "
            "WHERE tenant=? AND count>0",
            (tenant,),
        )
        return {(window, dimensions, start, end, kpi): value for window, dimensions, start, end, kpi, *value in rows}

    async def hash(self) -> str:
        stores = (self.answers, self.observations)
        return await state_hash(row for store in stores for row in store.rows(self.database.reader))

    async def replay(self, sizes: Callable[[], int] = lambda: 1000) -> None:
        async with self.database.transaction() as unit:
            await self.answers.reset()
            await self.observations.reset()
            await self.log.reset_group(unit, ANSWERS)
            await self.log.reset_group(unit, KPIS)
        await self.drive(sizes)

    async def differences(self) -> list[str]:
        positions = await self.log.committed(ANSWERS)
        erased = list(self.answers.erased_turns(self.database.reader))
        return differences(self.table(), await recomputed(self.log, positions, self.settings, erased))


@contextlib.asynccontextmanager
async def world(settings: Settings = SETTINGS) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        try:
            log = SqliteLog(database)
            await log.create_topics(TOPICS)
            answers = SqliteAnswers(database, settings.event_time, SqliteJobs(database, "vader"))
            yield World(database, log, answers, SqliteObservations(database, settings), settings)
        finally:
            database.close()


def turn(tenant: str, answer: str, asked_s: int, **fields: object) -> Message:
    event = gateway_pb2.TurnCompleted(tenant=tenant, answer_id=answer, **fields)  # type: ignore[arg-type]
    asked_ms = START_MS + asked_s * 1000
    event.asked_at.FromMilliseconds(asked_ms)
    return message_of(topics.CONVERSATIONS, key_of(tenant, event.conversation_id), event, asked_ms)


def rating(tenant: str, answer: str, rated_s: int, scale: int, rater: str = "", text: str = "") -> Message:
    """A rating of an answer; one whose name begins with c is a conversation."""
    names = {"conversation_id": answer} if answer.startswith("c") else {"answer_id": answer}
    event = events_pb2.AnswerRated(tenant=tenant, scale=scale, rater=rater, text=text, **names)  # type: ignore[arg-type]
    event.rated_at.FromMilliseconds(START_MS + rated_s * 1000)
    key = key_of(tenant, event.answer_id) if event.answer_id else key_of(tenant, "", event.conversation_id)
    return message_of(topics.RATINGS, key, event, START_MS + rated_s * 1000)


def classification(tenant: str, answer: str, written_s: int, score: float) -> Message:
    event = events_pb2.TurnClassified(
        tenant=tenant, answer_id=answer, score=score, category="neutral", words=events_pb2.WORDS_QUESTION
    )
    event.written_at.FromMilliseconds(START_MS + written_s * 1000)
    return message_of(topics.CLASSIFIED, key_of(tenant, answer), event, START_MS + written_s * 1000)


def erasure(tenant: str, profile: str, until_s: int) -> Message:
    event = common_pb2.ErasureRequested(
        erasure_id=f"{tenant}-{profile}-{until_s}", tenant=tenant, profile_ids=[profile]
    )
    event.requested_at.FromMilliseconds(START_MS + until_s * 1000)
    return message_of(topics.ERASURES, key_of(tenant, profile), event, START_MS + until_s * 1000)


def story(tenant: str, *, erased: bool) -> list[Message]:
    """What happens to one answer of the person `ada`."""
    return [
        turn(tenant, "a1", 10, conversation_id="c1", profile_id="ada", model="m", answered=True, latency_ms=120.0),
        rating(tenant, "a1", 20, 2, text="no"),
        rating(tenant, "a1", 30, 5, text="now it works"),
        classification(tenant, "a1", 10, -0.4),
        *([erasure(tenant, "ada", 100)] if erased else []),
    ]


def others(tenant: str) -> list[Message]:
    """What happens at the same time to somebody else."""
    return [
        turn(tenant, "b1", 15, conversation_id="c2", profile_id="bob", model="m", answered=False, latency_ms=80.0),
        rating(tenant, "b1", 50, 1),
        rating(tenant, "c2", 55, 3),
    ]


def test_every_order_of_a_turn_its_ratings_its_classification_and_an_erasure_gives_the_same_kpis() -> None:
    async def scenario() -> None:
        async with world() as w:
            results: dict[bool, list[TenantKpis]] = {True: [], False: []}
            for erased in (True, False):
                for index, order in enumerate(itertools.permutations(range(4 + erased))):
                    tenant = f"{'erased' if erased else 'kept'}-{index}"
                    messages = story(tenant, erased=erased)
                    await w.take(others(tenant))
                    for step in order:
                        await w.take([messages[step]])
                    results[erased].append(w.kpis(tenant))
            await w.take(others("bystander"))
            without = w.kpis("bystander")
            assert all(kpis == without for kpis in results[True])
            assert all(kpis == results[False][0] for kpis in results[False])
            minute = (START_MS // 60_000 * 60_000, START_MS // 60_000 * 60_000 + 60_000)
            assert results[False][0]["60s", "{}", *minute, "satisfaction"] == [0.5, 3]  # 5, 1 and the conversation's 3
            assert without["60s", "{}", *minute, "satisfaction"] == [0.25, 2]
            assert await w.differences() == []

    asyncio.run(scenario())


answers = st.sampled_from(["a1", "a2", "a3"])
seconds = st.integers(0, 2000)
events = st.one_of(
    st.builds(
        lambda answer, at, profile, model, latency: (
            lambda t: turn(
                t, answer, at, conversation_id="c" + answer, profile_id=profile, model=model, answered=True,
                latency_ms=latency, cost=latency / 7,
            )
        ),
        answers, seconds, st.sampled_from(["", "ada", "bob"]), st.sampled_from(["m1", "m2"]), st.floats(0.5, 1e5),
    ),
    st.builds(
        lambda answer, at, scale, rater: lambda t: rating(t, answer, at, scale, rater),
        st.sampled_from(["a1", "a2", "a3", "ca1", "ca2"]), seconds, st.integers(1, 5),
        st.sampled_from(["", "x", "bob"]),
    ),
    st.builds(
        lambda answer, at, score: lambda t: classification(t, answer, at, score),
        answers, seconds, st.floats(-1, 1),
    ),
    st.builds(lambda person, at: lambda t: erasure(t, person, at), st.sampled_from(["ada", "bob"]), seconds),
)  # fmt: skip
Make = Callable[[str], Message]


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(events, max_size=14), st.randoms(use_true_random=False))
def test_any_events_in_any_order_repeated_and_in_any_batches_give_the_kpis_that_follow_from_the_log(
    makes: list[Make], chance: random.Random
) -> None:
    async def scenario() -> None:
        async with world() as plain, world() as mixed:
            await plain.take([make("t") for make in makes])
            shuffled = [*makes, *chance.choices(makes, k=len(makes) // 2)] if makes else []
            chance.shuffle(shuffled)
            while shuffled:
                count = chance.randint(1, len(shuffled))
                part, shuffled = shuffled[:count], shuffled[count:]
                await mixed.take([make("t") for make in part], lambda: chance.randint(1, 4))
            assert mixed.kpis("t") == plain.kpis("t")
            assert await mixed.hash() == await plain.hash()
            assert await mixed.differences() == []

    asyncio.run(scenario())


LATE = replace(SETTINGS, allowed_lateness_s=120.0, out_of_order_s=10.0)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(events, max_size=20), st.randoms(use_true_random=False))
def test_a_replay_gives_the_same_state_also_of_what_was_too_late_and_of_what_the_log_has_forgotten(
    makes: list[Make], chance: random.Random
) -> None:
    async def scenario() -> None:
        async with world(LATE) as w:
            for make in makes:
                await w.take([make("t")])
            await forget_in_log(w)
            before = await w.hash()
            for size in (1, 3, 1000):
                await w.replay(itertools.repeat(size).__next__)
                assert await w.hash() == before
            assert await w.differences() == []
            assert conserved(w)

    asyncio.run(scenario())


async def forget_in_log(w: World) -> None:
    """Do the log's part of the erasures."""
    rows = w.database.reader.execute("SELECT tenant, name, until_ms FROM feedback_forgotten").fetchall()
    rows += w.database.reader.execute("SELECT tenant, subject, until_ms FROM feedback_unlogged").fetchall()
    erased = Erased({Key(tenant, name): until_ms for tenant, name, until_ms in rows})
    await Retention(w.log, w.database).erase(erased.holds, KEPT)


def conserved(w: World) -> bool:
    """Every turn is in the windows or counted as too late."""
    read = w.database.reader
    turns = read.execute("SELECT count(*) FROM feedback_turns").fetchone()[0]
    late = w.observations.too_late("t")
    total = read.execute(
        "SELECT coalesce(sum(count), 0) FROM feedback_kpis "
        "WHERE window='3600s' AND dimensions='{}' AND kpi='answer_rate'"
    ).fetchone()[0]
    return bool(turns == late + total)


def test_a_rating_given_again_is_no_second_rating() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.take([turn("t", "a1", 0, answered=True), rating("t", "a1", 5, 5), rating("t", "a1", 5, 5)])
            await w.take([rating("t", "a1", 5, 5)])
            counts = {value[1] for key, value in w.kpis("t").items() if key[-1] == "rating_count"}
            assert counts == {1}

    asyncio.run(scenario())


def test_a_late_turn_is_counted_as_too_late_and_its_window_stays_as_it_was() -> None:
    async def scenario() -> None:
        async with world(LATE) as w:
            await w.take([turn("t", "a1", 1000, answered=True), turn("t", "a2", 10, answered=True)])
            assert w.observations.too_late("t") == 1
            assert {size for _, size in w.kpis("t").values()} == {1}
            # Within what is allowed it is a correction of its own window.
            await w.take([turn("t", "a3", 900, answered=False)])
            assert w.observations.too_late("t") == 1
            starts = {key[2] for key in w.kpis("t") if key[0] == "60s"}
            assert starts == {(START_MS + s * 1000) // 60_000 * 60_000 for s in (900, 1000)}

    asyncio.run(scenario())


def test_every_kpi_in_the_table_is_the_last_that_was_told_and_its_revisions_grow() -> None:
    async def scenario() -> None:
        async with world() as w:
            for step in story("t", erased=False) + others("t") + [erasure("t", "ada", 100)]:
                await w.take([step])
            told: dict[bytes, list[events_pb2.KpiComputed]] = {}
            for partition in range(w.log.partitions(topics.KPIS)):
                for record in await w.log.read(topics.KPIS, partition, 0, max_records=10_000):
                    kpi = events_pb2.KpiComputed.FromString(record.value or b"")
                    told.setdefault(record.key or b"", []).append(kpi)
            for history in told.values():
                revisions = [kpi.revision for kpi in history]
                assert revisions == sorted(revisions)
            last = [history[-1] for history in told.values() if history[-1].count]
            assert sorted((kpi.value, kpi.count) for kpi in last) == sorted(
                (c.value, c.size) for c in w.table().values()
            )
            assert any(not history[-1].HasField("value") for history in told.values())  # what the erasure emptied

    asyncio.run(scenario())


def test_every_window_is_told_to_be_closed_once_time_has_passed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.take([turn("t", f"a{i}", 60 * i, answered=True, conversation_id="c") for i in range(20)])
            await w.take([turn("t", "last", 10_000, answered=True, conversation_id="c")])
            end_ms = START_MS + 10_000_000
            told = {}
            for partition in range(w.log.partitions(topics.KPIS)):
                for record in await w.log.read(topics.KPIS, partition, 0, max_records=100_000):
                    told[record.key] = events_pb2.KpiComputed.FromString(record.value or b"")
            current = [kpi for kpi in told.values() if kpi.count]
            assert len(current) == len(w.table())
            assert all(kpi.closed == (kpi.window_end.ToMilliseconds() <= end_ms) for kpi in current)

    monkeypatch.setattr(sqlite_kpis, "CLOSING_MAX", 50)
    asyncio.run(scenario())


def test_the_model_is_learnt_from_ratings_and_forgotten_with_those_it_was_learnt_from() -> None:
    async def scenario() -> None:
        async with world() as w:
            models = Models(w.database)
            texts = ("I was charged twice", "where is the tram stop")
            messages = []
            for index in range(90):
                bad = index % 3 == 0
                text = f"{texts[not bad]} number {index % 5}"
                messages.append(turn("t", f"a{index}", index, question=text, answered=True))
                messages.append(rating("t", f"a{index}", index, 1 if bad else 5))
            await w.take(messages[:40])
            assert await models.outgrown() == []
            await w.take(messages[40:])
            assert await models.outgrown() == ["t"]
            model = await models.learn("t")
            assert model is not None
            assert model.auc > 0.9
            assert await models.outgrown() == []
            assert Models(w.database).model("t") == model  # it survives the process
            await models.forget("t")
            assert models.model("t") is None
            assert Models(w.database).model("t") is None

    asyncio.run(scenario())
