"""ProfileService through gRPC: changes and assignments in, profiles out; embedded, and on Kafka and MongoDB."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from headwater.common.v1 import common_pb2, events_pb2 as common_events, operations_pb2, operations_pb2_grpc
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.profile.v1 import events_pb2, service_pb2, service_pb2_grpc
from services.kernel import topics
from services.kernel.errors import NotFoundError
from services.kernel.log import Message, Record, message_of, position_of
from services.kernel.service import Platform, Service
from services.profile.app import build
from tests.conftest import Running, RunService
from tests.contract.conftest import Tables, on
from tests.contract.test_ingest_api import records
from tests.engines.mongo import documents_in
from tests.unit.profile.examples import T0_MS, assigned, change

ADA_CRM, ADA_WEB, BOB_CRM = "crm/customers/1", "web/customers/7", "crm/customers/2"
ADA_IDS = [("email", "ada@example.com"), ("phone", "+442079460958")]
STORY = [
    change("snapshot", 1, {"name": "Ada", "email": "ADA@example.com", "income": 5, "opt_in": True}, at=1),
    change("insert", 7, {"name": "Ada L.", "nick": "al"}, at=2, source="web"),
    change("snapshot", 2, {"name": "Bob", "opt_in": False}, at=3),
    assigned(ADA_CRM, "p-ada", identifiers=ADA_IDS),
    assigned(ADA_WEB, "p-ada", identifiers=ADA_IDS[:1]),
    assigned(BOB_CRM, "p-bob", identifiers=[("email", "bob@example.com")]),
]


class Profiles:
    """The service under test, its log, and a client."""

    def __init__(self, running: Running) -> None:
        self.mongodb = running.platform.settings.table("mongodb")
        self.channel, self.log, self.runtime = running.channel, running.platform.log, running.runtime
        self.platform = running.platform
        self.stub = service_pb2_grpc.ProfileServiceStub(running.channel)

    async def feed(self, *messages: Message) -> service_pb2.AwaitPositionResponse:
        """Append, and wait until it has been taken into account."""
        position = await self.log.append(messages)
        return await self.stub.AwaitPosition(service_pb2.AwaitPositionRequest(position=position), timeout=20)

    async def get(self, kind: str, value: str, **request: str) -> service_pb2.GetProfileResponse:
        identifier = common_pb2.Identifier(kind=kind, value=value)
        return await self.stub.GetProfile(
            service_pb2.GetProfileRequest(
                identifier=identifier, tenant=request.get("tenant", ""), purpose=request.get("purpose", "")
            ),
            timeout=20,
        )

    def holding(self, text: str) -> set[str]:
        """The tables, or collections, and files of the service in which a text is, as it is."""
        found = {path.name for path in self.platform.database.folder.iterdir() if text.encode() in path.read_bytes()}
        if self.mongodb:
            documents = documents_in(self.mongodb["uri"], self.mongodb["database"])
            return found | {name for name, raw in documents if text.encode() in raw}
        reader = self.platform.database.reader
        tables = reader.execute("SELECT name FROM sqlite_master WHERE type='table' AND name GLOB 'profile_*'")
        for (name,) in tables.fetchall():
            if text in str(reader.execute(f"SELECT * FROM {name}").fetchall()):
                found.add(name)
        return found

    async def published(self, holds: Callable[[dict[str, events_pb2.Profile | None]], bool]) -> list[Record]:
        """All of the topic, once something holds of the newest: what is committed may be readable a little later."""
        while True:
            found = await records(self.log, topics.PROFILES)
            newest = {(each.key or b"").decode().partition("\x1f")[2]: each.value for each in found}
            if holds({key: v if v is None else events_pb2.Profile.FromString(v) for key, v in newest.items()}):
                return found
            await asyncio.sleep(0.02)


Start = Callable[..., Awaitable[Profiles]]


@pytest.fixture
def run_service(run_service: RunService, store_engine: Tables) -> RunService:
    """Run services with each adapter of the log and the stores; a cluster's identity resolution is away."""
    return on({"peers": {"identity_graph": "127.0.0.1:1"}, **store_engine}, run_service)


@pytest.fixture
async def start(run_service: RunService) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def run(*others: Callable[[Platform], Service], **table: Any) -> Profiles:
            running = await stack.enter_async_context(run_service(build, *others, settings_tables={"profile": table}))
            return Profiles(running)

        yield run


