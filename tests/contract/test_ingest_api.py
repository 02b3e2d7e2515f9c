"""IngestService through real gRPC: what is acknowledged is in the log, the embedded one and Kafka."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from headwater.common.v1 import events_pb2 as common_pb2, operations_pb2, operations_pb2_grpc
from headwater.ingest.v1 import events_pb2, service_pb2, service_pb2_grpc
from services.ingest.app import build
from services.kernel import topics
from services.kernel.log import Log, Record, decode_token, key_of
from services.kernel.settings import Settings
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from tests.conftest import Running, RunService
from tests.contract.conftest import Tables, on

SAMPLES = Path(__file__).parents[1] / "data" / "ingest" / "debezium"
PARTITIONS = 4


@pytest.fixture
def run_service(run_service: RunService, log_engine: Tables) -> RunService:
    """Run services with each adapter of the log."""
    return on(log_engine, run_service)


@pytest.fixture
async def running(run_service: RunService) -> AsyncIterator[Running]:
    async with run_service(build) as services:
        yield services


@pytest.fixture
def stub(running: Running) -> Any:
    return service_pb2_grpc.IngestServiceStub(running.channel)


async def records(log: Log, topic: str) -> list[Record]:
    """All records of a topic, partition by partition."""
    found: list[Record] = []
    for partition in range(log.partitions(topic)):
        offset = 0
        while some := await log.read(topic, partition, offset):
            offset = some[-1].offset + 1
            found += some
    return found


async def changes(log: Log) -> list[events_pb2.Change]:
    return [events_pb2.Change.FromString(record.value or b"") for record in await records(log, topics.CHANGES)]


async def dead_letters(log: Log) -> list[common_pb2.DeadLetter]:
    kind = common_pb2.DeadLetter.DESCRIPTOR.full_name
    letters = [record for record in await records(log, topics.DEAD_LETTERS) if record.type == kind]
    return [common_pb2.DeadLetter.FromString(record.value or b"") for record in letters]


def change(number: int = 42, **changed: Any) -> events_pb2.Change:
    fields = {
        "source": "crm",
        "entity": "customers",
        "operation": events_pb2.OPERATION_UPDATE,
        "key_json": f'{{"id": {number}}}',
        "after_json": f'{{"id":{number},"tier":"gold"}}',
    }
    return events_pb2.Change(**{**fields, **changed})


async def push(stub: Any, *requests: service_pb2.PushRequest) -> list[service_pb2.PushResponse]:
    return [response async for response in stub.Push(iter(requests))]


async def push_raw(stub: Any, lines: Sequence[bytes], **fields: Any) -> service_pb2.PushRawResponse:
    request = service_pb2.PushRawRequest(records=lines, **fields)
    responses: list[service_pb2.PushRawResponse] = [response async for response in stub.PushRaw(iter([request]))]
    (response,) = responses
    return response


def native(number: int, **changed: Any) -> bytes:
    event = {"source": "crm", "entity": "t", "op": "insert", "key": {"id": number}, "after": {"id": number}}
    return orjson.dumps({**event, **changed})


# Push ---------------------------------------------------------------------------------------------------------------


async def test_a_pushed_change_is_completed_and_appended_under_its_record(running: Running, stub: Any) -> None:
    (response,) = await push(stub, service_pb2.PushRequest(changes=[change(position="7")], request_id="r1"))
    assert (response.request_id, response.accepted) == ("r1", 1)
    (record,) = await records(running.platform.log, topics.CHANGES)
    assert record.key == key_of("default", "crm/customers/42")
    assert record.type == "headwater.ingest.v1.Change"
    (found,) = await changes(running.platform.log)
    assert (found.tenant, found.record, found.key_json) == ("default", "crm/customers/42", '{"id":42}')
    assert found.position == "native:crm:00000000000000000007"
    assert found.source_position == "7"
    assert record.timestamp_ms == found.occurred_at.ToMilliseconds() > 0


async def test_a_pushed_position_that_is_no_number_has_a_domain_of_its_own(running: Running, stub: Any) -> None:
    await push(stub, service_pb2.PushRequest(changes=[change(position="file.9/10")]))
    (found,) = await changes(running.platform.log)
    assert found.position.startswith("native-text:crm:file.")


async def test_the_time_of_a_change_becomes_the_time_of_its_record(running: Running, stub: Any) -> None:
    pushed = change()
    pushed.occurred_at.FromMilliseconds(1_795_456_757_601)
    await push(stub, service_pb2.PushRequest(changes=[pushed]))
    (record,) = await records(running.platform.log, topics.CHANGES)
    assert record.timestamp_ms == 1_795_456_757_601


async def test_requests_are_acknowledged_in_order_and_the_last_token_covers_all(running: Running, stub: Any) -> None:
    requests = [service_pb2.PushRequest(changes=[change(n)], request_id=str(n)) for n in range(20)]
    responses = await push(stub, *requests)
    assert [response.request_id for response in responses] == [str(n) for n in range(20)]
    reached = {
        (place.topic, place.partition): place.offset for place in decode_token(responses[-1].position_token).offsets
    }
    ends = await running.platform.log.end(topics.CHANGES)
    assert reached == {(topics.CHANGES, partition): end for partition, end in enumerate(ends) if end}
    assert sum(ends) == 20


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("source", "", "source is missing"),
        ("entity", "", "entity is missing"),
        ("operation", 0, "operation is missing"),
        ("key_json", "", "key_json must be a JSON object"),
        ("key_json", "[1]", "key_json must be a JSON object"),
        ("key_json", "{}", 'has no "key"'),
        ("key_json", '{"id":null}', "is null"),
        ("after_json", "", "after_json must be a JSON object"),
        ("before_json", "12", "before_json must be a JSON object"),
        ("tenant", "a\x1fb", "tenant"),
    ],
)
async def test_a_wrong_change_is_refused_with_its_number_and_nothing_is_appended(
    running: Running, stub: Any, field: str, value: Any, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await push(stub, service_pb2.PushRequest(changes=[change(1), change(2, **{field: value})]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")
    assert "change 2 of 2" in (caught.value.details() or "")
    assert await changes(running.platform.log) == []


async def test_a_truncate_and_a_heartbeat_reach_every_partition(running: Running, stub: Any) -> None:
    truncate = change(operation=events_pb2.OPERATION_TRUNCATE, key_json="", after_json="")
    heartbeat = events_pb2.Change(source="crm", operation=events_pb2.OPERATION_HEARTBEAT)
    (response,) = await push(stub, service_pb2.PushRequest(changes=[truncate, heartbeat]))
    assert response.accepted == 2
    found = await records(running.platform.log, topics.CHANGES)
    assert sorted(record.partition for record in found) == [p for p in range(PARTITIONS) for _ in range(2)]
    assert {record.key for record in found} == {key_of("default", "crm/customers"), key_of("default", "crm/")}


async def test_changes_of_one_record_stay_in_order(running: Running, stub: Any) -> None:
    pushed = [change(n % 3, after_json=f'{{"n":{n}}}') for n in range(60)]
    await push(stub, service_pb2.PushRequest(changes=pushed[:30]), service_pb2.PushRequest(changes=pushed[30:]))
    found = await changes(running.platform.log)
    for number in range(3):
        rows = [json.loads(c.after_json)["n"] for c in found if c.record == f"crm/customers/{number}"]
        assert rows == list(range(number, 60, 3))


async def test_a_caller_that_goes_away_leaves_the_log_whole(running: Running, stub: Any) -> None:
    async def endless() -> AsyncIterator[service_pb2.PushRequest]:
        number = 0
        while True:
            number += 1
            yield service_pb2.PushRequest(changes=[change(number)])

    for _ in range(10):
        call = stub.Push(endless())
        await call.read()
        call.cancel()
    await push(stub, service_pb2.PushRequest(changes=[change(7)]))
    offsets = [(record.partition, record.offset) for record in await records(running.platform.log, topics.CHANGES)]
    ends = await running.platform.log.end(topics.CHANGES)
    assert offsets == [(partition, offset) for partition in range(PARTITIONS) for offset in range(ends[partition])]


async def test_what_was_acknowledged_outlives_the_process(run_service: RunService, tmp_path: Path) -> None:
    async with run_service(build, data=tmp_path / "one") as running:
        stub: Any = service_pb2_grpc.IngestServiceStub(running.channel)
        await push(stub, *(service_pb2.PushRequest(changes=[change(n)]) for n in range(10)))
        await push_raw(stub, [native(n) for n in range(100, 110)])
        # The log as another process would find it now, had this one been killed.
        (tmp_path / "two").mkdir()
        for file in (tmp_path / "one").glob("headwater.db*"):
            (tmp_path / "two" / file.name).write_bytes(file.read_bytes())
        async with log_of(running.platform.settings, tmp_path / "two") as log:
            found = await changes(log)
    assert len(found) == 20


@contextlib.asynccontextmanager
async def log_of(settings: Settings, data: Path) -> AsyncIterator[Log]:
    """Open the log of an installation a second time."""
    if not (table := settings.table("kafka")):
        database = Database(data)
        yield SqliteLog(database)
        database.close()
        return
    from services.kernel.kafka_log import KafkaLog
    from services.kernel.kafka_settings import KafkaSettings

    log = KafkaLog(KafkaSettings.from_config(table))
    await log.start()
    yield log
    await log.close()


# PushRaw ------------------------------------------------------------------------------------------------------------


async def test_raw_records_are_counted_by_what_became_of_them(running: Running, stub: Any) -> None:
    lines = [native(1), b"{nonsense", b"", native(2, key={"id": None}), b'{"op":"insert","source":"\xff"}', native(3)]
    response = await push_raw(stub, lines, format="native", origin="crm.jsonl", first_line=11)
    assert (response.read, response.accepted, response.skipped, response.dead_lettered) == (6, 2, 1, 3)
    assert [error.split(" ")[0] for error in response.errors] == ["crm.jsonl:12:", "crm.jsonl:14:", "crm.jsonl:15:"]
    assert [c.record for c in await changes(running.platform.log)] != []


async def test_what_cannot_be_decoded_is_kept_byte_for_byte_with_the_reason(running: Running, stub: Any) -> None:
    line = b'{"op": "insert", \xff\x00'
    await push_raw(stub, [line], origin="crm.jsonl", first_line=3, tenant="acme", source="crm")
    (letter,) = await dead_letters(running.platform.log)
    assert letter.value == line
    assert (letter.stage, letter.type, letter.origin) == ("ingest.auto", "auto", "crm.jsonl:3")
    assert (letter.tenant, letter.source, letter.attempts) == ("acme", "crm", 1)
    assert "not valid JSON" in letter.error
    assert letter.topic == ""


async def test_a_dead_letter_can_be_tried_again_for_its_tenant(running: Running, stub: Any) -> None:
    event = orjson.loads(native(1))
    del event["source"]
    await push_raw(stub, [orjson.dumps(event)], format="native", tenant="acme")
    operations: Any = operations_pb2_grpc.OperationsServiceStub(running.channel)
    await operations.RetryDeadLetters(operations_pb2.RetryDeadLettersRequest())
    _first, second = await dead_letters(running.platform.log)
    assert (second.tenant, second.value) == ("acme", orjson.dumps(event))


async def test_a_record_beyond_the_limit_goes_to_dead_letters(run_service: RunService) -> None:
    async with run_service(build, settings_tables={"ingest": {"record_bytes_max": 1000}}) as running:
        stub: Any = service_pb2_grpc.IngestServiceStub(running.channel)
        long = native(2, after={"text": "x" * 2000})
        response = await push_raw(stub, [native(1), long, native(3)])
        assert (response.accepted, response.dead_lettered) == (2, 1)
        assert "the limit is 1,000" in response.errors[0]
        (letter,) = await dead_letters(running.platform.log)
        assert letter.value == long


async def test_ten_megabytes_in_one_record_are_no_crash(running: Running, stub: Any) -> None:
    response = await push_raw(stub, [native(2, after={"text": "x" * (10 << 20)}), native(3)])
    assert (response.accepted, response.dead_lettered) == (1, 1)


async def test_only_the_first_few_errors_are_listed(stub: Any) -> None:
    response = await push_raw(stub, [b"nonsense"] * 700)
    assert (response.read, response.dead_lettered, len(response.errors)) == (700, 700, 5)


async def test_an_unknown_format_is_refused_with_those_that_are(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="auto, native, debezium, kcat, documents"):
        await push_raw(stub, [native(1)], format="xml")


async def test_the_captured_debezium_events_arrive(running: Running, stub: Any) -> None:
    captured = [r for path in sorted(SAMPLES.glob("*.json")) for r in json.loads(path.read_text())]
    response = await push_raw(stub, list(map(orjson.dumps, captured)))
    assert (response.read, response.accepted, response.skipped, response.dead_lettered) == (14, 12, 2, 0)
    found = await changes(running.platform.log)
    assert len(found) == 11 + PARTITIONS  # the truncate is in each
    rows = [c.operation for c in found if c.record == "cdc/crm.customers/3"]
    assert rows == [
        events_pb2.OPERATION_INSERT,
        *[events_pb2.OPERATION_UPDATE] * 3,
        events_pb2.OPERATION_DELETE,
    ]


async def test_configured_keys_are_used(run_service: RunService) -> None:
    async with run_service(build, settings_tables={"ingest": {"keys": {"cdc/crm.customers": ["email"]}}}) as running:
        stub: Any = service_pb2_grpc.IngestServiceStub(running.channel)
        value = json.loads((SAMPLES / "02-c-insert.json").read_text())[0]["value"]
        await push_raw(stub, [orjson.dumps(value)])
        (found,) = await changes(running.platform.log)
        assert found.record == "cdc/crm.customers/lin@example.com"


async def test_documents_as_lines_go_to_documents(running: Running, stub: Any) -> None:
    lines = [orjson.dumps({"_id": str(n), "text": f"text {n}"}) for n in range(3)]
    response = await push_raw(stub, lines, source="faq", tenant="acme")
    assert response.accepted == 3
    found = await records(running.platform.log, topics.DOCUMENTS)
    assert {record.key for record in found} == {key_of("acme", f"faq/{n}") for n in range(3)}
    assert {place.topic for place in decode_token(response.position_token).offsets} == {topics.DOCUMENTS}


async def test_a_large_request_does_not_keep_the_others_waiting(running: Running, stub: Any) -> None:
    large = asyncio.create_task(push_raw(stub, [native(n) for n in range(20_000)]))
    await asyncio.sleep(0)
    (response,) = await push(stub, service_pb2.PushRequest(changes=[change()]))
    assert response.accepted == 1
    assert (await large).accepted == 20_000


# Folders ------------------------------------------------------------------------------------------------------------


async def test_configured_folders_are_watched_and_verified(run_service: RunService, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "refunds.md").write_text("# Refunds")
    async with run_service(build, settings_tables={"ingest": {"folders": [{"path": str(folder)}]}}) as running:
        await running.platform.log.wait_for([topics.DOCUMENTS], {}, 20.0)
        (record,) = await records(running.platform.log, topics.DOCUMENTS)
        assert record.key == key_of("default", "policies/refunds.md")
        operations: Any = operations_pb2_grpc.OperationsServiceStub(running.channel)
        verified = await operations.Verify(operations_pb2.VerifyRequest())
        (check,) = [check for check in verified.checks if check.name == "folder policies"]
        assert (check.ok, check.detail) == (True, "1 files, 0 never seen, 0 gone but still known")


# PutDocument --------------------------------------------------------------------------------------------------------


async def test_a_document_is_named_by_source_and_name(running: Running, stub: Any) -> None:
    document = events_pb2.DocumentChange(source="policies", name="refunds.md", content=b"# Refunds", access=["staff"])
    response = await stub.PutDocument(service_pb2.PutDocumentRequest(document=document))
    assert response.document_id == "policies/refunds.md"
    (record,) = await records(running.platform.log, topics.DOCUMENTS)
    assert record.key == key_of("default", "policies/refunds.md")
    found = events_pb2.DocumentChange.FromString(record.value or b"")
    assert (found.operation, found.content) == (events_pb2.DOCUMENT_OPERATION_PUT, b"# Refunds")
    assert list(found.access) == ["staff"]
    assert found.HasField("occurred_at")


async def test_a_deletion_carries_no_content(running: Running, stub: Any) -> None:
    document = events_pb2.DocumentChange(
        document_id="policies/a", operation=events_pb2.DOCUMENT_OPERATION_DELETE, content=b"x"
    )
    await stub.PutDocument(service_pb2.PutDocumentRequest(document=document))
    (record,) = await records(running.platform.log, topics.DOCUMENTS)
    found = events_pb2.DocumentChange.FromString(record.value or b"")
    assert (found.source, found.content) == ("policies", b"")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (events_pb2.DocumentChange(content=b"x"), "needs its document_id, or source and name"),
        (events_pb2.DocumentChange(document_id="a/b", content=b"x" * 2000), "the limit is 1,000"),
    ],
)
async def test_a_wrong_document_is_refused(
    run_service: RunService, document: events_pb2.DocumentChange, words: str
) -> None:
    async with run_service(build, settings_tables={"ingest": {"document_bytes_max": 1000}}) as running:
        stub: Any = service_pb2_grpc.IngestServiceStub(running.channel)
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await stub.PutDocument(service_pb2.PutDocumentRequest(document=document))
