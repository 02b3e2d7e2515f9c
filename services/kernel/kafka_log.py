"""The log of a cluster: the port `services.kernel.log.Log` on Kafka.

What differs from the embedded log, and what users of the port are ready for anyway:

- An append to several partitions that fails half-way may leave some of its messages; whoever repeats it makes
  duplicates, which the fences of the stores recognise. Nothing is appended of what is refused beforehand.
- The ends of transactions take offsets, so that offsets are no numbers of records: what a group has read is counted,
  and kept with its tallies in the metadata of its offsets (`tallies`).
- State is not in the log's own database: it is written first, and its ledger brings the log in step
  (`services.kernel.log.Ledger`). What else publishes in a unit of work of the local database goes by its outbox.
- Single records cannot be removed: an erasure leaves a tombstone in compacted topics, and what others hold stays until
  their retention ends.
"""

import asyncio
import itertools
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from headwater.common.v1 import common_pb2
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.kafka_clients import STOP_S, Outgoing, Reader, send, stop
from services.kernel.kafka_consumer import KafkaConsumer
from services.kernel.kafka_diagnosis import unreachable
from services.kernel.kafka_records import (
    RECORD_BYTES_MAX,
    Headers,
    headers_of,
    is_compacted_in_kafka,
    records_of,
    topic_config,
)
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import (
    Ledger,
    Message,
    Offsets,
    Progress,
    Record,
    Stateless,
    Tally,
    partition_of,
    position_of,
)
from services.kernel.outbox import LocalLedger
from services.kernel.sqlite import Database, Transaction
from services.kernel.topics import TOPICS, TopicSpec
from services.kernel.waiters import Waiters

DEFAULT_PARTITIONS = 4
TOPIC_EXISTS, GROUP_NOT_THERE = 36, 69
CREATED_WITHIN_S = 30.0
CLOSING_S = 5.0  # for what is closed after a client has been stopped
READERS_MAX = 16
POLL_FIRST_S, POLL_MAX_S = 0.02, 0.25
BATCH_BYTES = 256 << 10