def values(profile: events_pb2.Profile) -> dict[str, Any]:
    return {name: orjson.loads(field.value_json) for name, field in profile.fields.items()}


async def test_a_profile_is_made_of_the_rows_of_every_source(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    found = (await profiles.get("email", "ada@example.com")).profile
    assert (found.tenant, found.profile_id) == ("default", "p-ada")
    assert values(found) == {"name": "Ada L.", "email": "ADA@example.com", "income": 5, "opt_in": True, "nick": "al"}
    assert [record.record for record in found.records] == [ADA_WEB, ADA_CRM]
    assert [(i.kind, i.value) for i in found.identifiers] == ADA_IDS
    assert (found.fields["name"].source, found.fields["email"].source) == ("web", "crm")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", " Ada@Example.com "),
        ("phone", "+44 (20) 7946-0958"),
        ("phone", "0044 20 7946 0958"),
        ("record", ADA_CRM),
        ("profile", "p-ada"),
    ],
)
async def test_a_profile_is_found_by_any_identifier_even_while_identity_resolution_is_away(
    start: Start, kind: str, value: str
) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    assert (await profiles.get(kind, value)).profile.profile_id == "p-ada"


async def test_one_that_is_not_there_is_named_with_the_cure(start: Start) -> None:
    profiles = await start()
    for kind, value in [("email", "nobody@example.com"), ("record", "crm/customers/9"), ("profile", "p-none")]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await profiles.get(kind, value)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert f"{kind}:{value}" in str(refused.value.details())
        assert "headwater balance" in str(refused.value.details())


async def test_a_request_that_names_nobody_is_refused(start: Start) -> None:
    profiles = await start()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await profiles.get("email", "")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_identifier_on_two_profiles_is_not_guessed_at(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY, assigned(BOB_CRM, "p-bob", 2, identifiers=ADA_IDS))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await profiles.get("email", "ada@example.com")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "p-ada, p-bob" in str(refused.value.details())


