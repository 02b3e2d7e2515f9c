"""The port of the log: an ordered, partitioned, replayable record of everything that happened.

Two adapters fit it: `sqlite_log` (embedded) and Kafka. What a user of the port must be ready for holds for both:
partitions move between the consumers of a group, a commit can fail because they did, and records arrive again.
"""

import base64
import binascii
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message as Proto

from headwater.common.v1 import common_pb2
from services.kernel.errors import InvalidInputError, VersionConflictError
from services.kernel.topics import TopicSpec

if TYPE_CHECKING:
    from services.kernel.sqlite import Transaction

EMPTY: Mapping[str, str] = MappingProxyType({})
SEPARATOR = "\x1f"
DEFAULT_TENANT = "default"

Offsets = dict[tuple[str, int], int]
"""(topic, partition) -> the offset of the next record."""


class Record(NamedTuple):
    """A record as a consumer reads it.

    Attributes:
        topic, partition, offset: its place.
        key: what it is about; records of one key are in one partition, in order.
        value: the encoded event; None is a tombstone.
        type: the full name of the message in `value` (CloudEvents `type`).
        event_id: the same for every delivery and every replay of the event (CloudEvents `id`).
        timestamp_ms: when it happened, milliseconds since the epoch (CloudEvents `time`).
        headers: other metadata, for example `traceparent`.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    type: str
    event_id: str
    timestamp_ms: int
    headers: Mapping[str, str] = EMPTY


class Message(NamedTuple):
    """A record to append. `partition` None means the key's; an empty `event_id` is filled in by whoever appends."""

    topic: str
    key: bytes | None
    value: bytes | None
    type: str
    timestamp_ms: int
    partition: int | None = None
    event_id: str = ""
    headers: Mapping[str, str] = EMPTY


class Batch(NamedTuple):
    """Records of one partition, in order: what there still is from `start` up to `next_offset`.

    `marked` tells that other things than records take offsets too, as the ends of transactions do in Kafka: an offset
    without a record says nothing then.
    """

    topic: str
    partition: int
    records: Sequence[Record]
    start: int
    next_offset: int
    marked: bool = False

    @property
    def gone(self) -> int:
        """How many records had left the log: by compaction, by age, by an erasure. They count as superseded."""
        return 0 if self.marked else self.next_offset - self.start - len(self.records)


class Tally(NamedTuple):
    """What became of a batch's inputs; the sum is their number."""

    applied: int = 0
    superseded: int = 0
    waiting: int = 0
    dead_lettered: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """Return the sums."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        """The number of inputs."""
        return self.applied + self.superseded + self.waiting + self.dead_lettered


class Progress(NamedTuple):
    """What a batch leads to.

    Attributes:
        group, topic, partition: whose batch of what.
        start: where the batch began.
        next_offset: how far the group is then.
        outputs: what it publishes.
        tally: what became of the inputs.
    """

    group: str
    topic: str
    partition: int
    start: int
    next_offset: int
    outputs: Sequence[Message]
    tally: Tally


class PartitionLostError(VersionConflictError):
    """The partition has moved to another consumer: abandon the batch, it will be done there."""


class Ledger(Protocol):
    """How far a store is, kept in the store itself: a log that is elsewhere is brought in step with it.

    In one write with the state, a store keeps for every (group, topic, partition) the newest `Progress`: the offset as
    a fence, the outputs as an outbox. Three things follow:

    - The log publishes the outputs and moves the group only afterwards. Where that fails, `pending` gives them again.
    - A write whose `Progress.start` is not where the store stands must change nothing and raise PartitionLostError:
      somebody else, or this worker before a crash, has done the batch.
    - A store that is behind the group was emptied: it takes in again what it lacks, and nothing of that is published.
    """

    def unit(self) -> AbstractAsyncContextManager[None]:
        """Open the unit of work in which a batch is loaded, decided and saved, where the store has such units."""

    async def record(self, progress: Progress) -> None:
        """Keep the progress, within the open unit; nothing to do where `Store.save` has kept it already."""

    async def pending(self, group: str, topic: str, partition: int) -> Progress | None:
        """Return the newest progress of a partition, finishing its write first where that was cut off; None if none."""


class Stateless:
    """The ledger of a group that keeps nothing: the log alone knows how far it is."""

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Do nothing."""
        yield

    async def record(self, progress: Progress) -> None:
        """Do nothing."""

    async def pending(self, group: str, topic: str, partition: int) -> Progress | None:
        """Return None."""
        del group, topic, partition
        return None


class Consumer(Protocol):
    """One member of a consumer group."""

    trouble: str | None
    """Why nothing comes in just now; None while all is well."""

    async def poll(self, max_records: int, max_bytes: int) -> Batch:
        """Wait for the next records of one partition that this member has been given.

        Successive polls go on from the last *committed* offset of a partition.
        """

    def unit(self) -> AbstractAsyncContextManager[None]:
        """Open the unit of work in which a batch is loaded, decided and saved; leaving it normally makes it last."""

    def check(self, outputs: Sequence[Message]) -> None:
        """Refuse outputs that cannot be published, before anything is stored.

        Raises:
            InvalidInputError, ValueError: there is no such place, or one is too long.
        """

    async def commit(self, progress: Progress) -> None:
        """Publish the outputs and advance the group, within the open unit.

        Raises:
            PartitionLostError: the partition is not this member's any more.
        """

    async def close(self) -> None:
        """Leave the group; its partitions go to the other members."""


