"""EmbedderService through real gRPC, with the real model on a real embedded installation.

All of it holds with the model in this process, and with the same model behind an OpenAI-compatible endpoint.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from headwater.common.v1 import common_pb2, events_pb2 as common_events_pb2, operations_pb2, operations_pb2_grpc
from headwater.embedder.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.embedder.app import build, default_model
from services.embedder.model import DIMENSIONS
from services.kernel import topics
from services.kernel.log import message_of
from tests.conftest import Running, RunService
from tests.engines import Kafka
from tests.engines.mongo import mongo_engine
from tests.engines.opensearch import opensearch_engine
from tests.engines.postgresql import postgres_engine
from tests.unit.embedder.embeddings_server import EmbeddingsServer
from tests.unit.embedder.examples import HOTELS, document, message, row

__all__ = ["mongo_engine", "opensearch_engine", "postgres_engine"]

ENGINE = (pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(300))
Stub: TypeAlias = "service_pb2_grpc.EmbedderServiceAsyncStub"
POLICIES = Path(__file__).parents[2] / "demo" / "policies"
REFUND = (
    "# Refund policy\n\nYou may cancel any booking free of charge within 24 hours.\n\n## Pets\n\nDogs stay for free.\n"
)


@pytest.fixture(params=["onnx", "openai"])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Any]]:
    """The table [embedder.model]."""
    if request.param == "onnx":
        yield {"provider": "onnx"}
    else:
        async with EmbeddingsServer(model=default_model()).running() as server:
            # A query may take its time here: this machine serves the model, too.
            yield server.table(dimensions=DIMENSIONS, query_timeout_s=20)


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=ENGINE) for name in ("opensearch", "postgresql"))])
async def engines(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Where log, documents and chunks are: embedded, or in Kafka, MongoDB, and OpenSearch or PostgreSQL."""
    if request.param == "sqlite":
        return {}
    if "openai" in request.node.callspec.params.values():
        pytest.skip("where the model runs makes no difference to the engines: once is enough")
    name = f"t{uuid.uuid4().hex[:12]}"
    kafka: Kafka = request.getfixturevalue("kafka_engine")
    tables: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": kafka.address, "prefix": f"{name}.", "replication": 1},
        "mongodb": {"uri": request.getfixturevalue("mongo_engine").uri, "database": name},
    }
    if request.param == "opensearch":
        url = request.getfixturevalue("opensearch_engine").url
        return {**tables, "opensearch": {"url": url, "prefix": name, "replicas": 0}}
    return {**tables, "postgresql": {"uri": request.getfixturevalue("postgres_engine").uri, "prefix": name}}


@pytest.fixture
async def running(
    run_service: RunService, model: dict[str, Any], engines: dict[str, dict[str, Any]]
) -> AsyncIterator[Running]:
    table = {"model": model, "tables": [HOTELS], "document_bytes_max": 100_000}
    async with run_service(build, settings_tables={"embedder": table, **engines}) as r:
        yield r


@pytest.fixture
def stub(running: Running) -> Stub:
    return service_pb2_grpc.EmbedderServiceStub(running.channel)


async def put(running: Running, *changes: Any) -> common_pb2.Position:
    """Append changes, and wait until they can be found."""
    position = await running.platform.log.append([message(change) for change in changes])
    stub = service_pb2_grpc.EmbedderServiceStub(running.channel)
    await stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=30)
    return position


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_search_finds_the_chunk_with_its_place_in_the_document(running: Running, stub: Stub) -> None:
    await put(running, document("docs/refund.md", REFUND, position=1, name="refund.md", uri="file:///refund.md",
                                metadata={"team": "legal"}))  # fmt: skip
    response = await stub.Search(pb.SearchRequest(query="How long can I cancel for nothing?", top_k=1))
    (hit,) = response.hits
    assert "24 hours" in hit.text
    assert (hit.document_id, hit.title, hit.source, hit.ordinal) == ("docs/refund.md", "Refund policy", "docs", 0)
    assert (hit.uri, dict(hit.metadata)) == ("file:///refund.md", {"team": "legal"})
    assert 0 < hit.score <= 1
    whole = await stub.GetDocument(pb.GetDocumentRequest(document_id=hit.document_id, version=hit.version))
    assert whole.text[hit.start : hit.end] == hit.text
    assert not response.missing


