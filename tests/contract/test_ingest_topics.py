"""Raw topics of a real Kafka, read into an embedded installation and by the workers of a cluster."""

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from headwater.common.v1 import operations_pb2, operations_pb2_grpc
from headwater.ingest.v1 import events_pb2
from services.ingest import topic_group, topic_reader
from services.ingest.app import build
from services.kernel import topics
from services.kernel.log import Log, Record
from tests.conftest import Running, RunService
from tests.contract.test_ingest_api import changes, dead_letters, records
from tests.contract.test_ingest_avro import serving
from tests.engines import Kafka
from tests.unit.ingest.test_avro import encoded, envelope

pytestmark = [pytest.mark.slow, pytest.mark.engine]

SAMPLES = Path(__file__).parents[1] / "data" / "ingest" / "debezium"
PATIENCE_S = 60.0


class Raw:
    """A cluster as replicators see it: topics that all begin alike, so that tests do not meet."""

    def __init__(self, address: str) -> None:
        self.address, self.prefix = address, f"raw{uuid.uuid4().hex[:8]}"
        self.admin: Any = AIOKafkaAdminClient(bootstrap_servers=address)
        self.producer: Any = AIOKafkaProducer(
            bootstrap_servers=address, transactional_id=self.prefix, max_request_size=8 << 20
        )

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    async def create(self, name: str, partitions: int = 1) -> str:
        await self.admin.create_topics(
            [NewTopic(self.topic(name), partitions, 1, topic_configs={"max.message.bytes": str(8 << 20)})]
        )
        return self.topic(name)

    async def write(
        self, topic: str, *pairs: tuple[bytes | None, bytes | None], partition: int = 0, abort: bool = False
    ) -> None:
        """Write records in a transaction, once the topic is there for the producer, too."""
        async with asyncio.timeout(PATIENCE_S):
            await self.producer.begin_transaction()
            for key, value in pairs:
                await self.producer.send(topic, value, key=b"" if key is None is value else key, partition=partition)
            await (self.producer.abort_transaction() if abort else self.producer.commit_transaction())

    def settings(self, **entry: Any) -> dict[str, Any]:
        """The settings of an embedded installation."""
        return {"ingest": {"topics": [self.entry(**entry)]}}

    def entry(self, **entry: Any) -> dict[str, Any]:
        return {"pattern": rf"{self.prefix}\..*", "bootstrap_servers": self.address, **entry}


@pytest.fixture
async def raw(kafka_engine: Kafka) -> AsyncIterator[Raw]:
    made = Raw(kafka_engine.address)
    await made.admin.start()
    await made.producer.start()
    yield made
    await made.producer.stop()
    await made.admin.close()


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_reader, "LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(topic_group, "LOOK_EVERY_S", 0.5)


RunMode = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


@pytest.fixture(params=["embedded", "cluster", "elsewhere"])
def run_mode(request: pytest.FixtureRequest, raw: Raw, run_service: RunService, tmp_path: Path) -> RunMode:
    """Run ingest on raw topics: embedded; on a cluster that has them, too; and with another cluster's topics."""
    own = {"bootstrap_servers": raw.address, "prefix": f"{raw.prefix}-own.", "replication": 1}
    # Another name of the one broker that there is makes it another cluster.
    elsewhere = raw.address.replace("127.0.0.1", "localhost")
    count = iter(range(100))

    @contextlib.asynccontextmanager
    async def run(data: str = "", **entry: Any) -> AsyncIterator[Running]:
        tables: dict[str, Any] = {"ingest": {"topics": [raw.entry(**entry)]}}
        if request.param == "cluster":
            tables["ingest"]["topics"][0].pop("bootstrap_servers")
        elif request.param == "elsewhere":
            tables["ingest"]["topics"][0]["bootstrap_servers"] = elsewhere
        if request.param != "embedded":
            tables["kafka"] = own
        folder = tmp_path / (data or ("data" if request.param == "embedded" else f"worker{next(count)}"))
        async with run_service(build, settings_tables=tables, data=folder) as running:
            yield running

    return run


def row(number: int, **more: Any) -> tuple[bytes, bytes]:
    key = {"id": number}
    event = {"source": "crm", "entity": "t", "op": "insert", "key": key, "after": {**key, **more}}
    return orjson.dumps(key), orjson.dumps(event)


