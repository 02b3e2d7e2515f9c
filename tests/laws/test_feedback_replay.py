"""Feedback, laws 1 and 3 in a cluster: a worker whose local database is lost makes the same state again, and says
nothing twice."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from headwater.common.v1 import events_pb2 as common_pb2, operations_pb2, operations_pb2_grpc
from headwater.feedback.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.app import ANSWERS, KPIS, build
from services.feedback.reconcile import INPUTS
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.log import Record, key_of, message_of
from tests.conftest import Running, RunService
from tests.engines import Kafka, kafka_engine

__all__ = ["kafka_engine"]

START_MS = 1_789_999_200_000
TURNS = 40


async def say(running: Running) -> None:
    """Turns, ratings with and without words, and the erasure of a person who asked twice."""
    messages = []
    for number in range(TURNS):
        profile = "ada" if number in (3, 4) else f"p{number % 7}"
        turn = gateway_pb2.TurnCompleted(
            tenant="default", answer_id=f"a{number}", conversation_id=f"c{number // 2}", profile_id=profile, model="m",
            question=f"Why is it so slow, again ({number})?", answered=number % 5 > 0, latency_ms=100 + number,
        )  # fmt: skip
        turn.asked_at.FromMilliseconds(START_MS + number * 7_000)
        messages.append(
            message_of(topics.CONVERSATIONS, key_of("", turn.conversation_id), turn, turn.asked_at.ToMilliseconds())
        )
        if number % 3 == 0:
            rating = events_pb2.AnswerRated(tenant="default", answer_id=turn.answer_id, scale=1 + number % 5)
            rating.text = "this is terrible" if number % 2 else ""
            rating.rated_at.FromMilliseconds(START_MS + number * 7_000 + 1)
            messages.append(message_of(topics.RATINGS, key_of("", turn.answer_id), rating, START_MS))
    await running.platform.log.append(messages)
    await settled(running)
    request = common_pb2.ErasureRequested(erasure_id="e1", tenant="default", profile_ids=["ada"])
    request.requested_at.FromMilliseconds(START_MS + TURNS * 7_000)
    await running.platform.log.append([message_of(topics.ERASURES, b"e1", request, START_MS)])
    await settled(running)


async def settled(running: Running) -> None:
    """Wait until nothing changes any more: inputs, touches, classifications and what they lead to."""
    log = running.platform.log
    (store,) = running.runtime.services[0].stores
    assert store.settled is not None
    quiet = 0
    while quiet < 3:
        try:
            lag = await log.lag(ANSWERS, INPUTS) + await log.lag(KPIS, [topics.ANSWERS_TOUCHED])
        except UnavailableError:  # a broker that has just started has no coordinator of groups yet
            lag = 1
        muted = log.is_muted(ANSWERS) or log.is_muted(KPIS)
        unfinished = running.platform.database.reader.execute(
            "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM feedback_erasures WHERE NOT done)"
        ).fetchone()[0]
        await store.settled()
        quiet = 0 if lag or muted or unfinished else quiet + 1
        await asyncio.sleep(0.1)


async def told(running: Running, topic: str) -> list[Record]:
    """Everything that a topic holds, but for tombstones."""
    log, records = running.platform.log, list[Record]()
    for partition in range(log.partitions(topic)):
        offset = 0
        while found := await log.read(topic, partition, offset):
            offset = found[-1].offset + 1
            records.extend(record for record in found if record.value is not None)
    return records


async def state(running: Running) -> str:
    stub = operations_pb2_grpc.OperationsServiceStub(running.channel)
    (store,) = (await stub.GetStatus(operations_pb2.GetStatusRequest())).stores
    return str(store.hash)


async def kpis(running: Running) -> list[Any]:
    stub = service_pb2_grpc.FeedbackServiceStub(running.channel)
    return [
        (kpi.kpi, dict(kpi.dimensions), kpi.window, kpi.window_start.seconds, kpi.value, kpi.count)
        for kpi in (await stub.GetKpis(pb.GetKpisRequest())).kpis
    ]


@pytest.mark.slow
@pytest.mark.engine
async def test_a_worker_whose_folder_is_lost_makes_the_same_again_and_tells_nothing_twice(
    kafka_engine: Kafka, run_service: RunService, tmp_path: Path
) -> None:
    kafka = {"bootstrap_servers": kafka_engine.address, "prefix": f"{uuid.uuid4().hex}.", "replication": 1}
    async with run_service(build, settings_tables={"kafka": kafka}, data=tmp_path / "first") as running:
        await say(running)
        before, figures = await state(running), await kpis(running)
        classified, done = await told(running, topics.CLASSIFIED), await told(running, topics.ERASURES_DONE)
        assert figures
        assert len({record.key for record in classified}) == TURNS
        assert len(done) == 1
    async with run_service(build, settings_tables={"kafka": kafka}, data=tmp_path / "second") as running:
        await settled(running)
        assert await state(running) == before
        assert await kpis(running) == figures
        assert await told(running, topics.CLASSIFIED) == classified
        assert await told(running, topics.ERASURES_DONE) == done
        (check,) = await running.runtime.services[0].checks()  # type: ignore[misc]
        assert check.ok, check.detail
