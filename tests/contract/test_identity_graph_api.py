"""IdentityGraphService through gRPC, on a real embedded log: changes in, who is who out."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import orjson
import pytest

from headwater.common.v1 import common_pb2, events_pb2 as common_events, operations_pb2, operations_pb2_grpc
from headwater.identity_graph.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.identity_graph.app import build
from services.kernel import topics
from services.kernel.errors import from_rpc
from services.kernel.log import Message, Record, key_of, message_of, position_of
from services.kernel.records import record_key
from services.kernel.sqlite_log import SqliteLog
from tests.conftest import Running, RunService
from tests.engines import Kafka
from tests.engines.neo4j import Neo4jServer, neo4j_engine
from tests.laws.identity_neo4j import wipe

__all__ = ["neo4j_engine"]

T0_MS = 1_700_000_000_000
SETTINGS = {"identity_graph": {"kinds": {"device": {"records_max": 3}}}}
Operation = ingest_pb2.Operation


class Graph:
    """The service under test, and a client."""

    def __init__(self, running: Running) -> None:
        self.log, self.runtime, self.channel = running.platform.log, running.runtime, running.channel
        self.stub = service_pb2_grpc.IdentityGraphServiceStub(running.channel)
        self.operations = operations_pb2_grpc.OperationsServiceStub(running.channel)
        self._position = 0
        self.embedded = isinstance(running.platform.log, SqliteLog)
        # Embedded, the log is erased once the services of the process have answered; in a cluster all five must.
        self._erasing = {"identity_graph", "log"} if self.embedded else {"identity_graph"}

    def change(
        self, record: str, row: dict[str, Any] | None, *, tenant: str = "", at: int | None = None, position: int = 0
    ) -> Message:
        """A change of `source/entity/id`; no row is a delete."""
        source, entity, key = record.split("/")
        self._position += 1
        number = position or self._position
        event = ingest_pb2.Change(
            tenant=tenant, source=source, entity=entity, record=record_key(source, entity, {"id": key}),
            key_json=orjson.dumps({"id": key}).decode(), position=f"pg:{source}:{number:020d}",
            operation=Operation.OPERATION_DELETE if row is None else Operation.OPERATION_UPDATE,
            source_position=str(number),
        )  # fmt: skip
        if row is not None:
            event.after_json = orjson.dumps({"id": key, **row}).decode()
        at_ms = T0_MS + (self._position if at is None else at) * 1000
        event.occurred_at.FromMilliseconds(at_ms)
        return message_of(topics.CHANGES, key_of(tenant, event.record), event, at_ms)

    def heartbeat(self, source: str, at: int) -> list[Message]:
        return self._everywhere(ingest_pb2.Change(source=source, operation=Operation.OPERATION_HEARTBEAT), at)

    def truncation(self, source: str, entity: str) -> list[Message]:
        self._position += 1
        position = f"pg:{source}:{self._position:020d}"
        change = ingest_pb2.Change(
            source=source, entity=entity, operation=Operation.OPERATION_TRUNCATE, position=position
        )
        return self._everywhere(change, self._position)

    def _everywhere(self, event: ingest_pb2.Change, at: int) -> list[Message]:
        at_ms = T0_MS + at * 1000
        event.occurred_at.FromMilliseconds(at_ms)
        partitions = range(self.log.partitions(topics.CHANGES))
        return [message_of(topics.CHANGES, b"", event, at_ms, partition) for partition in partitions]

    async def feed(self, *messages: Message) -> pb.AwaitPositionResponse:
        """Append, and wait until it has been taken into account."""
        position = await self.log.append(messages)
        return await self.stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=20)

    async def put(self, **rows: dict[str, Any]) -> None:
        await self.feed(*(self.change(name.replace("_", "/"), row) for name, row in rows.items()))

    async def resolve(self, kind: str, value: str, tenant: str = "") -> pb.ResolveResponse:
        request = pb.ResolveRequest(tenant=tenant, identifier=common_pb2.Identifier(kind=kind, value=value))
        return await self.stub.Resolve(request, timeout=20)

    async def clusters(self, tenant: str = "") -> list[tuple[str, str]]:
        request = pb.ListAssignmentsRequest(tenant=tenant)
        return [(row.record, row.profile_id) async for row in self.stub.ListAssignments(request)]

    async def explain(self, left: str, right: str) -> pb.ExplainResponse:
        sides = [
            common_pb2.Identifier(kind=kind, value=value) for kind, value in (s.split(":", 1) for s in (left, right))
        ]
        return await self.stub.Explain(pb.ExplainRequest(left=sides[0], right=sides[1]), timeout=20)

    async def read(self, topic: str) -> list[Record]:
        return [r for p in range(self.log.partitions(topic)) for r in await self.log.read(topic, p, 0)]

    async def decided(self) -> list[events_pb2.IdentityDecided]:
        return [events_pb2.IdentityDecided.FromString(r.value or b"") for r in await self.read(topics.DECISIONS)]

    async def erase(self, kind: str, value: str) -> pb.GetErasureResponse:
        identifier = common_pb2.Identifier(kind=kind, value=value)
        response = await self.stub.Erase(pb.EraseRequest(identifier=identifier, reason="asked"), timeout=20)
        while True:
            state = await self.stub.GetErasure(pb.GetErasureRequest(erasure_id=response.erasure_id), timeout=20)
            if self._erasing <= {answer.service for answer in state.acknowledgements}:
                return state
            await asyncio.sleep(0.02)


Tables = dict[str, dict[str, Any]]


@pytest.fixture(params=["sqlite", pytest.param("neo4j", marks=(pytest.mark.slow, pytest.mark.engine))])
async def engines(request: pytest.FixtureRequest) -> Tables:
    """The settings of where log and graph are: embedded, or in Kafka and Neo4j, in which nothing is yet."""
    if request.param == "sqlite":
        return {}
    kafka: Kafka = request.getfixturevalue("kafka_engine")
    neo4j: Neo4jServer = request.getfixturevalue("neo4j_engine")
    await wipe(neo4j.uri)
    return {
        "kafka": {"bootstrap_servers": kafka.address, "prefix": f"{uuid.uuid4().hex}.", "replication": 1},
        "neo4j": {"uri": neo4j.uri},
    }


@pytest.fixture
async def graph(run_service: RunService, engines: Tables) -> AsyncIterator[Graph]:
    async with AsyncExitStack() as stack:
        yield Graph(await stack.enter_async_context(run_service(build, settings_tables={**SETTINGS, **engines})))


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(from_rpc(caught.value, "call"))


async def test_records_that_share_an_identifier_are_one_person(graph: Graph) -> None:
    await graph.put(
        crm_customers_1={"email": "Ada@Example.com ", "phone": "(415) 555-0101"},
        web_signups_7={"email": "ada@example.com"},
        web_signups_8={"phone": "+1 415 555 0101"},
        web_signups_9={"email": "bob@example.com"},
    )
    by_email = await graph.resolve("email", " ADA@example.com")
    assert list(by_email.records) == ["crm/customers/1", "web/signups/7", "web/signups/8"]
    assert [(i.kind, i.value) for i in by_email.identifiers] == [
        ("account", "crm/customer/1"), ("email", "ada@example.com"), ("phone", "+14155550101"),
    ]  # fmt: skip
    assert not by_email.suspect
    for kind, value in (("phone", "415-555-0101"), ("record", "web/signups/8"), ("profile", by_email.profile_id)):
        assert await graph.resolve(kind, value) == by_email
    assert (await graph.resolve("email", "bob@example.com")).profile_id != by_email.profile_id


async def test_a_merge_keeps_the_older_id_and_a_split_gives_the_former_one_back(graph: Graph) -> None:
    await graph.put(crm_customers_1={"email": "ada@x.io"}, web_signups_7={"phone": "+14155550101"})
    older = (await graph.resolve("record", "crm/customers/1")).profile_id
    younger = (await graph.resolve("record", "web/signups/7")).profile_id
    before = await graph.clusters()
    await graph.put(support_tickets_5={"email": "ada@x.io", "phone": "+14155550101"})
    merged = await graph.resolve("profile", younger)
    assert merged.profile_id == older
    assert younger in merged.aliases
    assert len(merged.records) == 3
    await graph.feed(graph.change("support/tickets/5", None))
    assert await graph.clusters() == before
    kinds = [decision.kind for decision in await graph.decided()]
    assert events_pb2.DECISION_KIND_MERGED in kinds
    assert events_pb2.DECISION_KIND_SPLIT in kinds


async def test_assignments_are_listed_in_the_order_of_records_and_of_one_tenant_only(graph: Graph) -> None:
    rows = {f"crm_customers_{n}": {"email": f"p{n}@x.io"} for n in range(1200)}
    await graph.put(**rows)
    await graph.feed(graph.change("crm/customers/1", {"email": "p1@x.io"}, tenant="acme"))
    listed = await graph.clusters()
    assert [record for record, _ in listed] == sorted(f"crm/customers/{n}" for n in range(1200))
    assert len({profile for _, profile in listed}) == 1200
    acme = await graph.clusters("acme")
    assert [record for record, _ in acme] == ["crm/customers/1"]
    assert acme[0][1] not in {profile for _, profile in listed}
    assert (await graph.resolve("email", "p1@x.io", "acme")).profile_id == acme[0][1]
    code, _ = await refusal(graph.resolve("profile", acme[0][1]))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_consumer_of_assignments_knows_what_the_graph_says(graph: Graph) -> None:
    await graph.put(crm_customers_1={"email": "ada@x.io"}, web_signups_7={"email": "ada@x.io"})
    await graph.feed(graph.change("web/signups/7", {"email": "bob@x.io"}), graph.change("crm/customers/1", None))
    newest: dict[str, events_pb2.RecordAssigned] = {}
    for record in await graph.read(topics.ASSIGNMENTS):
        event = events_pb2.RecordAssigned.FromString(record.value or b"")
        known = newest.get(event.record)
        assert known is None or event.generation > known.generation
        newest[event.record] = event
    told = {record: event.profile_id for record, event in newest.items() if event.profile_id}
    assert told == dict(await graph.clusters())
    assert newest["crm/customers/1"].profile_id == ""
    assert newest["web/signups/7"].first_seen.ToMilliseconds() == T0_MS + 2000


async def test_explains_by_the_shortest_path_of_evidence(graph: Graph) -> None:
    await graph.put(
        a_rows_1={"email": "a@x.io"}, b_rows_1={"email": "a@x.io", "phone": "+14155550101"},
        c_rows_1={"phone": "+14155550101"}, d_rows_1={"email": "d@x.io"},
    )  # fmt: skip
    told = await graph.explain("record:a/rows/1", "phone:+14155550101")
    assert told.same
    assert told.left_profile_id == told.right_profile_id
    far = await graph.explain("record:a/rows/1", "record:c/rows/1")
    steps = [(s.record, s.identifier.kind, s.identifier.value, s.next_record) for s in far.path]
    assert steps == [
        ("a/rows/1", "email", "a@x.io", "b/rows/1"), ("b/rows/1", "phone", "+14155550101", "c/rows/1"),
    ]  # fmt: skip
    apart = await graph.explain("record:a/rows/1", "record:d/rows/1")
    assert not apart.same
    assert not apart.path
    assert "no identifier" in apart.notes[0]


async def test_explains_quarantine_junk_and_conflicts(graph: Graph) -> None:
    await graph.put(**{f"web_visits_{n}": {"device_id": "kiosk-1", "email": f"v{n}@x.io"} for n in range(5)})
    apart = await graph.explain("record:web/visits/1", "record:web/visits/2")
    assert not apart.same
    assert "device kiosk-1" in apart.notes[0]
    assert "quarantined" in apart.notes[0]
    code, words = await refusal(graph.resolve("device", "kiosk-1"))
    assert (code, "quarantined" in words) == (grpc.StatusCode.NOT_FOUND, True)
    await graph.put(a_rows_1={"email": "test@x.io", "phone": "+14155550101"}, a_rows_2={"email": "test@x.io"})
    assert "test@x.io" in (await graph.explain("record:a/rows/1", "record:a/rows/2")).notes[0]
    await graph.put(
        b_rows_1={"email": "family@x.io", "ssn": "123-45-6780"}, b_rows_2={"email": "family@x.io", "ssn": "987-65-4329"}
    )
    conflict = await graph.explain("record:b/rows/1", "record:b/rows/2")
    assert not conflict.same
    assert "different values of national" in conflict.notes[0]
    family = await graph.resolve("email", "family@x.io")
    assert family.suspect
    kinds = {decision.kind for decision in await graph.decided()}
    assert {events_pb2.DECISION_KIND_QUARANTINED, events_pb2.DECISION_KIND_REFUSED} <= kinds


@pytest.mark.parametrize(
    ("kind", "value", "code", "words"),
    [
        ("email", "nemo@x.io", grpc.StatusCode.NOT_FOUND, "nobody is known"),
        ("email", "not an address", grpc.StatusCode.INVALID_ARGUMENT, "is no email"),
        ("email", "null@x.io", grpc.StatusCode.NOT_FOUND, "to say nothing"),
        ("shoe_size", "42", grpc.StatusCode.INVALID_ARGUMENT, "no kind"),
        ("", "", grpc.StatusCode.INVALID_ARGUMENT, "kind:value"),
        ("record", "crm/customers/404", grpc.StatusCode.NOT_FOUND, "nobody"),
        ("profile", "p_none", grpc.StatusCode.NOT_FOUND, "nobody"),
    ],
)
async def test_says_why_nobody_is_found(graph: Graph, kind: str, value: str, code: grpc.StatusCode, words: str) -> None:
    found, text = await refusal(graph.resolve(kind, value))
    assert (found, words in text) == (code, True), text


async def test_erasure_removes_records_former_records_and_what_the_log_holds(graph: Graph) -> None:
    await graph.put(
        crm_customers_1={"email": "ada@x.io", "name": "Ada"}, web_signups_7={"email": "ada@x.io"},
        web_signups_8={"email": "ada@x.io"}, crm_customers_2={"email": "bob@x.io"},
    )  # fmt: skip
    await graph.feed(graph.change("web/signups/8", None))
    certificate = await graph.erase("email", "ada@x.io")
    answer = next(a for a in certificate.acknowledgements if a.service == "identity_graph")
    assert dict(answer.removed) == {"records": 2, "former records": 1, "identifiers": 3}
    assert set(answer.remaining) == {"records", "contents", "identifiers", "former records"}
    assert not any(answer.remaining.values())
    assert set(certificate.waiting_for) - {"log"} == {"profile", "embedder", "rag_gateway", "feedback"}
    assert len(certificate.out_of_reach) > 2
    assert [record for record, _ in await graph.clusters()] == ["crm/customers/2"]
    for topic in (topics.CHANGES, topics.ASSIGNMENTS, topics.DECISIONS) if graph.embedded else ():
        assert not [r for r in await graph.read(topic) if b"ada@x.io" in (r.value or b"")], topic
    code, _ = await refusal(graph.resolve("email", "ada@x.io"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_after_an_erasure_stale_changes_bring_nothing_back_and_new_ones_are_new_data(graph: Graph) -> None:
    await graph.put(crm_customers_1={"email": "ada@x.io"}, web_signups_7={"email": "ada@x.io"})
    before = (await graph.resolve("email", "ada@x.io")).profile_id
    await graph.erase("email", "ada@x.io")
    await graph.feed(graph.change("crm/customers/1", {"email": "ada@x.io"}, position=1))
    assert await graph.clusters() == []
    await graph.feed(graph.change("crm/customers/1", {"email": "ada@x.io"}, at=50))
    assert await graph.clusters() == [("crm/customers/1", before)]
    event = [events_pb2.RecordAssigned.FromString(r.value) for r in await graph.read(topics.ASSIGNMENTS) if r.value][-1]
    assert event.first_seen.ToMilliseconds() == T0_MS + 50_000


async def test_a_rebuild_gives_the_same_graph_and_later_assignments_are_newer(graph: Graph) -> None:
    await graph.put(
        crm_customers_1={"email": "ada@x.io"}, web_signups_7={"phone": "+14155550101"},
        web_signups_8={"email": "ada@x.io", "phone": "+14155550101"}, web_signups_9={"email": "gone@x.io"},
    )  # fmt: skip
    await graph.feed(graph.change("web/signups/8", None), graph.change("web/signups/9", {"email": "cid@x.io"}))
    await graph.erase("email", "cid@x.io")
    before, clusters = await graph.read(topics.ASSIGNMENTS), await graph.clusters()
    last = [
        response
        async for response in graph.operations.Rebuild(operations_pb2.RebuildRequest(stores=["identity_graph"]))
    ][-1]
    assert last.hash_before == last.hash_after
    assert await graph.clusters() == clusters
    assert await graph.read(topics.ASSIGNMENTS) == before
    await graph.feed(graph.change("web/signups/7", {"phone": "+14155550199"}))
    *former, newest = [
        event.generation
        for record in await graph.read(topics.ASSIGNMENTS)
        if (event := events_pb2.RecordAssigned.FromString(record.value or b"")).record == "web/signups/7"
    ]
    assert newest > max(former)
    await graph.feed(*graph.truncation("web", "signups"))
    assert [record for record, _ in await graph.clusters()] == ["crm/customers/1"]


async def test_freshness_tells_what_sources_said_and_what_waits(graph: Graph) -> None:
    await graph.feed(graph.change("crm/customers/1", {"email": "ada@x.io"}, at=5), *graph.heartbeat("crm", 9))
    report = (await graph.stub.GetFreshness(pb.GetFreshnessRequest())).freshness
    assert (report.store, report.behind) == ("identity_graph", 0)
    (source,) = report.sources
    assert (source.source, source.position) == ("crm", "1")
    assert (source.as_of.ToMilliseconds(), source.heartbeat_at.ToMilliseconds()) == (T0_MS + 9000, T0_MS + 9000)
    assert not (await graph.stub.GetFreshness(pb.GetFreshnessRequest(tenant="acme"))).freshness.sources
    loop = next(loop for loop in graph.runtime.loops if loop.processor.name == "identity-graph")
    await loop.pause()
    position = await graph.log.append([graph.change("crm/customers/2", {"email": "bob@x.io"}, at=7)])
    report = (await graph.stub.GetFreshness(pb.GetFreshnessRequest())).freshness
    assert (report.behind, report.sources[0].as_of.ToMilliseconds()) == (1, T0_MS + 7000)
    code, words = await refusal(graph.stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED, words
    loop.resume()
    reached = await graph.stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=20)
    assert {place.topic for place in reached.outputs.offsets} == {topics.ASSIGNMENTS}
    if graph.embedded:  # else ends of transactions have offsets, too
        assert sum(place.offset for place in reached.outputs.offsets) == 2


async def test_what_cannot_be_read_is_set_aside_and_what_is_no_persons_leaves_no_trace(graph: Graph) -> None:
    kind = ingest_pb2.Change.DESCRIPTOR.full_name
    await graph.feed(
        Message(topics.CHANGES, b"k", b"\xff\xff", kind, T0_MS),
        graph.change("inventory/hotels/1", {"name": "Ritz", "phone": "+14155550101"}),
        graph.change("inventory/fares/1", {"price": 3}),
        graph.change("crm/customers/1", {"email": "ada@x.io"}),
    )
    assert [record for record, _ in await graph.clusters()] == ["crm/customers/1"]
    letters = await graph.read(topics.DEAD_LETTERS)
    assert [common_events.DeadLetter.FromString(r.value or b"").stage for r in letters] == ["identity-graph"]
    balance = await graph.operations.GetBalance(operations_pb2.GetBalanceRequest())
    assert balance.balanced
    group = next(g for g in balance.groups if g.group == "identity-graph")
    assert (group.applied, group.dead_lettered) == (3, 1)


async def test_other_settings_work_everything_out_anew_and_tell_of_it(run_service: RunService) -> None:
    rows = {
        "crm_customers_1": {"email": "ada@x.io", "card": "A-1"}, "web_signups_7": {"card": "a-1"},
        "web_hotels_1": {"phone": "+14155550101"}, "web_signups_8": {"phone": "+14155550101"},
    }  # fmt: skip
    columns = {"card": "loyalty"}
    settings = {
        "entities": {"crm/customers": {"columns": columns}, "web/signups": {"columns": columns, "person": True}}
    }
    async with run_service(build, settings_tables={"identity_graph": {"entities": {"web/hotels": {}}}}) as running:
        graph = Graph(running)
        await graph.put(**rows)
        before = dict(await graph.clusters())
        assert set(before) == {"crm/customers/1", "web/signups/8", "web/hotels/1"}
        assert before["web/signups/8"] == before["web/hotels/1"]
    async with run_service(build, settings_tables={"identity_graph": settings}) as running:
        graph = Graph(running)
        ends = {(topics.CHANGES, p): end for p, end in enumerate(await graph.log.end(topics.CHANGES))}
        await graph.stub.AwaitPosition(pb.AwaitPositionRequest(position=position_of(ends)), timeout=20)
        after = dict(await graph.clusters())
        assert set(after) == {"crm/customers/1", "web/signups/7", "web/signups/8"}
        assert after["crm/customers/1"] == after["web/signups/7"] == before["crm/customers/1"]
        told: dict[str, str] = {}
        while told.get("web/hotels/1") != "":
            for record in await graph.read(topics.ASSIGNMENTS):
                event = events_pb2.RecordAssigned.FromString(record.value or b"")
                told[event.record] = event.profile_id
            await asyncio.sleep(0.02)
        assert {record: profile for record, profile in told.items() if profile} == after