def captured(name: str) -> list[tuple[bytes | None, bytes | None]]:
    found = orjson.loads((SAMPLES / name).read_bytes())
    return [tuple(None if r[part] is None else orjson.dumps(r[part]) for part in ("key", "value")) for r in found]  # type: ignore[misc]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():
            await asyncio.sleep(0.05)


async def numbers(log: Log) -> list[int]:
    """The ids of the rows in `changes`."""
    return [orjson.loads(change.key_json)["id"] for change in await changes(log) if change.key_json]


async def until_changes(log: Log, count: int) -> list[events_pb2.Change]:
    async def there() -> bool:
        return len(await changes(log)) >= count

    await until(there)
    await asyncio.sleep(0.3)  # what came twice would be here by now
    found = await changes(log)
    assert len(found) == count
    return found


async def test_what_is_there_comes_first_and_then_what_is_written_and_new_topics(raw: Raw, run_mode: RunMode) -> None:
    first = await raw.create("t", partitions=3)
    await raw.write(first, row(1), row(2), partition=2)
    async with run_mode() as running:
        log = running.platform.log
        await until_changes(log, 2)
        await raw.write(first, row(3), partition=0)
        await until_changes(log, 3)
        second = await raw.create("later")
        await raw.write(second, row(4))
        found = await until_changes(log, 4)
    assert sorted(orjson.loads(change.key_json)["id"] for change in found) == [1, 2, 3, 4]
    by_id = {orjson.loads(change.key_json)["id"]: change for change in found}
    assert by_id[2].position == f"kafka:{first}/2:{1:020d}"
    assert by_id[1].HasField("occurred_at")


async def test_only_what_is_committed_counts(raw: Raw, run_mode: RunMode) -> None:
    topic = await raw.create("t")
    async with run_mode() as running:
        await raw.write(topic, row(1))
        await raw.write(topic, row(2), abort=True)
        await raw.write(topic, row(3))
        await until_changes(running.platform.log, 2)
        assert sorted(await numbers(running.platform.log)) == [1, 3]


async def test_restarts_go_on_where_the_last_one_ended(raw: Raw, run_mode: RunMode) -> None:
    topic = await raw.create("t", partitions=2)
    for step in range(3):
        await raw.write(topic, row(10 * step), row(10 * step + 1), partition=step % 2)
        async with run_mode() as running:
            await until_changes(running.platform.log, 2 * step + 2)
            assert len(set(await numbers(running.platform.log))) == 2 * step + 2


async def test_debeziums_own_events(raw: Raw, run_mode: RunMode) -> None:
    topic = await raw.create("crm.customers")
    names = ["01-r-snapshot.json", "06-u-primary-key-change.json", "07-d-delete-and-tombstone.json"]
    async with run_mode() as running:
        await raw.write(topic, *(pair for name in names for pair in captured(name)))
        await raw.write(topic, *captured("09-t-truncate.json"))
        log = running.platform.log
        partitions = log.partitions(topics.CHANGES)
        found = await until_changes(log, 2 + 2 + 1 + partitions)
        kinds = Counter(events_pb2.Operation.Name(change.operation).removeprefix("OPERATION_") for change in found)
        assert kinds == {"SNAPSHOT": 2, "DELETE": 2, "INSERT": 1, "TRUNCATE": partitions}
        assert {change.source for change in found} == {"cdc"}
        assert {change.position.partition(":")[0] for change in found} == {"pg"}
        truncates = [record for record in await records(log, topics.CHANGES) if is_truncate(record)]
        assert sorted(record.partition for record in truncates) == list(range(partitions))
        assert not await dead_letters(log)


def is_truncate(record: Record) -> bool:
    return events_pb2.Change.FromString(record.value or b"").operation == events_pb2.OPERATION_TRUNCATE


async def test_heartbeats_come_in_and_marks_of_transactions_and_of_schemas_do_not(raw: Raw, run_mode: RunMode) -> None:
    heartbeat, transaction = await raw.create("heartbeat"), await raw.create("transaction")
    schemas = await raw.create("schemas")
    async with run_mode(source="crm") as running:
        await raw.write(transaction, (b'{"id":"7"}', b'{"status":"BEGIN","id":"7","event_count":null,"ts_ms":5}'))
        await raw.write(schemas, (b"{}", b'{"source":{"name":"crm"},"ts_ms":5,"ddl":"ALTER TABLE t"}'))
        await raw.write(heartbeat, (b'{"serverName":"other"}', b'{"ts_ms":1795456757601}'))
        log = running.platform.log
        found = await until_changes(log, log.partitions(topics.CHANGES))
        assert {(change.operation, change.source) for change in found} == {(events_pb2.OPERATION_HEARTBEAT, "crm")}
        assert not await dead_letters(log)


