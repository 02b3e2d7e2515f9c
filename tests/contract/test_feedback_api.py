"""FeedbackService over gRPC, on the embedded log and on Kafka; its state is in the local database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from headwater.common.v1 import events_pb2 as common_pb2, operations_pb2, operations_pb2_grpc
from headwater.feedback.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.app import ANSWERS, KPIS, build
from services.kernel import topics
from services.kernel.log import encode_token, key_of, message_of, position_of
from services.kernel.sqlite_log import SqliteLog
from tests.conftest import RunService
from tests.contract.conftest import Tables, on
from tests.contract.test_ingest_api import records

MOMENT = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
LINE = {"question": "Fee?", "answer": "65 euros.", "asked_at": "2026-11-24T12:00:30Z", "conversation_id": "c1"}


@pytest.fixture
def run_service(run_service: RunService, log_engine: Tables) -> RunService:
    """Run services with each adapter of the log."""
    return on(log_engine, run_service)


def is_embedded(running: Any) -> bool:
    return isinstance(running.platform.log, SqliteLog)


def stub(running: Any) -> Any:
    return service_pb2_grpc.FeedbackServiceStub(running.channel)


def turn(answer_id: str, tenant: str = "", **fields: Any) -> gateway_pb2.TurnCompleted:
    fields = {"conversation_id": "c1", "model": "m", "answered": True, "latency_ms": 100.0, **fields}
    event = gateway_pb2.TurnCompleted(tenant=tenant, answer_id=answer_id, **fields)
    if not event.HasField("asked_at"):
        event.asked_at.FromDatetime(MOMENT)
    return event


async def publish(running: Any, *turns: gateway_pb2.TurnCompleted) -> str:
    """Put turns on the log, as the gateway does; return the position token."""
    messages = [
        message_of(topics.CONVERSATIONS, key_of(t.tenant, t.conversation_id), t, t.asked_at.ToMilliseconds())
        for t in turns
    ]
    return encode_token(await running.platform.log.append(messages))


def rate(answer: str, **fields: Any) -> pb.RateRequest:
    return pb.RateRequest(rating=events_pb2.AnswerRated(answer_id=answer, **fields))


async def lines(*values: Iterable[Any]) -> AsyncIterator[pb.ImportTurnsRequest]:
    for part in values:
        yield pb.ImportTurnsRequest(
            lines=[line if isinstance(line, str) else orjson.dumps(line).decode() for line in part]
        )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for background work; the test's own timeout bounds it."""
    while not await condition():
        await asyncio.sleep(0.02)


def values(response: pb.GetKpisResponse, *, dimensions: dict[str, str] | None = None) -> dict[str, float]:
    return {kpi.kpi: kpi.value for kpi in response.kpis if dict(kpi.dimensions) == (dimensions or {})}


async def test_a_rating_moves_the_kpis_that_are_asked_for_with_its_token(run_service: Any) -> None:
    async with run_service(build) as running:
        await publish(running, turn("a1"), turn("a2"))
        rated = await stub(running).Rate(rate("a1", up=True))
        rated = await stub(running).Rate(rate("a2", scale=3))
        response = await stub(running).GetKpis(pb.GetKpisRequest(at_least=rated.position_token, window="60s"))
    kpis = values(response)
    assert (kpis["satisfaction"], kpis["rating_count"], kpis["answer_rate"]) == (0.75, 2, 1)
    assert kpis["latency_ms_p95"] == 100
    assert values(response, dimensions={"model": "m"})["satisfaction"] == 0.75
    assert response.watermark.ToDatetime(UTC) < MOMENT
    assert not any(kpi.closed for kpi in response.kpis)


async def test_a_rating_may_come_before_its_answer_and_be_replaced(run_service: Any) -> None:
    async with run_service(build) as running:
        await stub(running).Rate(rate("a1", up=True))
        await stub(running).Rate(rate("a1", up=False, text="not what I asked"))
        token = await publish(running, turn("a1"))
        response = await stub(running).GetKpis(pb.GetKpisRequest(at_least=token, window="60s"))
    assert (values(response)["satisfaction"], values(response)["rating_count"]) == (0, 1)


