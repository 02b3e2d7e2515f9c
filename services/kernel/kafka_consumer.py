"""A member of a Kafka consumer group that reads, decides and publishes in transactions.

Each partition that a member is given has a producer whose transactional id is the group's and the partition's. To start
it fences whoever had the partition before, and settles what that one had begun; only then the group's offset is looked
up, and the store's ledger. So a member that does not know yet that it has lost a partition cannot commit, whatever the
rebalance does in the background, and no offset is read that is about to change.

The store is written before the log: the unit of work makes state, progress and outputs last, then a transaction
publishes the outputs and moves the group. Where the store is ahead of the group when a partition is taken up, that
transaction is made good; where it is behind, it was emptied: it takes in again what it lacks, and publishes none of it.

A rebalance waits for the unit in hand. Memory: per partition, at most one fetch is held here and one by aiokafka;
a partition is fetched again only when what it had is done.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import InvalidProducerEpoch, KafkaError, MessageSizeTooLargeError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from services.kernel.errors import UnavailableError
from services.kernel.kafka_clients import FETCH_WAIT_MS, stop
from services.kernel.kafka_records import RECORD_BYTES_MAX, headers_of, records_of
from services.kernel.log import Batch, Ledger, Message, PartitionLostError, Progress, Record, Stateless, Tally
from services.kernel.retry import backoff_s

if TYPE_CHECKING:
    from services.kernel.kafka_log import KafkaLog

FETCH_BYTES = 1 << 20  # of one partition at a time; a longer record comes alone
POLL_MS = 200
REVOCATION_S = 20.0  # how long a rebalance waits for the unit in hand
REBALANCE_MS = 60_000
SESSION_MS = 10_000
TRANSACTION_S = 45.0
OVERHEAD_BYTES = 4096  # of a record among others
FENCED = (ProducerFenced, InvalidProducerEpoch)

log = structlog.get_logger(__name__)


class _Lane:
    """A partition that the member has been given."""

    def __init__(self, place: tuple[str, int], producer: Any = None) -> None:
        self.place = place
        self.producer = producer
        self.open = False  # whether it is known where the group and its store stand
        self.start = self.next = 0  # of what is in the buffer: where the store stands
        self.group_at = 0  # where the group stands
        self.inputs, self.tally = 0, Tally()  # until there
        self.buffer: deque[Record] = deque()

    @property
    def is_behind(self) -> bool:
        """Whether the store lacks what the group has been given already."""
        return self.start < self.group_at

    def stand_at(self, offset: int) -> None:
        self.start = self.next = offset
        self.buffer.clear()
        self.open = True

    def again(self) -> "_Lane":
        """The same partition after a rebalance; what is known of it is at least where the group stands.

        The cluster may not tell of the last transaction yet when it has acknowledged it.
        """
        lane = _Lane(self.place, self.producer)
        if self.producer is not None:
            lane.group_at, lane.inputs, lane.tally = self.group_at, self.inputs, self.tally
        return lane

    def batch(self, max_records: int, max_bytes: int) -> Batch | None:
        records, size = [], 0
        until = self.group_at if self.is_behind else self.next
        for record in self.buffer:
            if record.offset >= until:
                break
            records.append(record)
            size += len(record.value or b"")
            if len(records) >= max_records or size >= max_bytes:
                break
        if not records:
            # What the store lacks ends with the end of a transaction, and what it has not had begins.
            return Batch(*self.place, [], self.start, until, marked=True) if self.buffer else None
        whole = len(records) == len(self.buffer)
        end = min(until, self.next) if whole else records[-1].offset + 1
        return Batch(*self.place, records, self.start, end, marked=True)

    def after(self, progress: Progress) -> tuple[int, Tally]:
        # What was published after a restart is not in the buffer any more: of that, the store's word is taken.
        read = bisect_left(self.buffer, progress.next_offset, key=attrgetter("offset")) or progress.tally.total
        return self.inputs + read, self.tally.plus(progress.tally)

    def pass_on(self, progress: Progress) -> None:
        if progress.next_offset > self.group_at:
            self.inputs, self.tally = self.after(progress)
            self.group_at = progress.next_offset
        if self.buffer and self.buffer[-1].offset < progress.next_offset:
            self.buffer.clear()
        while self.buffer and self.buffer[0].offset < progress.next_offset:
            self.buffer.popleft()
        self.start = progress.next_offset


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """A member of a consumer group; see `services.kernel.log.Consumer`."""

    def __init__(
        self,
        log_: "KafkaLog",
        group: str,
        topics: tuple[str, ...],
        ledger: Ledger,
        internal_topics: Collection[str] = (),
    ) -> None:
        self.group, self.topics = group, topics
        self.trouble: str | None = None
        self._log, self._ledger, self._internal = log_, ledger, frozenset(internal_topics)
        self._consumer: Any = None
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._former: dict[tuple[str, int], _Lane] = {}  # during a rebalance
        self._polled: dict[tuple[str, int], int] = {}  # where the last batch of each partition began
        self._taken = ("", -1)  # the place of the last batch
        self._hand = asyncio.Lock()  # held while a unit is open
        self._staged: tuple[_Lane, Progress] | None = None
        self._turn = 0

    @property
    def assigned(self) -> tuple[tuple[str, int], ...]:
        """The partitions that this member has been given."""
        return tuple(sorted(self._lanes))

    # Rebalances -------------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let the unit in hand come to its end, and take no other of these partitions."""
        del revoked  # aiokafka gives up all of them
        try:
            async with asyncio.timeout(REVOCATION_S), self._hand:
                self._close_lanes()
        except TimeoutError:
            log.warning("kafka.unit_overtaken", group=self.group, waited_s=REVOCATION_S)
            self._close_lanes()  # its commit will be refused

    def _close_lanes(self) -> None:
        for place in self._lanes:
            self._log.stands(self.group, place, None)
        self._former, self._lanes = {**self._former, **self._lanes}, {}

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take up partitions. The producer of one that comes back goes on: fenced if somebody had it meanwhile."""
        former, self._former = self._former, {}
        for each in assigned:
            place = (self._log.unnamed(each.topic), each.partition)
            lane = former.pop(place, None)
            self._lanes[place] = lane.again() if lane else _Lane(place)
        for lane in former.values():
            self._drop_producer(lane)

    def _drop_producer(self, lane: _Lane) -> None:
        lane.open, lane.group_at = False, 0  # the next one to start finds out
        if lane.producer is not None:
            self._log.later(stop(lane.producer))
            lane.producer = None

    # Polling ----------------------------------------------------------------------------------------------------

    async def poll(self, max_records: int, max_bytes: int) -> Batch:
        """Wait for the next records of one of this member's partitions; the partitions take turns."""
        attempt = 0
        while True:
            try:
                if self._consumer is None:
                    await self._join()
                batch = await self._next(max_records, max_bytes)
            except (KafkaError, UnavailableError, TimeoutError) as error:
                attempt += 1
                self.trouble = str(error)
                delay = backoff_s(attempt, base_s=0.1, cap_s=5.0)
                log.info("kafka.poll_again", group=self.group, error=repr(error), retry_in_s=round(delay, 2))
                await asyncio.sleep(delay)
                continue
            attempt = 0
            behind = sum(max(0, lane.group_at - lane.start) for lane in self._lanes.values() if lane.open)
            self.trouble = f"the store of {self.group} takes in {behind} offsets again" if behind else None
            if batch is not None:
                self._taken = (batch.topic, batch.partition)
                self._polled[self._taken] = batch.start
                return batch

    async def _join(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._log.connection,
            group_id=self._log.named(self.group),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 10,
            rebalance_timeout_ms=REBALANCE_MS,
            # Partitions of one number in all topics go to one member, as in the embedded log.
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        consumer.subscribe([self._log.named(topic) for topic in self.topics], listener=self)
        try:
            await consumer.start()
        except BaseException:
            await stop(consumer)
            raise
        self._consumer = consumer

    async def _next(self, max_records: int, max_bytes: int) -> Batch | None:
        await asyncio.sleep(0)  # else who polls without ever waiting would keep aiokafka from fetching
        for lane in list(self._lanes.values()):
            await self._open(lane)
        await self._fill(0)
        if batch := self._take(max_records, max_bytes):
            return batch
        await self._fill(POLL_MS)
        if batch := self._take(max_records, max_bytes):
            return batch
        # Ends of transactions, or what was compacted, and no record: the group goes past them, to have no lag.
        for lane in self._lanes.values():
            end = min(lane.next, lane.group_at) if lane.is_behind else lane.next
            if lane.open and not lane.buffer and end > lane.start:
                return Batch(*lane.place, [], lane.start, end, marked=True)
        return None

    async def _open(self, lane: _Lane) -> None:
        """Fence who had the partition before, then find out where the group stands."""
        if lane.open:
            return
        if lane.producer is None:
            topic, partition = lane.place
            producer = self._log.new_producer(self._log.named(f"{self.group}:{topic}:{partition}"))
            try:
                async with asyncio.timeout(TRANSACTION_S):
                    await producer.start()
            except BaseException:
                self._log.later(stop(producer))
                raise
            lane.producer = producer
        found = await self._log.offsets(self.group, [lane.place])
        offset, (inputs, tally) = found.get(lane.place, (0, (0, Tally())))
        if offset >= lane.group_at:
            lane.group_at, lane.inputs, lane.tally = offset, inputs, tally
        store_at = lane.group_at
        if not isinstance(self._ledger, Stateless):
            pending = await self._ledger.pending(self.group, *lane.place)
            store_at = pending.next_offset if pending else 0
            if pending is not None and store_at > lane.group_at:
                await self._publish(lane, pending)
        if self._lanes.get(lane.place) is lane:  # it may have gone meanwhile
            self._consumer.seek(self._tp(lane), store_at)
            lane.stand_at(store_at)
            self._log.stands(self.group, lane.place, store_at if lane.is_behind else None)

    async def _fill(self, timeout_ms: int) -> None:
        """Fetch for partitions of which nothing is left."""
        lanes = {self._tp(lane): lane for lane in self._lanes.values() if lane.open and not lane.buffer}
        if not lanes:
            if not self._lanes:  # aiokafka must be asked nevertheless, or it would leave the group
                await self._consumer.getmany(timeout_ms=timeout_ms or 1)
            return
        for place, raw in (await self._consumer.getmany(*lanes, timeout_ms=timeout_ms)).items():
            lane = lanes[place]
            lane.buffer.extend(records_of(raw, lane.place[0]))
        for place, lane in lanes.items():
            if self._lanes.get(lane.place) is lane and lane.open:
                lane.next = max(lane.next, await self._consumer.position(place))

    def _take(self, max_records: int, max_bytes: int) -> Batch | None:
        lanes = list(self._lanes.values())
        for step in range(len(lanes)):
            lane = lanes[(self._turn + step) % len(lanes)]
            if lane.open and (batch := lane.batch(max_records, max_bytes)):
                self._turn = (self._turn + step + 1) % len(lanes)
                return batch
        return None

    def _tp(self, lane: _Lane) -> TopicPartition:
        return TopicPartition(self._log.named(lane.place[0]), lane.place[1])

    # Committing -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Open the unit of work of a batch; once the store has it, the outputs are published and the group moves."""
        async with self._hand:
            self._staged = None
            try:
                async with self._ledger.unit():
                    yield
            except BaseException as error:
                # The store may have moved on, by this batch or by another worker's: look at it anew.
                if self._taken in self._lanes and (self._staged is not None or isinstance(error, PartitionLostError)):
                    self._drop_producer(self._lanes[self._taken])
                raise
            if self._staged is not None:
                await self._publish(*self._staged)
                self._pass(*self._staged)

    def check(self, outputs: Sequence[Message]) -> None:
        """Refuse outputs that cannot be published, before anything is stored."""
        for each in outputs:
            self._log.partition_for(each)
            # The key comes again in a header, and a character takes up to four bytes.
            size = 2 * len(each.key or b"") + len(each.value or b"") + 4 * sum(map(len, each.headers.values()))
            if size > RECORD_BYTES_MAX - OVERHEAD_BYTES:
                raise ValueError(f"an output of {self.group} is longer than {RECORD_BYTES_MAX} bytes")

    async def commit(self, progress: Progress) -> None:
        """Keep the progress in the ledger; at the unit's end it is published."""
        place = (progress.topic, progress.partition)
        lane = self._lanes.get(place)
        if lane is not None:
            await self._open(lane)  # it may have gone and come back
        # Where the group stands elsewhere than at this batch's beginning, somebody else has done it.
        if lane is None or self._polled.get(place, lane.start) != lane.start:
            raise self._lost(place)
        await self._ledger.record(progress)
        self._staged = (lane, progress)

    async def _publish(self, lane: _Lane, progress: Progress) -> None:
        """Publish outputs and move the group in one transaction; what it has passed already is not published again."""
        is_new = progress.next_offset > lane.group_at
        outputs = progress.outputs if is_new else [each for each in progress.outputs if each.topic in self._internal]
        if is_new or outputs:
            prepared = [(each, self._log.partition_for(each), headers_of(each)) for each in outputs]
            inputs, tally = lane.after(progress)
            told = OffsetAndMetadata(progress.next_offset, orjson.dumps([inputs, *tally]).decode())
            async with self._guarded(lane):
                await lane.producer.begin_transaction()
                await self._log.sent(lane.producer, prepared)
                if is_new:
                    group = self._log.named(self.group)
                    await lane.producer.send_offsets_to_transaction({self._tp(lane): told}, group)
                await lane.producer.commit_transaction()
        lane.pass_on(progress)
        self._log.moved_on(progress._replace(outputs=outputs))

    def _pass(self, lane: _Lane, progress: Progress) -> None:
        """Go on behind a batch that is published."""
        self._log.stands(self.group, lane.place, lane.start if lane.is_behind else None)
        if progress.next_offset > lane.next:  # further than anything that was polled
            lane.next = progress.next_offset
            if self._lanes.get(lane.place) is lane:
                self._consumer.seek(self._tp(lane), lane.next)

    async def reopen(self) -> None:
        """Look anew at where group and store stand: the store has been emptied."""
        async with self._hand:
            for lane in self._lanes.values():
                self._drop_producer(lane)
                self._log.stands(self.group, lane.place, 0)  # until it is known better

    @asynccontextmanager
    async def _guarded(self, lane: _Lane) -> AsyncIterator[None]:
        """Give the producer up when something goes wrong: what becomes of its transaction, its successor finds out."""
        try:
            async with asyncio.timeout(TRANSACTION_S):
                yield
        except FENCED as error:
            self._drop_producer(lane)
            raise self._lost(lane.place) from error
        except MessageSizeTooLargeError as error:
            self._drop_producer(lane)
            # No outage, which would be waited for: the input that leads to it is poison.
            raise ValueError(f"an output of {self.group} is longer than {RECORD_BYTES_MAX} bytes") from error
        except (KafkaError, TimeoutError) as error:
            self._drop_producer(lane)
            raise UnavailableError(f"Kafka at {self._log.settings.bootstrap_servers}: {error!r}") from error
        except BaseException:
            self._drop_producer(lane)
            raise

    def _lost(self, place: tuple[str, int]) -> PartitionLostError:
        return PartitionLostError(f"{place[0]}/{place[1]} has moved to another member of {self.group}")

    async def close(self) -> None:
        """Leave the group."""
        self._log.left(self)
        if self._consumer is not None:
            await stop(self._consumer)
            self._consumer = None
        for lane in (*self._lanes.values(), *self._former.values()):
            if lane.producer is not None:
                await stop(lane.producer)
                lane.producer = None
        self._lanes, self._former = {}, {}