async def test_what_cannot_be_decoded_is_kept_whole_and_can_be_put_back(raw: Raw, run_mode: RunMode) -> None:
    topic = await raw.create("t")
    bad: Sequence[tuple[bytes | None, bytes | None]] = [
        (b'{"id":9}', b"{cut"), (b"\xff\x00", b"\xff\xfe"), (None, b"[1]"), (None, None), (b"k", b" "),
    ]  # fmt: skip
    async with run_mode(tenant="acme", source="shop") as running:
        log = running.platform.log
        await raw.write(topic, row(1), *bad, row(2))
        found = await until_changes(log, 2)
        assert {change.tenant for change in found} == {"acme"}
        letters = await dead_letters(log)
        assert [letter.origin for letter in letters] == [f"{topic}/0/{offset}" for offset in (1, 2, 3)]
        assert {(letter.tenant, letter.source, letter.type) for letter in letters} == {("acme", "shop", "kcat")}
        kept = [orjson.loads(letter.value) for letter in letters]
        assert (kept[0]["key"], kept[0]["payload"], kept[0]["offset"]) == ('{"id":9}', "{cut", 1)
        assert (kept[1]["key"], kept[1]["payload"]) == ("/wA=", "//4=")
        operations: Any = operations_pb2_grpc.OperationsServiceStub(running.channel)
        listed = (await operations.ListDeadLetters(operations_pb2.ListDeadLettersRequest())).entries
        request = operations_pb2.RetryDeadLettersRequest(ids=[entry.id for entry in listed])
        assert (await operations.RetryDeadLetters(request)).retried == 3
        assert len(await dead_letters(log)) == 6  # they are no better than before


async def test_a_record_that_is_too_long_can_be_put_back_once_it_may_be(raw: Raw, run_service: RunService) -> None:
    topic = await raw.create("t")
    await raw.write(topic, row(1, text="x" * 5_000_000), row(2))
    async with run_service(build, settings_tables=raw.settings()) as running:
        await until_changes(running.platform.log, 1)
        (letter,) = await dead_letters(running.platform.log)
        assert "record_bytes_max" in letter.error
    raised = raw.settings()
    raised["ingest"]["record_bytes_max"] = 8 << 20
    async with run_service(build, settings_tables=raised) as running:
        operations: Any = operations_pb2_grpc.OperationsServiceStub(running.channel)
        await operations.RetryDeadLetters(operations_pb2.RetryDeadLettersRequest())
        await until_changes(running.platform.log, 2)
        assert sorted(await numbers(running.platform.log)) == [1, 2]


async def test_avro_waits_for_its_registry(raw: Raw, run_service: RunService) -> None:
    topic = await raw.create("customers")
    async with serving() as registry:
        registry.status = 500
        tables = raw.settings()
        tables["ingest"]["schema_registry"] = {"url": registry.url}
        async with run_service(build, settings_tables=tables) as running:
            await raw.write(topic, (encoded(7, {"id": 1}), envelope()), (encoded(7, {"id": 1}), None))

            async def asked() -> bool:
                return len(registry.asked) > 1

            await until(asked)
            assert not await changes(running.platform.log)
            registry.status = 200
            (change,) = await until_changes(running.platform.log, 1)
            assert change.record == "cdc/customers/1"
            await raw.write(topic, (None, b"\0\0\0\0\x63none"))  # there is no schema 99

            async def kept() -> bool:
                return len(await dead_letters(running.platform.log)) == 1

            await until(kept)


async def test_records_that_went_unread_are_told_of(raw: Raw, run_service: RunService) -> None:
    topic = await raw.create("t")
    await raw.write(topic, row(1))
    async with run_service(build, settings_tables=raw.settings()) as running:
        await until_changes(running.platform.log, 1)
        assert (await check(running)).ok
    await raw.write(topic, row(2), row(3))  # 2 and 3, with the marks of two transactions
    await raw.write(topic, row(4))
    await raw.admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=5)})
    async with run_service(build, settings_tables=raw.settings()) as running:
        await until_changes(running.platform.log, 2)
        told = await check(running)
        assert (told.ok, "gone before they were read" in told.detail) == (False, True)


