"""Raw topics of Kafka, read by the workers of a cluster: a consumer group whose outputs are in its own transactions.

Partitions are shared out by the bucket that each belongs to for ever. A bucket has one producer, whose transactional id
is the group's and the bucket's. To start it fences whoever had the bucket before; only then it is looked up how far the
group is. So a worker that does not know yet that it has lost a bucket cannot commit. One transaction takes in what was
read of all partitions of a bucket, so that hundreds of tables need few of them.

Where the topics are in another cluster than the log, no transaction can span both: the messages come first, the
group's offsets after them. A crash in between appends some messages twice, with equal event ids and positions, of which
the second ones change nothing.
"""

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.structs import OffsetAndMetadata

from headwater.common.v1 import operations_pb2
from services.ingest.topic_reader import (
    BATCH_RECORDS,
    FETCH_BYTES,
    FETCH_WAIT_MS,
    LOOK_EVERY_S,
    POLL_MS,
    again_and_again,
)
from services.ingest.topic_records import RecordDecoder, Selection
from services.kernel.errors import UnavailableError
from services.kernel.kafka_clients import stop
from services.kernel.kafka_consumer import REBALANCE_MS, REVOCATION_S, SESSION_MS, TRANSACTION_S
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_records import headers_of
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Message

GROUP = "ingest.topics"
BUCKETS = 16

log = structlog.get_logger(__name__)


def bucket_of(topic: str, partition: int) -> int:
    """The bucket of a partition: the same in every worker, and for ever."""
    return zlib.crc32(f"{topic}/{partition}".encode()) % BUCKETS


class BucketAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka has no types
    """Shares partitions out so that those of a bucket all go to one worker."""

    name = "headwater-buckets"
    version = 0

    @classmethod
    def assign(
        cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Share the partitions out."""
        ids = sorted(members)
        shares: dict[str, dict[str, list[int]]] = {member: defaultdict(list) for member in ids}
        # Those only that all know of: who does not know a topic yet joins anew when it does.
        for topic in sorted(set.intersection(*(set(member.subscription) for member in members.values()))):
            for partition in sorted(cluster.partitions_for_topic(topic) or ()):
                shares[ids[bucket_of(topic, partition) % len(ids)]][topic].append(partition)
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, sorted(share.items()), b"")
            for member, share in shares.items()
        }

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What a worker tells of itself."""
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), b"")

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Do nothing."""


class _Lane:
    """A bucket that this worker has."""

    def __init__(self, bucket: int) -> None:
        self.bucket = bucket
        self.producer: Any = None
        self.next: dict[TopicPartition, int] = {}  # what is to be taken next, of the partitions that were looked up


class TopicGroup(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One worker of the group that reads the topics of one cluster."""

    def __init__(
        self, selection: Selection, cluster: KafkaSettings | None, decoder: RecordDecoder, log_: KafkaLog
    ) -> None:
        """Wire it; `cluster` None means the log's own."""
        self.selection, self._decoder, self._log = selection, decoder, log_
        self._is_own = cluster is None
        self._settings = cluster or log_.settings
        self._connection = self._settings.connection()
        self._consumer: Any = None
        self._group = ""
        self._generation = 0  # of the shares
        self._missed = 0
        self._lanes: dict[int, _Lane] = {}
        self._hand = asyncio.Lock()  # held while something is being taken in
        self._trouble = "it has not been reached yet"

    async def read(self) -> None:
        """Read until cancelled, whatever fails meanwhile."""
        await again_and_again(self._read, self._settings, self._note)

    async def _read(self) -> None:
        self._group = await self._named()
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=self._group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            metadata_max_age_ms=int(LOOK_EVERY_S * 1000),  # new topics
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 10,
            rebalance_timeout_ms=REBALANCE_MS,
            partition_assignment_strategy=(BucketAssignor,),
        )
        consumer.subscribe(pattern=self.selection.pattern(), listener=self)
        try:
            await consumer.start()
            self._consumer = consumer
            while True:
                fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
                self._trouble = ""
                if fetched:
                    await self._take(fetched, self._generation)
                else:
                    await self._pass_marks(self._generation)
        finally:
            self._consumer = None
            await stop(consumer)
            for lane in self._lanes.values():
                self._drop(lane)
            self._lanes = {}

    async def _named(self) -> str:
        """The group's name, in the cluster of the topics one that no other installation has."""
        if self._is_own:
            return self._log.named(GROUP)
        admin = AIOKafkaAdminClient(**self._log.connection)
        try:
            await admin.start()
            return f"headwater.{(await admin.describe_cluster())['cluster_id']}.{self._log.named(GROUP)}"
        finally:
            await stop(admin)

    # Rebalances -------------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let what is in hand come to its end; what comes too late is refused."""
        del revoked  # aiokafka gives up all of them
        try:
            async with asyncio.timeout(REVOCATION_S), self._hand:
                pass
        except TimeoutError:
            log.warning("topics.overtaken", waited_s=REVOCATION_S)
            for lane in self._lanes.values():
                self._drop(lane)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take up buckets. The producer of one that stays goes on: fenced if another worker had it meanwhile."""
        self._generation += 1
        buckets = {bucket_of(place.topic, place.partition) for place in assigned}
        for bucket in self._lanes.keys() - buckets:
            self._drop(self._lanes.pop(bucket))
        for bucket in buckets - self._lanes.keys():
            self._lanes[bucket] = _Lane(bucket)
        if not self._is_own:  # without fences, what another worker has committed meanwhile is to be looked up
            for lane in self._lanes.values():
                lane.next.clear()

    def _drop(self, lane: _Lane) -> None:
        """Give up what is known of a bucket; what becomes of its open transaction, its next producer finds out."""
        lane.next.clear()
        if lane.producer is not None:
            self._log.later(stop(lane.producer))
            lane.producer = None

    # Taking in --------------------------------------------------------------------------------------------------

    async def _take(self, fetched: Mapping[TopicPartition, Sequence[Any]], generation: int) -> None:
        """Take in what was fetched; once partitions have moved, it is fetched again, by whoever has them then."""
        buckets: dict[int, dict[TopicPartition, Sequence[Any]]] = defaultdict(dict)
        for place, records in fetched.items():
            buckets[bucket_of(place.topic, place.partition)][place] = records
        async with self._log.unit_from_outside():  # waits where the log is to stand still
            pass
        async with self._hand:
            if generation != self._generation:
                return
            work = [self._take_bucket(self._lanes[bucket], places) for bucket, places in buckets.items()]
            results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result  # all begins anew from where the group is then

    async def _take_bucket(self, lane: _Lane, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        async with asyncio.timeout(TRANSACTION_S):
            await self._open(lane, fetched)
        records = [
            record for place, records in fetched.items() for record in records if record.offset >= lane.next[place]
        ]
        if records:
            taken = await self._decoder.take(records, self.selection, self._note)
            reached = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}
            await self._publish(lane, taken.messages, reached)
            taken.tell()

    async def _pass_marks(self, generation: int) -> None:
        """Let the group pass the ends of transactions, too, so that it has no lag."""
        async with self._hand:
            for lane in self._lanes.values() if generation == self._generation else ():
                ends = {place: await self._consumer.position(place) for place in lane.next}
                passed = {place: end for place, end in ends.items() if end > lane.next[place]}
                if passed:
                    await self._publish(lane, [], passed)

    async def _open(self, lane: _Lane, places: Iterable[TopicPartition]) -> None:
        """Fence who had the bucket before, then find out how far the group is."""
        if lane.producer is None and self._is_own:
            producer = self._log.new_producer(self._log.named(f"{GROUP}:{lane.bucket}"))
            try:
                await producer.start()
            except BaseException:
                self._log.later(stop(producer))
                raise
            lane.producer = producer
        for place in places:
            if place not in lane.next:
                committed = await self._consumer.committed(place)
                begin = (await self._consumer.beginning_offsets([place]))[place]
                if committed is not None and begin > committed:
                    self._missed += begin - committed
                    log.error("topics.missed", topic=place.topic, partition=place.partition, wanted=committed,
                              begin=begin)  # fmt: skip
                lane.next[place] = max(committed or 0, begin)

    async def _publish(self, lane: _Lane, messages: Sequence[Message], reached: Mapping[TopicPartition, int]) -> None:
        offsets = {place: OffsetAndMetadata(offset, "") for place, offset in reached.items()}
        async with asyncio.timeout(TRANSACTION_S):
            if self._is_own:
                if lane.producer is None:
                    raise UnavailableError("a rebalance has overtaken what was in hand")
                prepared = [(each, self._log.partition_for(each), headers_of(each)) for each in messages]
                await lane.producer.begin_transaction()
                await self._log.sent(lane.producer, prepared)
                await lane.producer.send_offsets_to_transaction(offsets, self._group)
                await lane.producer.commit_transaction()
            else:
                await self._log.append(messages)
                await self._consumer.commit(offsets)
        lane.next.update(reached)

    def _note(self, trouble: str) -> None:
        self._trouble = trouble

    async def check(self) -> operations_pb2.Check:
        """Tell how far this worker is, for `headwater verify`."""
        behind, places = 0, sorted(self._consumer.assignment()) if self._consumer is not None else []
        if places:
            ends = await self._consumer.end_offsets(places)
            behind = sum([max(0, end - (await self._consumer.committed(place) or 0)) for place, end in ends.items()])
        words = f"{len(places)} partitions, {behind} offsets behind, {self._missed} gone before they were read"
        if self._trouble:
            words = f"{words}; {self._trouble}"
        ok = not self._missed and not self._trouble
        return operations_pb2.Check(name=f"topics {self.selection}", ok=ok, detail=words)