async def test_headings_are_told_without_the_title(running: Running, stub: Stub) -> None:
    await put(running, document("docs/refund.md", REFUND, name="refund.md"))
    response = await stub.Search(pb.SearchRequest(query="dogs and pets", top_k=1))
    assert list(response.hits[0].heading_path) == ["Pets"]


async def test_every_format_of_the_demo_can_be_found(running: Running, stub: Stub) -> None:
    files = sorted(path for path in POLICIES.iterdir() if path.is_file())
    await put(running, *[document(f"docs/{f.name}", f.read_bytes(), name=f.name) for f in files])
    questions = {
        "How heavy may my cabin bag be?": "baggage.html",
        "What do I get when my flight is cancelled at short notice?": "service-disruptions.md",
        "points that I collect in the loyalty programme": "loyalty-programme.pdf",
        "booking fee by telephone": "fees.csv",
        "an assistance dog in the cabin": "pets-and-assistance.txt",
    }
    for question, name in questions.items():
        response = await stub.Search(pb.SearchRequest(query=question, top_k=5))
        assert f"docs/{name}" in [hit.document_id for hit in response.hits], question
    assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_live_columns_are_shown_as_they_are_now_and_cost_no_embedding(running: Running, stub: Stub) -> None:
    riva = {"name": "Hotel Riva", "city": "Split", "description": "By the sea.", "price": 90}
    await put(running, row(1, riva, position=1))
    position = await put(running, row(1, {**riva, "price": 75}, position=2))
    (hit,) = (await stub.Search(pb.SearchRequest(query="a hotel by the sea", top_k=1))).hits
    assert (hit.live_json, hit.document_id) == ('{"price":75}', "inventory/hotels/1")
    assert hit.occurred_at.ToMilliseconds() == message(row(1, riva, position=2)).timestamp_ms
    indexed = [
        events_pb2.DocumentIndexed.FromString(r.value or b"")
        for p in range(4) for r in await running.platform.log.read(topics.INDEXED, p, 0)
    ]  # fmt: skip
    assert [(event.chunks, event.embedded) for event in indexed] == [(1, 1), (1, 0)]
    assert position.offsets