async def test_kpis_can_be_chosen_by_name_time_window_and_number(run_service: Any) -> None:
    async with run_service(build) as running:
        later = Timestamp(seconds=int(MOMENT.timestamp()) + 86_400)
        await publish(running, turn("a1"), turn("a2", asked_at=later))
        get = stub(running).GetKpis
        response = await get(pb.GetKpisRequest(kpis=["cost"], window="300s/60s", since=later))
        assert {kpi.kpi for kpi in response.kpis} == {"cost"}
        assert {kpi.window_end.seconds - kpi.window_start.seconds for kpi in response.kpis} == {300}
        assert all(kpi.window_end.seconds > later.seconds for kpi in response.kpis)
        closed = (await get(pb.GetKpisRequest(window="60s"))).kpis
        assert {kpi.closed for kpi in closed} == {True, False}
        limited = await get(pb.GetKpisRequest(window="60s", limit=1))
        assert (len(limited.kpis), limited.truncated, limited.kpis[0].closed) == (1, True, False)


async def test_tenants_do_not_see_each_other(run_service: Any) -> None:
    async with run_service(build) as running:
        await publish(running, turn("a1", tenant="one"), turn("a1", tenant="two", answered=False))
        one = await stub(running).GetKpis(pb.GetKpisRequest(tenant="one", window="60s"))
        two = await stub(running).GetKpis(pb.GetKpisRequest(tenant="two", window="60s"))
        nobody = await stub(running).GetKpis(pb.GetKpisRequest())
    assert (values(one)["answer_rate"], values(two)["answer_rate"]) == (1, 0)
    assert not nobody.kpis
    assert not nobody.HasField("watermark")


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (pb.RateRequest(), "answer_id"),
        (rate("a1"), "scale from 1 to 5"),
        (rate("a1", scale=6), "1 to 5"),
        (rate("a1", scale=0), "1 to 5"),
        (rate("a" * 600, up=True), "longer"),
        (rate("a\x1f1", up=True), "control character"),
        (rate("a1", text="x" * 70_000), "longer"),
        (rate("a1", up=True, rated_at=Timestamp(seconds=32_000_000_000)), "future"),
        (rate("a1", up=True, rated_at=Timestamp(seconds=-5)), "1970"),
    ],
)
async def test_refuses_a_wrong_rating_and_says_what_is_wrong(
    run_service: Any, request_: pb.RateRequest, named: str
) -> None:
    async with run_service(build) as running:
        with pytest.raises(grpc.aio.AioRpcError, match=named) as caught:
            await stub(running).Rate(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await running.platform.log.end(topics.RATINGS) == [0] * running.platform.log.partitions(topics.RATINGS)


async def test_a_position_that_is_not_reached_in_time_is_refused(run_service: Any) -> None:
    async with run_service(build) as running:
        future = encode_token(position_of({(topics.RATINGS, 0): 99}))
        request = pb.GetKpisRequest(at_least=future, at_least_timeout=Duration(nanos=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(running).GetKpis(request)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError, match="position token"):
            await stub(running).GetKpis(pb.GetKpisRequest(at_least="?"))


async def test_a_watcher_is_told_every_correction_of_its_tenant(run_service: Any) -> None:
    async with run_service(build) as running:
        watch = stub(running).WatchKpis(pb.WatchKpisRequest(tenant="mine"))
        first = asyncio.ensure_future(anext(aiter(watch)))
        await asyncio.sleep(0)
        seen: list[events_pb2.KpiComputed] = []
        while not first.done():  # until the watch has begun
            await publish(running, turn("a1", tenant="other"), turn(f"b{len(seen)}", tenant="mine"))
            await asyncio.wait([first], timeout=0.2)
        seen.append((await first).kpi)
        rating = events_pb2.AnswerRated(tenant="mine", answer_id="b0", up=True)
        await stub(running).Rate(pb.RateRequest(rating=rating))
        async for response in watch:
            seen.append(response.kpi)
            if response.kpi.kpi == "satisfaction":
                break
        assert {kpi.tenant for kpi in seen} == {"mine"}
        assert all(kpi.revision >= 1 for kpi in seen)
        watch.cancel()


async def test_history_is_imported_once_however_often_it_is_sent(run_service: Any) -> None:
    async with run_service(build) as running:
        wrong = ["{", {**LINE, "rating": 9}]
        first = await stub(running).ImportTurns(
            lines([{**LINE, "rating": "up"}], [*wrong, {**LINE, "question": "Bags?"}])
        )
        assert (first.turns, first.ratings, first.refused) == (2, 1, 2)
        assert [line.number for line in first.refused_lines] == [2, 3]
        assert "rating" in first.refused_lines[1].reason
        again = await stub(running).ImportTurns(lines([{**LINE, "rating": "up"}]))
        request = pb.GetKpisRequest(at_least=again.position_token, window="60s", kpis=["rating_count", "answer_rate"])
        response = await stub(running).GetKpis(request)
    assert values(response) == {"rating_count": 1, "answer_rate": 1}
    assert {kpi.count for kpi in response.kpis if kpi.kpi == "answer_rate"} == {2}


async def test_what_people_write_is_classified(run_service: Any) -> None:
    async with run_service(build) as running:
        log = running.platform.log

        async def classified() -> list[events_pb2.TurnClassified]:
            found = await records(log, topics.CLASSIFIED)
            return [events_pb2.TurnClassified.FromString(record.value or b"") for record in found]

        async def are(count: int) -> bool:
            return len(await classified()) == count

        async def sentiment() -> float | None:
            return values(await stub(running).GetKpis(pb.GetKpisRequest(window="60s"))).get("sentiment")

        async def is_pleased() -> bool:
            return (await sentiment() or 0) > 0

        await publish(running, turn("a1", question="You charged me twice, this is horrible!"))
        await until(lambda: are(1))
        await stub(running).Rate(rate("a1", up=True, text="Thank you, that was quick. Excellent!"))
        await until(lambda: are(2))
        await until(is_pleased)
        conversation = events_pb2.AnswerRated(conversation_id="c7", text="a lovely conversation")
        await stub(running).Rate(pb.RateRequest(rating=conversation))
        await until(lambda: are(3))
        assert {(c.answer_id, c.conversation_id, c.words, c.sentiment, c.category) for c in await classified()} == {
            ("a1", "c1", events_pb2.WORDS_QUESTION, events_pb2.SENTIMENT_NEGATIVE, "dissatisfied"),
            ("a1", "c1", events_pb2.WORDS_RATING, events_pb2.SENTIMENT_POSITIVE, "satisfied"),
            ("", "c7", events_pb2.WORDS_RATING, events_pb2.SENTIMENT_POSITIVE, "satisfied"),
        }


async def export(running: Any, folder: Path, **fields: Any) -> list[Path]:
    steps = [step async for step in stub(running).Export(pb.ExportRequest(folder=str(folder), **fields))]
    return [Path(name) for name in steps[-1].files]


async def test_the_lake_holds_every_turn_with_what_was_said_of_it(run_service: Any, tmp_path: Path) -> None:
    from pyarrow import parquet

    async with run_service(build, settings_tables={"feedback": {"classifier": "off"}}) as running:
        citation = gateway_pb2.Citation(number=1, document_id="fees", version="7", quote="65 euros", verified=True)
        part = gateway_pb2.ContextPart(kind=gateway_pb2.PART_KIND_KNOWLEDGE, reference="fees", version="7", number=1)
        context = gateway_pb2.Context(parts=[part])
        full = turn("a1", question="Fee?", answer="65 euros [1]", citations=[citation], context=context, cost=0.5)
        next_day = Timestamp(seconds=int(MOMENT.timestamp()) + 86_400)
        await publish(running, full, turn("a2", asked_at=next_day))
        await stub(running).Rate(rate("a1", scale=4, text="good"))
        conversation = events_pb2.AnswerRated(conversation_id="c1", up=True)
        token = (await stub(running).Rate(pb.RateRequest(rating=conversation))).position_token
        await stub(running).GetKpis(pb.GetKpisRequest(at_least=token))
        files = await export(running, tmp_path / "lake")
        names = [str(file.relative_to(tmp_path / "lake")) for file in files]
        assert names == [f"conversations/date=2026-11-{day}/part-default.parquet" for day in (24, 25)]
        (row,) = parquet.ParquetFile(files[0]).read().to_pylist()
        assert (row["question"], row["answer"], row["cost"]) == ("Fee?", "65 euros [1]", 0.5)
        assert row["asked_at"] == MOMENT
        assert row["citations"][0]["quote"] == "65 euros"
        assert row["context"][0]["reference"] == "fees"
        assert (row["ratings"][0]["rating"], row["ratings"][0]["text"]) == (0.75, "good")
        assert row["conversation_ratings"][0]["rating"] == 1

        json_files = await export(running, tmp_path / "json", format=pb.EXPORT_FORMAT_JSON_LINES)
        plain = orjson.loads(json_files[0].read_bytes())
        assert (plain["asked_at"], plain["ratings"][0]["scale"]) == ("2026-11-24T12:00:30.000Z", 4)


async def test_an_export_to_a_folder_that_cannot_be_written_is_refused(run_service: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    tables = {"feedback": {"export_root": str(tmp_path / "file")}}
    async with run_service(build, settings_tables=tables) as running:
        token = await publish(running, turn("a1"))
        await stub(running).GetKpis(pb.GetKpisRequest(at_least=token))
        for folder, status in (
            (str(tmp_path / "file"), grpc.StatusCode.UNAVAILABLE),
            (str(tmp_path / "elsewhere"), grpc.StatusCode.PERMISSION_DENIED),
            ("", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [step async for step in stub(running).Export(pb.ExportRequest(folder=folder))]
            assert caught.value.code() is status


async def erase(running: Any, **fields: Any) -> common_pb2.ErasureDone:
    """Ask for an erasure, as the profile service does; return this service's acknowledgement."""
    request = common_pb2.ErasureRequested(erasure_id="e1", **fields)
    request.requested_at.GetCurrentTime()
    log = running.platform.log
    message = message_of(topics.ERASURES, key_of("", "e1"), request, request.requested_at.ToMilliseconds())
    await log.append([message])
    answers: dict[str, common_pb2.ErasureDone] = {}
    # Embedded the log acknowledges last; in a cluster it waits for services that do not run here.
    while ("log" if is_embedded(running) else "feedback") not in answers:
        await log.wait_for([topics.ERASURES_DONE], {(topics.ERASURES_DONE, 0): len(answers)}, 60)
        found = await records(log, topics.ERASURES_DONE)
        answers = {a.service: a for a in (common_pb2.ErasureDone.FromString(r.value or b"") for r in found)}
    return answers["feedback"]


async def test_an_erasure_reaches_the_tables_the_kpis_the_lake_and_the_log(run_service: Any, tmp_path: Path) -> None:
    async with run_service(build) as running:
        secret = turn("a1", question="I am Ada Secretperson", profile_id="p1", latency_ms=900.0)
        other_day = Timestamp(seconds=int(MOMENT.timestamp()) - 86_400)
        asked_as = turn("a2", question="Secretperson again", asked_as="record:crm/customers/1", asked_at=other_day)
        await publish(running, secret, asked_as, turn("b1", profile_id="p2", conversation_id="c2"))
        token = (await stub(running).Rate(rate("a1", up=False, text="Secretperson is cross"))).position_token
        await stub(running).GetKpis(pb.GetKpisRequest(at_least=token))
        files = await export(running, tmp_path / "lake", format=pb.EXPORT_FORMAT_JSON_LINES)
        assert len(files) == 2
        done = await erase(running, profile_ids=["p1"], records=["crm/customers/1"])
        assert done.removed["turns"] == 2
        assert done.removed["ratings"] == 1
        assert set(done.remaining.values()) == {0}
        assert set(done.related_ids) == {"a1", "a2", "c1"}
        kpis = values(await stub(running).GetKpis(pb.GetKpisRequest(window="60s")))
        assert kpis["latency_ms_p95"] == 100
        assert "satisfaction" not in kpis
        assert [file.exists() for file in files] == [False, True]
        assert b"Secretperson" not in files[1].read_bytes()
        folder = running.platform.database.folder
    assert not any(b"Secretperson" in file.read_bytes() for file in folder.iterdir() if file.is_file())


async def test_a_turn_of_an_erased_person_that_comes_in_later_leaves_nothing(run_service: Any) -> None:
    async with run_service(build) as running:
        await publish(running, turn("b1", profile_id="p2"))
        await erase(running, profile_ids=["p1"])
        token = await publish(running, turn("a1", question="Secretperson", profile_id="p1", conversation_id="c9"))
        await stub(running).GetKpis(pb.GetKpisRequest(at_least=token))
        log = running.platform.log

        async def is_gone() -> bool:
            return not any(b"Secretperson" in (r.value or b"") for r in await records(log, topics.CONVERSATIONS))

        if is_embedded(running):  # Kafka cannot remove single records
            await until(is_gone)
        folder = running.platform.database.folder
        # Whoever comes back is welcome.
        again = turn("a3", profile_id="p1", asked_at=Timestamp(seconds=int(datetime.now(UTC).timestamp()) + 5))
        token = await publish(running, again)
        response = await stub(running).GetKpis(pb.GetKpisRequest(at_least=token, window="3600s", kpis=["answer_rate"]))
        assert sum(kpi.count for kpi in response.kpis if not kpi.dimensions) == 2
    assert not any(b"Secretperson" in file.read_bytes() for file in folder.iterdir() if file.is_file())


async def test_a_rebuild_gives_the_same_state_and_the_kpis_reconcile_with_the_log(run_service: Any) -> None:
    async with run_service(build) as running:
        await publish(running, turn("a1", question="This is horrible"), turn("a2", question="Thank you"))
        await stub(running).Rate(rate("a1", scale=2, text="useless"))
        await stub(running).Rate(rate("a3", up=True))
        checks = await operations_pb2_grpc.OperationsServiceStub(running.channel).Verify(operations_pb2.VerifyRequest())
        assert {check.name: check.ok for check in checks.checks} == dict.fromkeys(
            [
                f"conservation {ANSWERS}", f"conservation {KPIS}", "replay feedback",
                "feedback KPIs reconcile with the log",
            ],
            True,
        ), checks  # fmt: skip


async def test_kpis_that_are_defined_anew_are_computed_from_all_answers(run_service: Any, tmp_path: Path) -> None:
    async with run_service(build, data=tmp_path / "kept") as running:
        token = await publish(running, turn("a1"), turn("a2", latency_ms=300.0))
        await stub(running).GetKpis(pb.GetKpisRequest(at_least=token))
    slowest = {"name": "slowest", "measure": "latency_ms", "statistic": "max"}
    tables = {"feedback": {"windows": ["10s"], "kpis": [slowest]}}
    async with run_service(build, data=tmp_path / "kept", settings_tables=tables) as running:
        rating = (await stub(running).Rate(rate("a1", up=True))).position_token
        response = await stub(running).GetKpis(pb.GetKpisRequest(at_least=rating))
        assert {kpi.window for kpi in response.kpis} == {"10s"}
        assert (values(response)["slowest"], values(response)["satisfaction"]) == (300, 1)
        assert sum(await running.platform.log.end(topics.DEAD_LETTERS)) == 0


async def test_a_wrong_event_is_given_up_alone(run_service: Any) -> None:
    async with run_service(build) as running:
        token = await publish(running, turn(""), turn("a1"))
        response = await stub(running).GetKpis(pb.GetKpisRequest(at_least=token, window="60s"))
        assert values(response)["answer_rate"] == 1
        assert len(await records(running.platform.log, topics.DEAD_LETTERS)) == 1
