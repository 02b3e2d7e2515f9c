"""Raw topics of Kafka, read into an embedded installation.

The messages and the offsets reached become lasting in one unit of work, so that every record is taken once, whatever
ends when. There is no consumer group: one process reads all partitions, from where its own database says. Only
committed records are read. New topics and partitions are looked for from time to time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError, OffsetOutOfRangeError

from headwater.common.v1 import operations_pb2
from services.ingest.topic_records import RecordDecoder, Selection
from services.ingest.topic_store import Places, TopicStore
from services.kernel.errors import UnavailableError
from services.kernel.kafka_clients import stop
from services.kernel.kafka_diagnosis import unreachable
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Log
from services.kernel.retry import backoff_s
from services.kernel.sqlite import Database

LOOK_EVERY_S = 5.0  # for new topics
POLL_MS = 200
BATCH_RECORDS = 500  # decoded at once: others get their turn on the event loop in between
FETCH_WAIT_MS = 100
FETCH_BYTES = 256 << 10  # of one partition at a time, for there may be hundreds; a longer record comes alone

log = structlog.get_logger(__name__)


class TopicReader:
    """Reads the topics of one cluster."""

    def __init__(
        self, selection: Selection, cluster: KafkaSettings, decoder: RecordDecoder, database: Database, log_: Log
    ) -> None:
        self.selection, self._settings = selection, cluster
        self._decoder, self._database, self._log = decoder, database, log_
        self._connection = cluster.connection()
        self._store: TopicStore | None = None
        self._next: Places = {}
        self._consumer: Any = None
        self._places: set[TopicPartition] = set()
        self._trouble = "it has not been reached yet"

    async def read(self) -> None:
        """Read until cancelled, whatever fails meanwhile."""
        await again_and_again(self._read, self._settings, self._note)

    async def _read(self) -> None:
        admin = AIOKafkaAdminClient(**self._connection)
        consumer = AIOKafkaConsumer(
            **self._connection,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        try:
            await admin.start()
            await consumer.start()
            self._store = TopicStore(self._database, str((await admin.describe_cluster())["cluster_id"]))
            # What was read and not kept is read again.
            self._next = self._store.offsets()
            self._places, self._consumer = set(), consumer
            looked = -LOOK_EVERY_S
            while True:
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    if (found := await self._look(admin)) != self._places:
                        await self._assign(consumer, found)
                    self._trouble = ""
                    looked = time.monotonic()
                if not self._places:
                    await asyncio.sleep(POLL_MS / 1000)
                    continue
                try:
                    fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
                except OffsetOutOfRangeError as error:
                    await self._skip(consumer, error.args[0], self._store)
                    continue
                if fetched:
                    await self._take([record for records in fetched.values() for record in records], self._store)
        finally:
            self._consumer = None
            await stop(consumer)
            await stop(admin)

    async def _look(self, admin: Any) -> set[TopicPartition]:
        """The partitions that there are to read."""
        names = [name for name in await admin.list_topics() if self.selection.entry(name)]
        found = await admin.describe_topics(names) if names else ()
        return {
            TopicPartition(topic["topic"], part["partition"])
            for topic in found
            if topic["error_code"] == 0
            for part in topic["partitions"]
        }

    async def _assign(self, consumer: Any, places: set[TopicPartition]) -> None:
        log.info("topics.reading", cluster=self._settings.bootstrap_servers,
                 topics=sorted({place.topic for place in places}))  # fmt: skip
        consumer.assign(sorted(places))
        begins = await consumer.beginning_offsets(sorted(places)) if places else {}
        for place in places:
            consumer.seek(place, self._next.get((place.topic, place.partition), begins[place]))
        self._places = places

    async def _take(self, records: list[Any], store: TopicStore) -> None:
        taken = await self._decoder.take(records, self.selection, self._note)
        reached = {(record.topic, record.partition): record.offset + 1 for record in records}
        # Not on the disk at once: where the messages are lost, so are the offsets, and Kafka still has the records.
        async with self._log.unit_from_outside(urgent=len(records) < BATCH_RECORDS // 10) as unit:
            unit.emit(taken.messages)
            store.save(unit, reached)
        self._next.update(reached)
        taken.tell()

    async def _skip(self, consumer: Any, out_of_range: Any, store: TopicStore) -> None:
        """Go on where the partition begins now: it was made anew, or its oldest records left it unread."""
        for place, offset in dict(out_of_range).items():
            begin = (await consumer.beginning_offsets([place]))[place]
            missed = max(0, begin - offset)
            log.error("topics.out_of_range", topic=place.topic, partition=place.partition, wanted=offset, begin=begin,
                      missed=missed)  # fmt: skip
            async with self._log.unit_from_outside() as unit:
                store.save(unit, {(place.topic, place.partition): begin}, missed)
            self._next[place.topic, place.partition] = begin
            consumer.seek(place, begin)

    def _note(self, trouble: str) -> None:
        self._trouble = trouble

    async def check(self) -> operations_pb2.Check:
        """Tell how far it is, for `headwater verify`."""
        behind = 0
        if self._consumer is not None and self._places:
            ends = await self._consumer.end_offsets(sorted(self._places))
            behind = sum([max(0, end - await self._consumer.position(place)) for place, end in ends.items()])
        missed = sum(self._store.missed().values()) if self._store else 0
        words = f"{len(self._places)} partitions, {behind} offsets behind, {missed} gone before they were read"
        if self._trouble:
            words = f"{words}; {self._trouble}"
        return operations_pb2.Check(name=f"topics {self.selection}", ok=not missed and not self._trouble, detail=words)


async def again_and_again(
    read: Callable[[], Awaitable[None]], cluster: KafkaSettings, note: Callable[[str], None]
) -> None:
    """Read until cancelled; what fails is begun anew, ever more slowly.

    Args:
        read: reads until it fails.
        cluster: what is read.
        note: is told what is wrong.
    """
    attempt = 0
    while True:
        started = time.monotonic()
        try:
            await read()
        except (KafkaError, UnavailableError, TimeoutError, OSError) as error:
            attempt = 1 if time.monotonic() - started > 60 else attempt + 1
            words = str(error) or repr(error)
            if isinstance(error, KafkaConnectionError):
                words = str(await unreachable(cluster, error, "[[ingest.topics]]"))
            note(words)
            delay = backoff_s(attempt, base_s=0.2, cap_s=5.0)
            log.warning("topics.waiting", cluster=cluster.bootstrap_servers, error=words,
                        retry_in_s=round(delay, 2))  # fmt: skip
            await asyncio.sleep(delay)
