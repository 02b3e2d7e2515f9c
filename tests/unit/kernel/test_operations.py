"""Balance, dead letters, rebuild, verify and erasure of the log, over gRPC, with a service made for the test."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from headwater.common.v1 import events_pb2, operations_pb2 as pb, operations_pb2_grpc
from services.kernel import topics
from services.kernel.erasure import acknowledgement, field_bytes
from services.kernel.errors import InvalidInputError, NotFoundError, from_rpc
from services.kernel.hashing import state_hash
from services.kernel.log import Message, Progress, Record, key_of, message_of
from services.kernel.processor import APPLIED, Decision, Processor
from services.kernel.service import Platform, ReadModel, Service
from tests.conftest import Running, RunService


class Latest:
    """Keeps the newest value of each key."""

    def __init__(self, platform: Platform) -> None:
        self._database = platform.database
        platform.database.migrate("latest", ["CREATE TABLE latest (key BLOB PRIMARY KEY, value BLOB)"])

    async def load(self, batch: Sequence[Record]) -> dict[bytes, bytes]:
        return {}

    async def save(self, state: dict[bytes, bytes], progress: Progress) -> None:
        self._database.unit.executemany("INSERT OR REPLACE INTO latest VALUES (?, ?)", state.items())

    async def reset(self) -> None:
        self._database.unit.execute("DELETE FROM latest")


def remember(state: dict[bytes, bytes], record: Record) -> Decision:
    if record.value == b"poison":
        raise ValueError("poison")
    state[record.key or b""] = record.value or b""
    return Decision(APPLIED.outcome, [Message(topics.PROFILES, record.key, record.value, "t", 0)])


def build(platform: Platform) -> Service:
    store = Latest(platform)

    def acknowledged(_state: dict[bytes, bytes], record: Record) -> Decision:
        request = events_pb2.ErasureRequested.FromString(record.value or b"")
        answer = events_pb2.ErasureDone(erasure_id=request.erasure_id, service="toy", related_ids=["a_7"])
        return Decision(APPLIED.outcome, [acknowledgement(request, answer)])

    async def hash_(connection: Any) -> str:
        return await state_hash(connection.execute("SELECT key, value FROM latest"))

    return Service(
        name="toy",
        register=lambda server: None,
        service_names=(),
        processors=[
            Processor("toy", (topics.CHANGES,), store, remember),
            Processor("toy-erasure", (topics.ERASURES,), store, acknowledged),
        ],
        stores=[ReadModel("latest", ("toy",), store.reset, hash_)],
    )


@pytest.fixture
async def toy(run_service: RunService) -> AsyncIterator[Running]:
    async with run_service(build) as running:
        yield running


def stub(running: Running) -> Any:
    return operations_pb2_grpc.OperationsServiceStub(running.channel)


def change(key: str, value: str) -> Message:
    return Message(topics.CHANGES, key_of("", key), value.encode(), "test", 1)


async def fill(running: Running, count: int = 100) -> None:
    position = await running.platform.log.append([change(f"k{n % 10}", f"v{n}") for n in range(count)])
    assert await running.platform.log.wait_committed(["toy"], position, 20)


async def test_the_balance_accounts_for_every_input(toy: Running) -> None:
    await fill(toy)
    response = await stub(toy).GetBalance(pb.GetBalanceRequest())
    assert response.balanced
    (group,) = [group for group in response.groups if group.group == "toy"]
    assert (group.inputs, group.applied, group.lag) == (100, 100, 0)


async def test_verify_replays_every_store_and_finds_it_the_same(toy: Running) -> None:
    await fill(toy)
    published = sum(await toy.platform.log.end(topics.PROFILES))
    checks = (await stub(toy).Verify(pb.VerifyRequest())).checks
    assert {check.name for check in checks} >= {"conservation toy", "replay latest"}
    assert all(check.ok for check in checks), checks
    assert sum(await toy.platform.log.end(topics.PROFILES)) == published  # nothing was published twice


async def test_verify_finds_a_store_that_is_not_what_the_log_says(toy: Running) -> None:
    await fill(toy)
    async with toy.platform.database.transaction() as unit:
        unit.execute("UPDATE latest SET value='tampered' WHERE key=?", (key_of("", "k1"),))
    checks = {check.name: check.ok for check in (await stub(toy).Verify(pb.VerifyRequest())).checks}
    assert not checks["replay latest"]
    checks = {check.name: check.ok for check in (await stub(toy).Verify(pb.VerifyRequest())).checks}
    assert checks["replay latest"]  # the rebuild has mended it


async def test_rebuild_tells_its_progress_and_refuses_an_unknown_store(toy: Running) -> None:
    await fill(toy)
    last = [response async for response in stub(toy).Rebuild(pb.RebuildRequest(stores=["latest"]))][-1]
    assert last.hash_before == last.hash_after != ""
    assert last.total == 100
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in stub(toy).Rebuild(pb.RebuildRequest(stores=["nothing"]))]
    assert isinstance(from_rpc(caught.value, "x"), InvalidInputError)
    assert "there are latest" in str(caught.value.details())


async def test_dead_letters_are_listed_and_put_back_once(toy: Running) -> None:
    await fill(toy, 10)
    position = await toy.platform.log.append([change("k1", "poison")])
    await toy.platform.log.wait_committed(["toy"], position, 20)
    (entry,) = (await stub(toy).ListDeadLetters(pb.ListDeadLettersRequest())).entries
    assert entry.dead_letter.error == "ValueError: poison"
    assert (await stub(toy).RetryDeadLetters(pb.RetryDeadLettersRequest(ids=[entry.id]))).retried == 1
    assert (await stub(toy).RetryDeadLetters(pb.RetryDeadLettersRequest())).retried in (
        0,
        1,
    )  # the new one, if there yet
    entries = (await stub(toy).ListDeadLetters(pb.ListDeadLettersRequest())).entries
    assert entries[0].retried
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(toy).RetryDeadLetters(pb.RetryDeadLettersRequest(ids=[999]))
    assert isinstance(from_rpc(caught.value, "x"), NotFoundError)


async def test_status_names_services_topics_and_stores(toy: Running) -> None:
    await fill(toy)
    status = await stub(toy).GetStatus(pb.GetStatusRequest())
    assert list(status.services) == ["toy"]
    assert {topic.topic: topic.records for topic in status.topics}[topics.CHANGES] == 100
    assert [store.store for store in status.stores] == ["latest"]


async def test_an_erasure_removes_the_subject_from_the_log_and_from_the_file(toy: Running) -> None:
    log = toy.platform.log
    await log.append([
        change("crm/customers/4", "canary-four"), change("crm/customers/42", "canary-forty-two"),
        Message(topics.RATINGS, key_of("", "a_7"), b"canary-rating", "t", 1),
        Message(topics.DECISIONS, key_of("", "p_1"), field_bytes("crm/customers/4") + b"canary-decision", "t", 1),
    ])  # fmt: skip
    request = events_pb2.ErasureRequested(
        erasure_id="e1", tenant="default", records=["crm/customers/4"], profile_ids=["p_9"]
    )
    await log.append([message_of(topics.ERASURES, b"e1", request, 1)])
    seen: dict[tuple[str, int], int] = {(topics.ERASURES_DONE, 0): 1}
    assert await log.wait_for([topics.ERASURES_DONE], seen, 30)
    answers = [events_pb2.ErasureDone.FromString(r.value or b"") for r in await log.read(topics.ERASURES_DONE, 0, 0)]
    receipt = next(answer for answer in answers if answer.service == "log")
    assert receipt.removed == {topics.CHANGES: 1, topics.PROFILES: 1, topics.RATINGS: 1, topics.DECISIONS: 1}
    assert not any(receipt.remaining.values())
    async with toy.platform.database.transaction() as unit:  # the toy's own table, which a real service would clear
        unit.execute("DELETE FROM latest WHERE key=?", (key_of("", "crm/customers/4"),))
    await toy.platform.database.scrub()
    raw = b"".join(path.read_bytes() for path in toy.platform.database.folder.iterdir())
    assert [word for word in (b"canary-four", b"canary-rating", b"canary-decision") if word in raw] == []
    assert b"canary-forty-two" in raw


async def test_a_record_key_is_not_found_within_a_longer_one() -> None:
    assert field_bytes("crm/customers/4") not in field_bytes("crm/customers/42")
    assert field_bytes("x" * 300)[:2] == bytes([300 & 0x7F | 0x80, 300 >> 7])