async def test_nothing_is_found_across_tenants_and_access_labels(running: Running, stub: Stub) -> None:
    await put(
        running,
        document("docs/open", "The zebra crossing is open.", name="a.txt"),
        document("docs/staff", "The zebra crossing code is 1234.", name="b.txt", access=["staff"]),
        document("docs/other", "The zebra crossing of others.", name="c.txt", tenant="other"),
        document("files/x", "The zebra crossing on file.", name="d.txt", source="files"),
    )

    async def found(**fields: Any) -> set[str]:
        response = await stub.Search(pb.SearchRequest(query="zebra crossing", **fields))
        return {hit.document_id for hit in response.hits}

    assert await found() == {"docs/open", "files/x"}
    assert await found(access=["staff", "x"]) == {"docs/open", "docs/staff", "files/x"}
    assert await found(access=["board"]) == {"docs/open", "files/x"}
    assert await found(tenant="other") == {"docs/other"}
    assert await found(tenant="nobody") == set()
    assert await found(sources=["files"]) == {"files/x"}
    error = await refused(stub.GetDocument(pb.GetDocumentRequest(document_id="docs/staff")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    whole = await stub.GetDocument(pb.GetDocumentRequest(document_id="docs/staff", access=["staff"]))
    assert "1234" in whole.text


async def test_a_change_of_access_holds_at_once(running: Running, stub: Stub) -> None:
    await put(running, document("docs/a", "The zebra crossing.", position=1, name="a.txt"))
    await put(running, document("docs/a", "The zebra crossing.", position=2, name="a.txt", access=["staff"]))
    assert not (await stub.Search(pb.SearchRequest(query="zebra"))).hits
    assert (await stub.Search(pb.SearchRequest(query="zebra", access=["staff"]))).hits


async def test_what_cannot_be_read_is_parked_with_its_reason_and_blocks_nothing(running: Running, stub: Stub) -> None:
    position = await put(
        running,
        document("docs/broken.pdf", b"%PDF-1.4 broken", name="broken.pdf"),
        document("docs/huge.txt", "x" * 100_001, name="huge.txt"),
        document("docs/blank.txt", " \n ", name="blank.txt"),
        document("docs/fine.txt", "A fine text.", name="fine.txt"),
    )
    jobs = await stub.ListJobs(pb.ListJobsRequest(states=[events_pb2.JOB_STATE_PARKED]))
    reasons = {job.document_id: job.last_error for job in jobs.jobs}
    assert reasons.keys() == {"docs/broken.pdf", "docs/huge.txt"}
    assert "broken PDF" in reasons["docs/broken.pdf"]
    assert "document_bytes_max" in reasons["docs/huge.txt"]
    assert jobs.counts["parked"] == 2
    assert jobs.counts["done"] == 2
    reached = await stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=30)
    assert {job.document_id for job in reached.parked} == reasons.keys()
    assert (await stub.RetryJobs(pb.RetryJobsRequest(document_ids=["docs/huge.txt"]))).retried == 1
    await put(running, document("docs/huge.txt", "Small now.", name="huge.txt"))
    assert (await stub.ListJobs(pb.ListJobsRequest())).counts["parked"] == 1


async def test_blank_documents_are_done_with_no_chunks(running: Running, stub: Stub) -> None:
    await put(running, document("docs/blank.txt", "", name="blank.txt"))
    assert (await stub.GetDocument(pb.GetDocumentRequest(document_id="docs/blank.txt"))).text == ""


async def test_the_index_can_be_watched(running: Running, stub: Stub) -> None:
    call = stub.WatchIndex(pb.WatchIndexRequest())
    await call.initial_metadata()
    await put(running, document("docs/x", "Other tenant.", tenant="other"), document("docs/a", "A text.", position=1))
    first = (await anext(aiter(call))).indexed
    assert (first.document_id, first.chunks, first.embedded) == ("docs/a", 1, 1)
    await put(running, document("docs/a", None, position=2))
    assert (await anext(aiter(call))).indexed.version == ""
    call.cancel()


async def test_freshness_tells_what_sources_say_of_themselves(running: Running, stub: Stub) -> None:
    await put(running, document("docs/a", "A text.", position=7))
    heartbeat = row(0, None, position=9, op="heartbeat")
    await running.platform.log.append([message(heartbeat, partition) for partition in range(4)])
    await running.runtime.operations.settle()
    freshness = (await stub.GetFreshness(pb.GetFreshnessRequest())).freshness
    assert freshness.store == "knowledge"
    as_of = {source.source: source.as_of.ToMilliseconds() for source in freshness.sources}
    assert as_of["docs"] == document("docs/a", "", position=7).occurred_at.ToMilliseconds()
    assert as_of["inventory"] == heartbeat.occurred_at.ToMilliseconds()
    assert freshness.behind == 0


async def test_a_position_that_is_not_reached_is_refused_in_time(running: Running, stub: Stub) -> None:
    position = common_pb2.Position(offsets=[common_pb2.TopicOffset(topic=topics.DOCUMENTS, partition=0, offset=99)])
    error = await refused(stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "ListJobs" in (error.details() or "")


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (pb.SearchRequest(query="  "), "empty"),
        (pb.SearchRequest(query="x", top_k=101), "top_k"),
        (pb.SearchRequest(query="x", top_k=-1), "top_k"),
        (pb.SearchRequest(query="x" * 10_001), "characters"),
    ],
)
async def test_wrong_searches_are_refused_with_the_reason(stub: Stub, request_: pb.SearchRequest, word: str) -> None:
    error = await refused(stub.Search(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert word in (error.details() or "")


async def test_any_query_is_safe(running: Running, stub: Stub) -> None:
    await put(running, document("docs/a", "A text about OR and NEAR.", name="a.txt"))
    for query in ('" OR *', "NEAR(a b)", "text:x AND (", "'; DROP TABLE x; --", "\x00", "🙂", "a" * 9000):
        response = await stub.Search(pb.SearchRequest(query=query))
        assert not response.missing, query


async def test_an_old_version_is_not_found(running: Running, stub: Stub) -> None:
    await put(running, document("docs/a", "One.", position=1))
    error = await refused(stub.GetDocument(pb.GetDocumentRequest(document_id="docs/a", version="0123")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error = await refused(stub.GetDocument(pb.GetDocumentRequest(document_id="docs/none")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_an_erasure_removes_the_subjects_rows_and_proves_it(running: Running, stub: Stub) -> None:
    anna = {"name": "Villa Anna", "city": "Split", "description": "Home of Anna Example.", "price": 1}
    await put(running, row(1, anna, position=1), row(2, {**anna, "name": "Villa Else"}, position=2))
    request = common_events_pb2.ErasureRequested(erasure_id="e1", records=["inventory/hotels/1"])
    request.requested_at.FromMilliseconds(ingest_time(row(1, anna, position=5)))
    await running.platform.log.append([message_of(topics.ERASURES, b"e1", request, 0)])
    answer = await acknowledged(running)
    assert (answer.removed["documents"], answer.removed["chunks"]) == (1, 1)
    assert set(answer.remaining.values()) == {0}
    assert {hit.document_id for hit in (await stub.Search(pb.SearchRequest(query="Anna"))).hits} == {
        "inventory/hotels/2"
    }
    await put(running, row(1, anna, position=1))  # a late delivery of the old change
    assert not (await stub.Search(pb.SearchRequest(query="Villa Anna", sources=["x"]))).hits
    error = await refused(stub.GetDocument(pb.GetDocumentRequest(document_id="inventory/hotels/1")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def ingest_time(change: ingest_pb2.Change) -> int:
    return change.occurred_at.ToMilliseconds()


async def acknowledged(running: Running) -> common_events_pb2.ErasureDone:
    """Wait for the embedder's answer to an erasure."""
    offset = 0
    while True:
        for found in await running.platform.log.read(topics.ERASURES_DONE, 0, offset):
            offset = found.offset + 1
            answer = common_events_pb2.ErasureDone.FromString(found.value or b"")
            if answer.service == "embedder":
                return answer
        await asyncio.wait_for(
            running.platform.log.wait_for([topics.ERASURES_DONE], {(topics.ERASURES_DONE, 0): offset}, 10), 11
        )


async def test_replay_conservation_and_census_hold(running: Running) -> None:
    await put(
        running,
        document("docs/a", REFUND, position=1, name="a.md"),
        document("docs/b.pdf", b"%PDF-broken", name="b.pdf"),
    )
    await put(
        running, document("docs/a", REFUND + "More.", position=2, name="a.md"), document("docs/c", "C.", position=3)
    )
    await put(running, document("docs/c", None, position=4))
    stub = operations_pb2_grpc.OperationsServiceStub(running.channel)
    for check in (await stub.Verify(operations_pb2.VerifyRequest())).checks:
        assert check.ok, f"{check.name}: {check.detail}"
    ids = [r.event_id for p in range(4) for r in await running.platform.log.read(topics.INDEXED, p, 0)]
    assert len(ids) == len(set(ids))
