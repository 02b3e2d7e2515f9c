"""Balance, dead letters, rebuild, verify and erasure of the log, over gRPC, with a service made for the test."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from headwater.common.v1 import events_pb2, operations_pb2 as pb, operations_pb2_grpc
from services.kernel import topics
from services.kernel.erasure import acknowledgement, field_bytes, naming
from services.kernel.errors import InvalidInputError, NotFoundError, UnavailableError, from_rpc
from services.kernel.hashing import state_hash
from services.kernel.log import Message, Progress, Record, key_of, message_of
from services.kernel.processor import APPLIED, Decision, Processor
from services.kernel.service import Platform, ReadModel, Service
from tests.conftest import Running, RunService


class Latest:
    """Keeps the newest value of each key."""

    def __init__(self, platform: Platform) -> None:
        self._database = platform.database
        self.was_reset = False
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


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Once set, what has been reset in a rebuild is not filled again until it is cleared."""
    stop, reset, load = asyncio.Event(), Latest.reset, Latest.load

    async def load_or_fail(self: Latest, batch: Sequence[Record]) -> dict[bytes, bytes]:
        if stop.is_set() and self.was_reset:
            raise UnavailableError("the store is away")
        return await load(self, batch)

    async def reset_and_note(self: Latest) -> None:
        await reset(self)
        self.was_reset = True

    monkeypatch.setattr(Latest, "load", load_or_fail)
    monkeypatch.setattr(Latest, "reset", reset_and_note)
    return stop


async def begin_to_rebuild(running: Running) -> Any:
    """Return the call of a rebuild that has emptied the store."""
    call = stub(running).Rebuild(pb.RebuildRequest(stores=["latest"]))
    assert (await call.read()).replayed == 0
    return call


async def published(running: Running) -> int:
    return sum(await running.platform.log.end(topics.PROFILES))


def rows(running: Running) -> int:
    return int(running.platform.database.reader.execute("SELECT count(*) FROM latest").fetchone()[0])


async def test_a_rebuild_whose_caller_goes_away_comes_to_its_end_and_publishes_nothing_twice(
    interrupted: asyncio.Event, toy: Running
) -> None:
    await fill(toy, 10)
    before = await published(toy)
    interrupted.set()
    (await begin_to_rebuild(toy)).cancel()
    appending = asyncio.create_task(toy.platform.log.append([change("k99", "new")]))
    await asyncio.sleep(0.1)
    interrupted.clear()
    assert await toy.platform.log.wait_committed(["toy"], await appending, 20)
    assert rows(toy) == 11
    assert await published(toy) == before + 1


async def test_a_rebuild_that_the_end_of_the_process_cuts_off_goes_on_when_it_starts_again(
    run_service: RunService, interrupted: asyncio.Event
) -> None:
    async with run_service(build) as running:
        await fill(running, 10)
        before = await published(running)
        interrupted.set()
        await begin_to_rebuild(running)
    interrupted.clear()
    async with run_service(build) as running:
        position = await running.platform.log.append([change("k99", "new")])
        assert await running.platform.log.wait_committed(["toy"], position, 20)
        assert rows(running) == 11
        assert await published(running) == before + 1
        checks = (await stub(running).Verify(pb.VerifyRequest())).checks
        assert all(check.ok for check in checks), checks


async def test_what_comes_in_while_stores_are_verified_is_published_once(toy: Running) -> None:
    done = asyncio.Event()

    async def push() -> int:
        number = 0
        while not done.is_set():
            await toy.platform.log.append([change(f"k{number}", "v")], durable=False)
            number += 1
        return number

    pushing = asyncio.create_task(push())
    for _ in range(3):
        checks = (await stub(toy).Verify(pb.VerifyRequest())).checks
        assert all(check.ok for check in checks), checks
    done.set()
    number = await pushing
    await toy.runtime.operations.settle()
    assert await published(toy) == number == rows(toy)


async def test_the_balance_holds_after_an_erasure_and_a_rebuild(toy: Running) -> None:
    await fill(toy)
    await toy.platform.log.erase(lambda record: record.key == key_of("", "k3"), ())
    for _ in range(2):  # the second time after a replay
        checks = {check.name: check for check in (await stub(toy).Verify(pb.VerifyRequest())).checks}
        assert checks["conservation toy"].ok, checks


async def test_an_erasure_takes_nothing_of_other_tenants_and_nothing_for_a_short_id(toy: Running) -> None:
    erased = naming("default", {"crm/customers/4", "1"})

    def record(key: bytes, value: bytes) -> Record:
        return Record(topics.DECISIONS, 0, 0, key, value, "t", "", 0)

    assert erased(record(key_of("", "crm/customers/4"), b""))
    assert erased(record(key_of("", "p_7"), b"\x0a" + field_bytes("crm/customers/4")))
    assert erased(record(key_of("", "1"), b""))
    assert erased(record(b"theirs", field_bytes("crm/customers/4")))
    assert not erased(record(key_of("other", "p_7"), field_bytes("crm/customers/4")))
    assert not erased(record(key_of("", "p_7"), b"\x0a" + field_bytes("1")))
    assert not erased(record(key_of("", "p_7"), field_bytes("crm/customers/5") + field_bytes("crm/customers/42")))


async def test_two_who_retry_at_once_put_a_dead_letter_back_once(toy: Running) -> None:
    position = await toy.platform.log.append([change("k1", "poison")])
    assert await toy.platform.log.wait_committed(["toy"], position, 20)
    request = pb.RetryDeadLettersRequest(ids=[1])
    answers = await asyncio.gather(*(stub(toy).RetryDeadLetters(request) for _ in range(5)))
    assert sum(answer.retried for answer in answers) == 1
    records = await toy.platform.log.read(topics.CHANGES, position.offsets[0].partition, 0)
    assert len(records) == 2
    assert records[0].event_id == records[1].event_id


async def test_calls_are_answered_when_the_services_have_started(run_service: RunService) -> None:
    states: list[str] = []

    def slow(platform: Platform) -> Service:
        async def start() -> None:
            async with grpc.aio.insecure_channel(platform.peers._addresses("slow")) as channel:
                call = operations_pb2_grpc.OperationsServiceStub(channel).GetBalance(
                    pb.GetBalanceRequest(), timeout=0.5
                )
                states.append((await asyncio.gather(call, return_exceptions=True))[0].__class__.__name__)

        return Service(name="slow", register=lambda server: None, service_names=(), start=start)

    async with run_service(slow) as running:
        await stub(running).GetBalance(pb.GetBalanceRequest())
    assert states == ["AioRpcError"]


async def test_a_start_that_fails_ends(run_service: RunService) -> None:
    def failing(platform: Platform) -> Service:
        async def start() -> None:
            raise UnavailableError("it is not there")

        return Service(name="failing", register=lambda server: None, service_names=(), start=start)

    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError, match="it is not there"):
            async with run_service(build, failing):
                pass