class KafkaLog:
    """The log of a cluster; see `services.kernel.log.Log`. `start` it first, and `close` it."""

    def __init__(
        self, settings: KafkaSettings, database: Database | None = None, partitions: int = DEFAULT_PARTITIONS
    ) -> None:
        """Wire it; nothing is connected yet.

        Args:
            settings: where the cluster is.
            database: the local database, for stores and sources that are in it; without one, groups whose store has no
                ledger of its own keep nothing.
            partitions: of each new topic.
        """
        self.settings = settings
        self._database = database
        self._local = LocalLedger(database) if database is not None else None
        self._behind: dict[str, Offsets] = defaultdict(dict)  # where stores stand that lack what their groups have had
        self.connection = settings.connection()
        self._default_partitions = partitions
        self._partitions: dict[str, int] = {}
        self._admin: Any = None
        self._producer: Any = None
        self._producing = asyncio.Lock()
        self._readers: OrderedDict[tuple[str, int], Reader] = OrderedDict()
        self._inputs: dict[str, set[str]] = {}  # of the groups with a member in this process
        self._members: set[KafkaConsumer] = set()
        self._reached: dict[str, Offsets] = defaultdict(dict)  # by the members in this process
        self._appended, self._advanced = Waiters(), Waiters()
        self._background: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()  # closed while what comes from outside has to wait
        self._open.set()

    async def start(self) -> None:
        """Connect, and learn which topics there are.

        Raises:
            UnavailableError: no broker answers.
            InvalidInputError: they do, and do not let this client in.
        """
        admin = AIOKafkaAdminClient(**self.connection)
        try:
            await admin.start()
            self._admin = admin
            await self._look(await admin.list_topics())
        except KafkaError as error:
            await admin.close()
            raise await unreachable(self.settings, error) from error

    async def close(self) -> None:
        """Let the members leave their groups, and close the connections."""
        for member in tuple(self._members):
            await member.close()
        for reader in self._readers.values():
            await reader.close()
        self._readers.clear()
        if self._producer is not None:
            await stop(self._producer)
        if self._background:
            await asyncio.wait(self._background, timeout=STOP_S + CLOSING_S)
        if self._admin is not None:
            await self._admin.close()

    def named(self, topic: str) -> str:
        """Return what the cluster calls a topic, a group or a transactional id."""
        return self.settings.prefix + topic

    def unnamed(self, name: str) -> str:
        """Return what a topic of the cluster is called here."""
        return name.removeprefix(self.settings.prefix)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside, such as to close what nobody waits for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Topics -----------------------------------------------------------------------------------------------------

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Make the topics that are not there yet; what is there stays as it is.

        Raises:
            InvalidInputError: the cluster refuses one.
            UnavailableError: the cluster does not answer, or a topic is not ready in time.
        """
        missing = [spec for spec in specs if spec.name not in self._partitions]
        if not missing:
            return
        copies = self.settings.replication
        new = [
            NewTopic(
                self.named(spec.name),
                spec.partitions or self._default_partitions,
                copies,
                topic_configs=topic_config(spec, copies),
            )
            for spec in missing
        ]
        response = await self.asked(self._admin.create_topics(new))
        for name, code, *words in response.topic_errors:
            if code not in (0, TOPIC_EXISTS):
                raise InvalidInputError(f"Kafka does not make the topic {name}: {words[0] if words else code}")
        deadline = time.monotonic() + CREATED_WITHIN_S
        while absent := [spec.name for spec in missing if spec.name not in self._partitions]:
            if time.monotonic() > deadline:
                raise UnavailableError(f"the topic {absent[0]} is not ready after {CREATED_WITHIN_S:.0f} s: try again")
            await self._look([self.named(name) for name in absent])
            await asyncio.sleep(POLL_FIRST_S)

    async def _look(self, names: Sequence[str]) -> None:
        """Learn how many partitions topics have, once each partition has a leader."""
        mine = [name for name in names if name.startswith(self.settings.prefix)]
        for found in await self.asked(self._admin.describe_topics(mine)) if mine else ():
            led = [part for part in found["partitions"] if part["leader"] >= 0 and part["error_code"] == 0]
            if found["error_code"] == 0 and led and len(led) == len(found["partitions"]):
                self._partitions[self.unnamed(found["topic"])] = len(led)

    async def asked(self, request: Awaitable[Any]) -> Any:
        """Return the cluster's answer; raises UnavailableError when there is none."""
        try:
            return await request
        except (KafkaError, TimeoutError) as error:
            raise UnavailableError(f"Kafka at {self.settings.bootstrap_servers}: {error!r}") from error

    def partitions(self, topic: str) -> int:
        """Return the topic's number of partitions."""
        try:
            return self._partitions[topic]
        except KeyError:
            raise InvalidInputError(f"there is no topic {topic!r}: create it first") from None

    def topics(self) -> list[str]:
        """Return the names of all topics."""
        return sorted(self._partitions)

    def partition_for(self, message: Message) -> int:
        """Return where a message belongs; raises InvalidInputError when there is no such place."""
        partitions = self.partitions(message.topic)
        if message.partition is None:
            return partition_of(message.key or b"", partitions)
        if not 0 <= message.partition < partitions:
            raise InvalidInputError(f"{message.topic!r} has no partition {message.partition}")
        return message.partition

    # Writing ----------------------------------------------------------------------------------------------------

    async def append(
        self, messages: Sequence[Message], *, durable: bool = True, from_outside: bool = True
    ) -> common_pb2.Position:
        """Append messages; returns when every copy that must have them has them, whatever `durable` says."""
        del durable  # an offset is known only with the acknowledgement
        if from_outside:
            await self._open.wait()
        return await self._append(messages)

    async def relay(self) -> None:
        """Publish what units of work of the local database emit; a background task."""
        if self._local is not None:
            await self._local.relay(self._append)

    async def _append(self, messages: Sequence[Message]) -> common_pb2.Position:
        prepared = [(message, self.partition_for(message), headers_of(message)) for message in messages]
        producer = await self._get_producer()
        try:
            ends = await self.sent(producer, prepared)
        except MessageSizeTooLargeError as error:
            raise InvalidInputError(f"a record is longer than {RECORD_BYTES_MAX} bytes") from error
        except KafkaError as error:
            # What was lost leaves a hole in the sequence of this producer, so that it cannot go on.
            if self._producer is producer:
                self._producer = None
                self.later(stop(producer))
            raise UnavailableError(f"Kafka at {self.settings.bootstrap_servers}: {error!r}") from error
        self._appended.wake({topic for topic, _ in ends})
        return position_of(ends)

    async def sent(self, producer: Any, prepared: Sequence[tuple[Message, int, Headers]]) -> Offsets:
        """Send messages, those of a partition in order; return the next offset of each partition that got some.

        Raises:
            KafkaError: the first that there was, when all are through.
        """
        records: dict[tuple[str, int], list[Outgoing]] = defaultdict(list)
        for message, partition, headers in prepared:
            # No key and no value at once is not sent by aiokafka; an empty key means the same to its readers.
            key = message.key if message.value is not None else message.key or b""
            records[message.topic, partition].append((key, message.value, headers))
        results: list[Any] = await asyncio.gather(
            *(send(producer, TopicPartition(self.named(topic), n), each) for (topic, n), each in records.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return dict(zip(records, results, strict=True))

    def moved_on(self, progress: Progress) -> None:
        """Take note of a transaction that is committed, and wake who waits for it."""
        self._reached[progress.group][progress.topic, progress.partition] = progress.next_offset
        self._advanced.wake((progress.group,))
        self._appended.wake({message.topic for message in progress.outputs})

    async def _get_producer(self) -> Any:
        async with self._producing:
            if self._producer is None:
                producer = self.new_producer()
                try:
                    await self.asked(producer.start())
                except BaseException:
                    self.later(stop(producer))
                    raise
                self._producer = producer
            return self._producer

    def new_producer(self, transactional_id: str | None = None) -> Any:
        """Return a producer that is not started: an idempotent one, or one of transactions."""
        return AIOKafkaProducer(
            **self.connection,
            acks="all",
            enable_idempotence=True,
            transactional_id=transactional_id,
            max_request_size=RECORD_BYTES_MAX,
            max_batch_size=BATCH_BYTES,
        )

    # Reading ----------------------------------------------------------------------------------------------------

    async def read(
        self, topic: str, partition: int, offset: int, *, max_records: int = 500, max_bytes: int = 1 << 20
    ) -> list[Record]:
        """Return committed records from `offset` on."""
        if partition not in range(self.partitions(topic)):
            raise InvalidInputError(f"{topic!r} has no partition {partition}")
        place = (topic, partition)
        reader = self._readers.setdefault(place, Reader(TopicPartition(self.named(topic), partition)))
        self._readers.move_to_end(place)
        idle = [other for other, each in self._readers.items() if other != place and not each.lock.locked()]
        for other in idle[: max(0, len(self._readers) - READERS_MAX)]:
            self.later(self._readers.pop(other).close())
        raw: list[Any] = await self.asked(reader.read(self.connection, offset, max_records, self._ends))
        sizes = [each.serialized_value_size for each in raw]
        if sum(sizes) >= max_bytes:
            raw = raw[: 1 + sum(size < max_bytes for size in itertools.accumulate(sizes))]
        return records_of(raw, topic)

    async def end(self, topic: str) -> list[int]:
        """Return the next offset of each partition: whatever anybody has written is below it, if undecided as yet.

        A transaction is acknowledged before it can be read: who waits for what it has written must find its end.
        """
        places = [TopicPartition(self.named(topic), partition) for partition in range(self.partitions(topic))]
        ends = await self.asked(self._ends(places, "read_uncommitted"))
        return [ends[place] for place in places]

    async def _ends(
        self, places: Sequence[TopicPartition], isolation: str = "read_committed"
    ) -> dict[TopicPartition, int]:
        """Return the next offsets; of committed reads, those below which everything is decided."""
        name = (isolation, 0)  # a reader of no partition: it is only asked
        reader = self._readers.setdefault(name, Reader(None, isolation))
        self._readers.move_to_end(name)
        return await reader.ends(self.connection, places)

    async def wait_for(self, topics: Collection[str], seen: Offsets, timeout_s: float) -> bool:
        """Wait until a topic holds records at or beyond `seen`; what other processes append is looked for."""

        async def has_more() -> bool:
            places = [TopicPartition(self.named(t), n) for t in topics for n in range(self.partitions(t))]
            ends = await self.asked(self._ends(places))
            return any(end > seen.get((self.unnamed(place.topic), place.partition), 0) for place, end in ends.items())

        return await _until(has_more, self._appended, topics, timeout_s)

    # Groups -----------------------------------------------------------------------------------------------------

    def consumer(
        self, group: str, topics: Sequence[str], ledger: Ledger | None = None, internal_topics: Collection[str] = ()
    ) -> KafkaConsumer:
        """Join a consumer group, when it is polled first."""
        for topic in topics:
            self.partitions(topic)
        self._inputs.setdefault(group, set()).update(topics)
        member = KafkaConsumer(self, group, tuple(topics), ledger or self._local or Stateless(), tuple(internal_topics))
        self._members.add(member)
        return member

    def left(self, member: KafkaConsumer) -> None:
        """Take note that a member has left its group."""
        self._members.discard(member)

    def assigned(self, group: str) -> set[tuple[str, int]]:
        """Return the partitions that the group's members in this process have been given."""
        return {place for member in self._members if member.group == group for place in member.assigned}

    async def committed(self, group: str) -> Offsets:
        """Return the next offsets of a group."""
        offsets = {place: offset for place, (offset, _) in (await self.offsets(group)).items()}
        # The cluster may not tell of the last transaction yet when it has acknowledged it.
        for place, reached in self._reached[group].items():
            offsets[place] = max(offsets.get(place, 0), reached)
        return offsets | self._behind[group]

    def stands(self, group: str, place: tuple[str, int], store_at: int | None) -> None:
        """Take note of where a store stands that lacks what its group has had; None when it lacks nothing."""
        if store_at is None:
            self._behind[group].pop(place, None)
        else:
            self._behind[group][place] = store_at

    async def offsets(
        self, group: str, places: Collection[tuple[str, int]] | None = None
    ) -> dict[tuple[str, int], tuple[int, tuple[int, Tally]]]:
        """Return, per partition that a group has committed, the next offset, and its inputs and what became of them."""
        wanted = None if places is None else [TopicPartition(self.named(topic), n) for topic, n in places]
        found = await self.asked(self._admin.list_consumer_group_offsets(self.named(group), partitions=wanted))
        return {
            (self.unnamed(place.topic), place.partition): (offset, counts_of(metadata))
            for place, (offset, metadata) in found.items()
            if offset >= 0
        }

    async def tallies(self, group: str) -> tuple[int, Tally]:
        """Return how many inputs a group has read, and what it says became of them."""
        inputs, total = 0, Tally()
        for _, (read, tally) in (await self.offsets(group)).values():
            inputs, total = inputs + read, total.plus(tally)
        return inputs, total

    async def positions_of(self, group: str, topics: Collection[str]) -> Offsets:
        """Return where a group stands in every partition of the topics."""
        offsets = await self.committed(group)
        places = [(topic, partition) for topic in topics for partition in range(self.partitions(topic))]
        return {place: offsets.get(place, 0) for place in places}

    async def lag(self, group: str, topics: Collection[str]) -> int:
        """Return how many offsets the group has not passed yet."""
        return sum([end - offset for _, offset, end in await self._pending(group, topics)])

    async def oldest_pending_ms(self, group: str, topics: Collection[str]) -> int | None:
        """Return the event time of the oldest record, by offset, that a group has not passed; None if there is none."""
        pending = await self._pending(group, topics)
        firsts = [await self.read(*place, offset, max_records=1) for place, offset, _ in pending]
        return min((record.timestamp_ms for records in firsts for record in records), default=None)

    async def _pending(self, group: str, topics: Collection[str]) -> list[tuple[tuple[str, int], int, int]]:
        """Return the partitions of which a group has not passed everything, with its offset and the end."""
        offsets = await self.positions_of(group, topics)
        places = [TopicPartition(self.named(topic), partition) for topic, partition in offsets]
        ends = await self.asked(self._ends(places))
        return [
            (place, offset, end)
            for (place, offset), end in zip(offsets.items(), (ends[each] for each in places), strict=True)
            if end > offset
        ]

    async def count(self, topic: str) -> int:
        """Return how many offsets a topic has used."""
        return sum(await self.end(topic))

    async def wait_committed(self, groups: Collection[str], position: common_pb2.Position, timeout_s: float) -> bool:
        """Wait until every group has passed `position` in the topics that it consumes.

        Those are the topics of its members in this process and of its offsets; a group that nothing is known of has
        passed nothing.
        """

        async def passed() -> bool:
            for group in groups:
                offsets = await self.committed(group)
                inputs = self._inputs.get(group, set()) | {topic for topic, _ in offsets}
                for place in position.offsets:
                    consumed = place.topic in inputs or not inputs
                    if consumed and offsets.get((place.topic, place.partition), 0) < place.offset:
                        return False
            return True

        return await _until(passed, self._advanced, groups, timeout_s)

    # Operations -------------------------------------------------------------------------------------------------

    def is_muted(self, group: str) -> bool:
        """Tell whether the store of a group, in this process, takes in again what the group has had already."""
        return bool(self._behind[group])

    @asynccontextmanager
    async def rebuilding(self, groups: Collection[str], internal_topics: Collection[str]) -> AsyncIterator[Transaction]:
        """Open the unit of work in which a store is emptied; its groups' members look anew at where it stands then.

        Raises:
            UnavailableError: the groups have members in other processes, which would write into it meanwhile.
        """
        del internal_topics  # the members know
        # One group at a time: aiokafka cannot read an answer about several.
        answers = [await self.asked(self._admin.describe_consumer_groups([self.named(group)])) for group in groups]
        for response in (each for answer in answers for each in answer):
            for _, name, _, _, _, members, *_ in response.groups:
                mine = sum(self.named(member.group) == name for member in self._members)
                if len(members) > mine:
                    raise UnavailableError(
                        f"{name} has {len(members)} workers: scale the service to one while a store is made again"
                    )
        database, local = self._local_store()
        async with database.transaction() as unit:
            yield unit
            local.forget(unit, groups)
        for member in tuple(self._members):
            if member.group in groups:
                await member.reopen()

    async def rebuilt(self, groups: Collection[str]) -> None:
        """Do nothing: who has taken in what it lacked publishes again."""

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Make what this process appends from outside wait; other processes do as they like."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def reset_group(self, unit: Transaction, group: str) -> None:
        """Send a group back to the beginning of its topics.

        Raises:
            UnavailableError: the group has members just now, in other processes perhaps.
        """
        if self._local is not None:
            self._local.forget(unit, (group,))
        name = self.named(group)
        for deleted, code, *_ in await self.asked(self._admin.delete_consumer_groups([name])):
            if code not in (0, GROUP_NOT_THERE):
                raise UnavailableError(
                    f"the consumer group {deleted} cannot be sent back to the beginning while it has members (Kafka "
                    f"says {code}): stop all workers of the service, then start one"
                )

    @asynccontextmanager
    async def unit_from_outside(self, *, durable: bool = False, urgent: bool = False) -> AsyncIterator[Transaction]:
        """Open a unit of work of the local database in which somebody publishes who is no processor."""
        database, _ = self._local_store()
        await self._open.wait()
        async with database.transaction(durable=durable, urgent=urgent) as unit:
            yield unit

    def _local_store(self) -> tuple[Database, LocalLedger]:
        if self._database is None or self._local is None:
            raise InvalidInputError("this log was opened without a local database")
        return self._database, self._local

    async def erase(
        self, matches: Callable[[Record], bool], kept_topics: Collection[str], *, dry_run: bool = False
    ) -> dict[str, int]:
        """Leave tombstones for the matching records of compacted topics; only count those of others in a dry run."""
        counts: dict[str, int] = defaultdict(int)
        for spec in TOPICS:
            if spec.name in kept_topics:
                continue
            is_compacted = is_compacted_in_kafka(spec)
            for partition in range(self.partitions(spec.name)):
                offset, end = 0, (await self.end(spec.name))[partition]
                while offset < end and (records := await self.read(spec.name, partition, offset)):
                    offset = records[-1].offset + 1
                    found = [record for record in records if record.value is not None and matches(record)]
                    if is_compacted and not dry_run:
                        gone = [
                            Message(spec.name, key, None, kind, at, partition)
                            for key, kind, at in {(r.key, r.type, r.timestamp_ms) for r in found}
                        ]
                        await self._append(gone)
                    if is_compacted or dry_run:
                        counts[spec.name] += len(found)
        return {topic: count for topic, count in counts.items() if count}


def counts_of(metadata: str) -> tuple[int, Tally]:
    """Return what the metadata of an offset tell: inputs, and what became of them; nothing when others wrote it."""
    try:
        inputs, *tally = orjson.loads(metadata)
        return int(inputs), Tally(*map(int, tally))
    except (ValueError, TypeError):
        return 0, Tally()


async def _until(
    holds: Callable[[], Awaitable[bool]], waiters: Waiters, names: Collection[str], timeout_s: float
) -> bool:
    """Wait until something holds: it is looked at again when a name is woken, and now and then.

    A cluster that does not answer meanwhile is asked again; raises UnavailableError when it does not in the end.
    """
    deadline, pause = time.monotonic() + timeout_s, POLL_FIRST_S
    while True:
        left = deadline - time.monotonic()
        try:
            if await holds():
                return True
        except UnavailableError:
            if left <= 0:
                raise
        if left <= 0:
            return False
        await waiters.wait(names, min(pause, left))
        pause = min(pause * 1.5, POLL_MAX_S)