async def check(running: Running) -> operations_pb2.Check:
    (service,) = running.runtime.services
    assert service.checks is not None
    (told,) = await service.checks()
    return told


async def test_a_crash_at_any_instant_takes_nothing_twice(
    raw: Raw, run_mode: RunMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before, within and after what makes a batch last; other clusters' topics may come twice."""
    topic = await raw.create("t", partitions=3)
    expected: set[int] = set()
    for step in range(5):
        await raw.write(topic, *(row(100 * step + n) for n in range(40)), partition=step % 3)
        expected |= {100 * step + n for n in range(40)}
        async with run_mode() as running:
            await asyncio.sleep(0.05 * step * step)
            _cancel_readers(running)
    async with run_mode() as running:
        log = running.platform.log

        async def all_there() -> bool:
            return set(await numbers(log)) == expected

        await until(all_there)
        ids = [record.event_id for record in await records(log, topics.CHANGES)]
        assert len(set(ids)) == len(expected)
        if running.platform.settings.table("ingest")["topics"][0].get("bootstrap_servers", "").startswith("localhost"):
            return
        assert len(ids) == len(expected)


def _cancel_readers(running: Running) -> None:
    for task in running.runtime._tasks:
        if "read" in task.get_name():
            task.cancel()


@pytest.mark.timeout(240)
async def test_workers_share_the_partitions_and_take_over_from_one_another(
    raw: Raw, run_service: RunService, tmp_path: Path
) -> None:
    topic = await raw.create("t", partitions=8)
    tables: Mapping[str, Any] = {
        "kafka": {"bootstrap_servers": raw.address, "prefix": f"{raw.prefix}-own.", "replication": 1},
        "ingest": {"topics": [{"pattern": rf"{raw.prefix}\..*"}]},
    }
    expected: set[int] = set()

    async def write(step: int) -> None:
        for partition in range(8):
            numbers_ = [1000 * step + 10 * partition + n for n in range(5)]
            expected.update(numbers_)
            await raw.write(topic, *map(row, numbers_), partition=partition)

    async with run_service(build, settings_tables=tables, data=tmp_path / "a") as first:
        log = first.platform.log
        await write(1)
        async with run_service(build, settings_tables=tables, data=tmp_path / "b") as second:

            async def shared() -> bool:
                return all("8 partitions" not in d and " 0 partitions" not in f" {d}" for d in await details())

            async def details() -> list[str]:
                return [(await check(each)).detail for each in (first, second)]

            await until(shared)
            await write(2)
            await write(3)
        await write(4)

        async def all_there() -> bool:
            return set(await numbers(log)) == expected

        await until(all_there)
        await asyncio.sleep(0.5)
        assert Counter(await numbers(log)) == Counter(expected)


async def test_own_topics_are_not_taken(raw: Raw, run_service: RunService) -> None:
    topic = await raw.create("t")
    own = raw.topic("own.")
    tables = {
        "kafka": {"bootstrap_servers": raw.address, "prefix": own, "replication": 1},
        "ingest": {"topics": [{"pattern": rf"{raw.prefix}\..*"}]},
    }
    async with run_service(build, settings_tables=tables) as running:
        await raw.write(topic, row(1))
        await until_changes(running.platform.log, 1)
        assert not await dead_letters(running.platform.log)
        assert "1 partitions" in (await check(running)).detail


@pytest.mark.timeout(240)
async def test_a_broker_that_dies_and_comes_back(raw: Raw, run_mode: RunMode, kafka_engine: Kafka) -> None:
    topic = await raw.create("t", partitions=2)
    async with run_mode() as running:
        log = running.platform.log
        await raw.write(topic, row(1))
        await until_changes(log, 1)
        for step in range(2, 5):
            await asyncio.to_thread(kafka_engine.kill)
            await asyncio.sleep(1.5)
            await asyncio.to_thread(kafka_engine.start)
            await raw.write(topic, row(step), partition=step % 2)

            async def came(number: int = step) -> bool:
                return number in await numbers(log)

            await until(came)
        assert sorted(await numbers(log)) == [1, 2, 3, 4]