async def test_another_tenant_sees_nothing(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    for kind, value in [("email", "ada@example.com"), ("record", ADA_CRM), ("profile", "p-ada")]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await profiles.get(kind, value, tenant="other")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    freshness = await profiles.stub.GetFreshness(service_pb2.GetFreshnessRequest(tenant="other"))
    assert not freshness.freshness.sources


async def test_a_change_makes_a_new_version_and_a_repetition_does_not(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    before = (await profiles.get("profile", "p-ada")).profile
    await profiles.feed(*STORY)
    assert (await profiles.get("profile", "p-ada")).profile == before
    await profiles.feed(change("update", 1, {"name": "Ada K.", "email": "x"}, at=9))
    after = (await profiles.get("profile", "p-ada")).profile
    assert after.version > before.version
    assert values(after)["name"] == "Ada K."


async def test_a_deleted_row_leaves_the_profile_and_the_last_one_takes_it_away(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    await profiles.feed(change("delete", 7, at=10, source="web"))
    assert values((await profiles.get("profile", "p-ada")).profile)["name"] == "Ada"
    await profiles.feed(
        change("truncate", at=11, partition=0), *(change("truncate", at=11, partition=p) for p in (1, 2, 3))
    )
    for name in ("p-ada", "p-bob"):
        with pytest.raises(grpc.aio.AioRpcError):
            await profiles.get("profile", name)
    await profiles.published(lambda newest: newest == {"p-ada": None, "p-bob": None})


class Identity(identity_grpc.IdentityGraphServiceServicer):
    """Identity resolution as far as profiles need it: it knows that p-old is p-ada now, and nobody else."""

    async def Resolve(  # noqa: N802 - gRPC's name
        self, request: identity_pb2.ResolveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> identity_pb2.ResolveResponse:
        if request.identifier.value not in {"p-old", "ada@example.com"}:
            raise NotFoundError("nobody")
        return identity_pb2.ResolveResponse(profile_id="p-ada", aliases=["p-old"], suspect=True)


def build_identity(_platform: Platform) -> Service:
    servicer = Identity()  # type: ignore[abstract]  # the calls that nobody makes are left out
    return Service(
        name="identity_graph",
        register=lambda server: identity_grpc.add_IdentityGraphServiceServicer_to_server(servicer, server),
        service_names=["headwater.identity_graph.v1.IdentityGraphService"],
        erases=False,
    )


async def test_identity_resolution_is_asked_first_for_aliases_and_suspicion(start: Start) -> None:
    profiles = await start(build_identity)
    await profiles.feed(*STORY)
    found = (await profiles.get("profile", "p-old")).profile
    assert (found.profile_id, list(found.aliases), found.suspect) == ("p-ada", ["p-old"], True)


async def test_what_identity_resolution_does_not_know_is_not_found_whatever_the_own_look_up_says(start: Start) -> None:
    profiles = await start(build_identity)
    await profiles.feed(*STORY)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await profiles.get("email", "bob@example.com")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_reader_gets_what_its_purpose_allows(start: Start) -> None:
    profiles = await start(consent={"marketing": "opt_in"}, policies={"income": ["credit"]})
    await profiles.feed(*STORY)
    ada = await profiles.get("email", "ada@example.com", purpose="marketing")
    assert "name" in ada.profile.fields
    assert "income" not in ada.profile.fields
    assert list(ada.withheld) == ["income"]
    bob = await profiles.get("email", "bob@example.com", purpose="marketing")
    assert not bob.profile.fields
    assert "income" in (await profiles.get("email", "ada@example.com", purpose="credit")).profile.fields


async def test_a_watcher_sees_changes_from_now_on_and_departures(start: Start) -> None:
    profiles = await start(policies={"income": ["credit"]})
    await profiles.feed(*STORY)
    call = profiles.stub.WatchProfiles(service_pb2.WatchProfilesRequest(profile_id="p-bob", purpose="x"))
    await call.initial_metadata()
    await profiles.feed(change("update", 1, {"name": "not Bob"}, at=20))
    await profiles.feed(change("update", 2, {"name": "Bobby", "income": 1}, at=21))
    first = await asyncio.wait_for(call.read(), 20)
    assert isinstance(first, service_pb2.WatchProfilesResponse)
    assert (first.profile_id, values(first.profile)) == ("p-bob", {"name": "Bobby"})
    await profiles.feed(change("delete", 2, at=22))
    second = await asyncio.wait_for(call.read(), 20)
    assert isinstance(second, service_pb2.WatchProfilesResponse)
    assert (second.profile_id, second.HasField("profile")) == ("p-bob", False)
    call.cancel()


async def test_awaiting_a_position_answers_where_the_outputs_stand(start: Start) -> None:
    profiles = await start()
    answer = await profiles.feed(*STORY)
    ends = await profiles.log.end(topics.PROFILES)
    assert answer.outputs == position_of({(topics.PROFILES, p): end for p, end in enumerate(ends)})
    assert sum(ends) >= 2


async def test_a_position_that_is_not_reached_in_time_is_a_typed_refusal(start: Start) -> None:
    profiles = await start()
    far = position_of({(topics.CHANGES, 0): 1000})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await profiles.stub.AwaitPosition(service_pb2.AwaitPositionRequest(position=far), timeout=1)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "profile-rows" in str(refused.value.details())


async def test_freshness_tells_each_source_s_newest_event_heartbeat_and_position(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY, change("heartbeat", at=30, partition=0, entity=""))
    freshness = (await profiles.get("profile", "p-ada")).freshness
    crm, web = freshness.sources
    assert (crm.source, crm.position, crm.as_of.ToMilliseconds()) == ("crm", "3", T0_MS + 30_000)
    assert crm.heartbeat_at.ToMilliseconds() == T0_MS + 30_000
    assert (web.source, web.as_of.ToMilliseconds()) == ("web", T0_MS + 2000)
    assert freshness.behind == 0


async def test_a_rebuild_brings_back_the_same_state_and_the_same_versions_and_publishes_nothing(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY, change("update", 1, {"name": "Ada K."}, at=9))
    await profiles.feed(change("update", 1, {"name": "Ada"}, at=12), change("delete", 2, at=13))
    before = (await profiles.get("profile", "p-ada")).profile
    published = await profiles.published(lambda newest: newest == {"p-ada": before, "p-bob": None})
    operations = operations_pb2_grpc.OperationsServiceStub(profiles.channel)
    *_, last = [r async for r in operations.Rebuild(operations_pb2.RebuildRequest(stores=["profile"]), timeout=60)]
    assert last.hash_before == last.hash_after != ""
    assert (await profiles.get("profile", "p-ada")).profile == before
    assert await profiles.published(lambda _: True) == published


async def test_a_rebuild_after_a_change_of_rules_publishes_what_came_out_otherwise(
    run_service: RunService, tmp_path: Path
) -> None:
    async with run_service(build, data=tmp_path / "data") as running:
        await Profiles(running).feed(*STORY)
    fields = {"name": {"from": ["crm.customers.name", "web.customers.name"], "rule": "most_trusted"}}
    async with run_service(build, data=tmp_path / "data", settings_tables={"profile": {"fields": fields}}) as running:
        profiles = Profiles(running)
        operations = operations_pb2_grpc.OperationsServiceStub(profiles.channel)
        before = (await profiles.get("profile", "p-ada")).profile
        published = await profiles.published(lambda newest: newest.keys() == {"p-ada", "p-bob"})
        async for _ in operations.Rebuild(operations_pb2.RebuildRequest(stores=["profile"]), timeout=60):
            pass
        found = (await profiles.get("profile", "p-ada")).profile
        assert (values(before)["name"], values(found)["name"]) == ("Ada L.", "Ada")
        assert found.version > before.version
        after = await profiles.published(lambda newest: newest["p-ada"] == found)
        assert len(after) == len(published) + 1  # Bob is as he was


CANARY = "canary-7f3a"


def erasure(*records: str, time_ms: int = T0_MS + 100_000) -> Message:
    request = common_events.ErasureRequested(
        erasure_id="e1", tenant="default", profile_ids=["p-ada", "p-old"], records=records, reason="asked"
    )
    request.requested_at.FromMilliseconds(time_ms)
    return message_of(topics.ERASURES, b"e1", request, time_ms)


async def acknowledged(profiles: Profiles) -> dict[str, common_events.ErasureDone]:
    """The acknowledgements of the service, and embedded of the log, once they are there."""
    # In a cluster all services have to answer before the log does.
    expected = {"profile"} if profiles.mongodb else {"profile", "log"}
    while True:
        records = await profiles.log.read(topics.ERASURES_DONE, 0, 0)
        found = {done.service: done for done in (common_events.ErasureDone.FromString(r.value or b"") for r in records)}
        if expected <= found.keys():
            return found
        await profiles.log.wait_for([topics.ERASURES_DONE], {(topics.ERASURES_DONE, 0): len(records)}, 20)


async def test_an_erasure_removes_every_trace_and_proves_it(start: Start) -> None:
    profiles = await start()
    await profiles.feed(
        *STORY,
        change("insert", 3, {"name": CANARY, "mail": f"{CANARY}@x.org"}, at=30),
        assigned("crm/customers/3", "p-ada", identifiers=[("email", f"{CANARY}@x.org")]),
    )
    before = (await profiles.get("email", f"{CANARY}@x.org")).profile
    assert values(before)["name"] == CANARY
    await profiles.feed(erasure("crm/customers/3", ADA_CRM, ADA_WEB))
    answers = await asyncio.wait_for(acknowledged(profiles), 30)
    assert dict(answers["profile"].removed) == {"rows": 3, "documents": 1, "identifiers": 3}
    assert dict(answers["profile"].remaining) == {"rows": 0, "documents": 0, "identifiers": 0}
    with pytest.raises(grpc.aio.AioRpcError):
        await profiles.get("profile", "p-ada")
    assert (await profiles.get("profile", "p-bob")).profile.profile_id == "p-bob"
    assert profiles.holding(CANARY) == set()


async def test_what_was_erased_does_not_come_back_from_changes_that_were_on_their_way(start: Start) -> None:
    profiles = await start()
    await profiles.feed(*STORY)
    await profiles.feed(erasure(ADA_CRM, ADA_WEB))
    await asyncio.wait_for(acknowledged(profiles), 30)
    await profiles.feed(
        *STORY, change("update", 1, {"name": "again"}, at=99), change("delete", 7, at=101, source="web")
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await profiles.get("profile", "p-ada")
    assert "profile_rows" in profiles.holding(BOB_CRM)
    for record in (ADA_CRM, ADA_WEB):
        assert not {name for name in profiles.holding(record) if name.startswith("profile_")}