class Log(Protocol):
    """The log."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Make the topics that are not there yet."""

    def partitions(self, topic: str) -> int:
        """Return the topic's number of partitions; raises InvalidInputError for a topic that is not there."""

    async def append(
        self, messages: Sequence[Message], *, durable: bool = True, from_outside: bool = True
    ) -> common_pb2.Position:
        """Append all messages, or none.

        Args:
            messages: in order; those of one partition get consecutive offsets.
            durable: return only when they would survive a power failure.
            from_outside: whether they wait while the log is to stand still; what follows from the log does not.

        Returns:
            The position that is reached when all of them have been read.
        """

    async def read(
        self, topic: str, partition: int, offset: int, *, max_records: int = 500, max_bytes: int = 1 << 20
    ) -> list[Record]:
        """Return committed records from `offset` on: at least one if there is one, within the bounds."""

    async def end(self, topic: str) -> list[int]:
        """Return the next offset of each partition."""

    async def committed(self, group: str) -> Offsets:
        """Return the next offsets of a group; partitions that it never committed are not named."""

    async def wait_committed(self, groups: Collection[str], position: common_pb2.Position, timeout_s: float) -> bool:
        """Wait until every group has passed `position` in the topics that it consumes; False after `timeout_s`."""

    async def wait_for(self, topics: Collection[str], seen: Offsets, timeout_s: float) -> bool:
        """Wait until a topic holds records at or beyond `seen` (missing means 0); False after `timeout_s`."""

    def consumer(
        self, group: str, topics: Sequence[str], ledger: Ledger | None = None, internal_topics: Collection[str] = ()
    ) -> Consumer:
        """Join a consumer group.

        Args:
            group: its name.
            topics: what it consumes.
            ledger: that of the group's store; None for stores in the local database.
            internal_topics: those of its outputs that are published again when the store is made again.
        """

    def assigned(self, group: str) -> Collection[tuple[str, int]]:
        """Return the partitions, as topic and number, that the group's members in this process have been given."""

    def topics(self) -> list[str]:
        """Return the names of all topics."""

    async def count(self, topic: str) -> int:
        """Return how many records a topic holds; where the log cannot tell, how many offsets."""

    async def positions_of(self, group: str, topics: Collection[str]) -> Offsets:
        """Return where a group stands in every partition of the topics."""

    async def lag(self, group: str, topics: Collection[str]) -> int:
        """Return how many records, or offsets, the group has not passed yet."""

    async def oldest_pending_ms(self, group: str, topics: Collection[str]) -> int | None:
        """Return the event time of the oldest record, by offset, that a group has not passed; None if there is none."""

    async def tallies(self, group: str) -> tuple[int, Tally]:
        """Return how many inputs a group has passed, and what it says became of them."""

    async def erase(
        self, matches: Callable[[Record], bool], kept_topics: Collection[str], *, dry_run: bool = False
    ) -> dict[str, int]:
        """Remove every record that matches, as far as the log can remove single records.

        Args:
            matches: tells whether a record has to go.
            kept_topics: topics that are not looked at.
            dry_run: only count.

        Returns:
            How many records went (or are there that would have to go), per topic that had any.
        """

    def is_muted(self, group: str) -> bool:
        """Tell whether a group is being rebuilt: its background work must not publish again either."""

    def rebuilding(
        self, groups: Collection[str], internal_topics: Collection[str]
    ) -> AbstractAsyncContextManager["Transaction"]:
        """Open the unit of work in which a store is emptied: afterwards its groups take everything in again.

        What they publish is in the log already and is not published again, save to `internal_topics`; until
        `rebuilt`, even if the process ends before.
        """

    async def rebuilt(self, groups: Collection[str]) -> None:
        """Let groups publish again."""

    def standing_still(self) -> AbstractAsyncContextManager[None]:
        """Make what this process appends from outside wait; processors still publish."""

    async def reset_group(self, unit: "Transaction", group: str) -> None:
        """Send a group back to the beginning of its topics: it publishes everything anew."""

    def unit_from_outside(
        self, *, durable: bool = False, urgent: bool = False
    ) -> AbstractAsyncContextManager["Transaction"]:
        """Open a unit of work of the local database in which somebody publishes who is no processor."""


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key: the same in every adapter, and for ever."""
    return zlib.crc32(key) % partitions


def key_of(tenant: str, *parts: str) -> bytes:
    """Return the canonical key of something that belongs to a tenant; an empty tenant means the default one."""
    return SEPARATOR.join((tenant or DEFAULT_TENANT, *parts)).encode()


def message_of(topic: str, key: bytes, event: Proto, timestamp_ms: int, partition: int | None = None) -> Message:
    """Return the message that carries an event of `protos/`."""
    return Message(topic, key, event.SerializeToString(), event.DESCRIPTOR.full_name, timestamp_ms, partition)


def position_of(offsets: Mapping[tuple[str, int], int]) -> common_pb2.Position:
    """Return offsets as a position, in a canonical order."""
    return common_pb2.Position(
        offsets=[
            common_pb2.TopicOffset(topic=topic, partition=partition, offset=offset)
            for (topic, partition), offset in sorted(offsets.items())
        ]
    )


def encode_token(position: common_pb2.Position) -> str:
    """Return a position's text form, the position token."""
    return base64.urlsafe_b64encode(position.SerializeToString(deterministic=True)).decode().rstrip("=")


def decode_token(token: str) -> common_pb2.Position:
    """Return the position of a token; raises InvalidInputError when it is none."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return common_pb2.Position.FromString(raw)
    except (binascii.Error, DecodeError, ValueError) as error:
        raise InvalidInputError(
            f"{token!r:.80} is not a position token: pass on what a push answered, whole"
        ) from error
