"""The ledger of stores in MongoDB: a redo journal, for which changing one document at a time is enough.

Every (group, number of a partition) has one head document. A batch is written by a single compare-and-set of the head:
the new progress, the outputs, and all writes that the batch leads to. From then on the batch has happened. Only then
the writes are carried out, document by document; whoever finds a head of which that is not known does it again, which
changes nothing that has been done. So a crash at any instant leaves all of a batch, or nothing.

Every document carries the head's sequence number (`_seq`) and the head's name (`_from`), and is only replaced by a
greater number: a worker that was paused and wakes up changes nothing. What is removed leaves a tombstone (`_gone`) for
an hour, so that it cannot come back in that way either; readers look for documents with `_gone` None (`PRESENT`).

Two topics of a group share the heads, since they share the documents: a batch of one fences those of the other.

What a batch tells of its sources is written as its documents are, in a collection of the ledger's own: heads are long,
and whoever asks how fresh the store is must not have to read them.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from services.kernel.errors import UnavailableError
from services.kernel.freshness import Sighting, Sightings
from services.kernel.log import (
    DEFAULT_TENANT,
    EMPTY,
    SEPARATOR,
    Message,
    Offsets,
    PartitionLostError,
    Progress,
    Tally,
)
from services.kernel.mongodb import DuplicateKeyError, InsertOne, Mongo, ReplaceOne, asked, decoded, encoded

PRESENT: Mapping[str, Any] = {"_gone": None}
"""The filter of documents that have not been removed."""
TOMBSTONE_S = 3600
ORPHAN_S = 7 * 24 * 3600  # pieces of a batch that never happened
PIECE_BYTES = 8 << 20
DOCUMENT_BYTES_MAX = (16 << 20) - (64 << 10)  # what the server takes, without what the ledger adds
AMENDING_ATTEMPTS = 100
UNPUBLISHED_S = 0.02  # until it is looked again whether what a batch leads to is published


class Write(NamedTuple):
    """What becomes of a document: the collection, its `_id`, and what it holds then; None removes it."""

    collection: str
    id: Any
    document: Mapping[str, Any] | None


class _Packed(NamedTuple):
    """Something of a batch: in the head itself, or in so many pieces beside it, under a name."""

    inline: bytes = b""
    name: str = ""
    pieces: int = 0


NOTHING = _Packed()


class _Entry(NamedTuple):
    """The newest progress of a topic."""

    start: int
    next_offset: int
    tally: tuple[int, ...]
    outputs: _Packed


class Head(NamedTuple):
    """Where a (group, number of a partition) stands.

    Attributes:
        group, partition: whose it is.
        seq: how many batches have happened.
        topics: the newest progress of each.
        writes: those of the newest batch.
    """

    group: str
    partition: int
    seq: int = 0
    topics: Mapping[str, _Entry] = EMPTY  # type: ignore[assignment]
    writes: _Packed = NOTHING

    @property
    def id(self) -> str:
        """The head's name."""
        return f"{self.group}/{self.partition}"

    def next_of(self, topic: str) -> int:
        """Return the next offset of a topic."""
        return self.topics[topic].next_offset if topic in self.topics else 0


class MongoLedger:
    """The heads of a service; see `services.kernel.log.Ledger`."""

    def __init__(self, mongo: Mongo, name: str, collections: Collection[str] = ()) -> None:
        """Wire it.

        Args:
            mongo: the database.
            name: begins the names of the ledger's own collections.
            collections: those that are written through the ledger. Beside `_id`, none may have a unique index.
        """
        self._mongo = mongo
        self._heads, self._pieces, self._sightings = f"{name}_ledger", f"{name}_journal", f"{name}_sightings"
        self._collections = (*collections, self._sightings)
        self._known: dict[str, Head] = {}  # heads whose writes are known to be carried out

    async def start(self) -> None:
        """Make the indexes, when the process starts."""
        for name in self._collections:
            await asked(self._mongo.collection(name).create_index("_gone", expireAfterSeconds=TOMBSTONE_S))
            await asked(self._mongo.collection(name).create_index("_from"))
        await asked(self._mongo.collection(self._sightings).create_index("tenant"))
        await asked(self._mongo.collection(self._pieces).create_index("at", expireAfterSeconds=ORPHAN_S))

    # services.kernel.log.Ledger ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Do nothing: a batch is one write."""
        yield

    async def record(self, progress: Progress) -> None:
        """Do nothing: `save` has kept it."""

    async def pending(self, group: str, topic: str, partition: int) -> Progress | None:
        """Return the newest progress of a partition; its writes are carried out then."""
        self._known.pop(f"{group}/{partition}", None)
        head = await self.head(group, partition)
        entry = head.topics.get(topic)
        if entry is None:
            return None
        packed = await self._unpacked(entry.outputs)
        if packed is None:
            raise UnavailableError(f"another worker is just moving the store of {head.id} on")
        outputs = [_message(fields) for fields in packed.get("outputs", ())]
        return Progress(group, topic, partition, entry.start, entry.next_offset, outputs, Tally(*entry.tally))

    # For stores -------------------------------------------------------------------------------------------------

    async def head(self, group: str, partition: int) -> Head:
        """Return where a partition stands, before its state is loaded; a write that was cut off is finished first."""
        name = f"{group}/{partition}"
        if name in self._known:
            return self._known[name]
        found = await asked(self._mongo.collection(self._heads).find_one({"_id": name}))
        head = _head(group, partition, found)
        await self._keep(head)
        await self._carry_out(head)
        self._remember(head)
        return head

    async def save(
        self, head: Head, progress: Progress, writes: Sequence[Write], sightings: Sightings | None = None
    ) -> None:
        """Make a batch happen.

        Args:
            head: as it was before the batch's state was loaded.
            progress: the batch's.
            writes: what becomes of documents; the last one of a document counts.
            sightings: what the batch told of its sources.

        Raises:
            PartitionLostError: the head has moved on meanwhile; nothing was changed.
            ValueError: a document is longer than the server takes.
        """
        topic = progress.topic
        if head.next_of(topic) != progress.start:
            raise self._lost(head)
        outputs = await self._packed({"outputs": [_fields(message) for message in progress.outputs]})
        entry = _Entry(progress.start, progress.next_offset, tuple(progress.tally), outputs)
        seen = await self._seen(head, sightings) if sightings is not None else ()
        await self._advance(head, {**head.topics, topic: entry}, [*writes, *seen])
        await self._drop(head.topics[topic].outputs if topic in head.topics else NOTHING)

    async def amend(
        self,
        group: str,
        partition: int,
        writes: Sequence[Write] | Callable[[], Awaitable[Sequence[Write]]],
        published: Callable[[], Awaitable[Offsets]] | None = None,
    ) -> None:
        """Make writes happen that no batch of the group leads to, such as those of an erasure.

        Batches that were loaded before change nothing any more: they are taken again.

        Args:
            group, partition: on whose behalf.
            writes: what becomes of documents, whatever batches have made of them meanwhile; or what finds that out. No
                batch comes between that and the writes.
            published: tells where the log says that the group stands. With it, this waits until all that batches
                before it have led to is published, and the ledger forgets their outputs.

        Raises:
            UnavailableError: other batches came first, again and again, or the newest has not been published.
        """
        for _ in range(AMENDING_ATTEMPTS):
            head = await self.head(group, partition)
            topics = head.topics
            if published is not None:
                reached = await published()
                if any(each.next_offset > reached.get((topic, partition), 0) for topic, each in topics.items()):
                    self._known.pop(head.id, None)
                    await asyncio.sleep(UNPUBLISHED_S)
                    continue
                topics = {topic: each._replace(outputs=NOTHING) for topic, each in topics.items()}
            try:
                await self._advance(head, topics, await writes() if callable(writes) else writes)
            except PartitionLostError:
                continue
            if published is not None:
                await self._drop(*(each.outputs for each in head.topics.values()))
            return
        raise UnavailableError(f"the store of {group}/{partition} moves on all the time, or is not published")

    async def start_at(self, group: str, offsets: Offsets) -> None:
        """Let a store begin where `offsets` say in those partitions of which it has had nothing, and not at 0."""
        for (topic, partition), offset in offsets.items():
            while topic not in (head := await self.head(group, partition)).topics:
                entry = _Entry(offset, offset, tuple(Tally()), NOTHING)
                with suppress(PartitionLostError):  # somebody else came first, perhaps with the same
                    await self._advance(head, {**head.topics, topic: entry}, ())

    async def reached(self, group: str) -> Offsets:
        """Return where the store stands; partitions of which it never had anything are not named."""
        fields = ["partition", "topics.topic", "topics.next_offset"]
        return {
            (each["topic"], found["partition"]): each["next_offset"]
            for found in await self._mongo.find(self._heads, {"group": group}, fields)
            for each in found["topics"]
        }

    async def sightings(self, tenant: str) -> dict[str, Sighting]:
        """Return what is known of the sources of a tenant, by name."""
        merged: dict[str, Sighting] = {}
        for found in await self._mongo.find(self._sightings, {"tenant": tenant or DEFAULT_TENANT, **PRESENT}):
            merged = _merged(merged, _sightings(found))
        return merged

    async def reset(self, groups: Collection[str]) -> None:
        """Empty what groups have written, and send their store back to the beginning.

        Batches that are under way elsewhere change nothing any more; what they write after this, they keep.
        """
        for found in await self._mongo.find(self._heads, {"group": {"$in": list(groups)}}):
            head = _head(found["group"], found["partition"], found)
            await self._compare_and_set(head, Head(head.group, head.partition, head.seq + 1))
            for name in self._collections:
                stale = {"_from": head.id, "_seq": {"$lte": head.seq}}
                await asked(self._mongo.collection(name).delete_many(stale))
            await self._drop(head.writes, *(entry.outputs for entry in head.topics.values()))

    # The head ---------------------------------------------------------------------------------------------------

    async def _advance(self, head: Head, topics: Mapping[str, _Entry], writes: Sequence[Write]) -> None:
        newest = {(write.collection, write.id): write for write in writes}
        content = {"writes": [tuple(write) for write in newest.values()]}
        after = head._replace(seq=head.seq + 1, topics=topics, writes=await self._packed(content, newest.values()))
        await self._compare_and_set(head, after)
        await self._keep(after)
        await self._carry_out(after)
        self._remember(after)
        await self._drop(head.writes)

    def _remember(self, head: Head) -> None:
        """Take note of a head whose writes are carried out; a newer one may be known already."""
        if head.id not in self._known or self._known[head.id].seq < head.seq:
            self._known[head.id] = head

    async def _compare_and_set(self, before: Head, after: Head) -> None:
        heads, document = self._mongo.collection(self._heads), _document(after)
        self._known.pop(before.id, None)
        if before.seq:
            result = await asked(heads.replace_one({"_id": before.id, "seq": before.seq}, document))
            if not result.matched_count:
                raise self._lost(before)
            return
        try:
            await asked(heads.insert_one(document))
        except DuplicateKeyError as error:
            raise self._lost(before) from error

    def _lost(self, head: Head) -> PartitionLostError:
        self._known.pop(head.id, None)
        return PartitionLostError(f"somebody else has moved the store of {head.id} on")

    async def _carry_out(self, head: Head) -> None:
        """Do the writes of the newest batch; those that have been done already change nothing."""
        packed = await self._unpacked(head.writes)
        if packed is None:
            return  # pieces are removed when everything has been done
        by_collection: dict[str, list[Any]] = {}
        now = datetime.now(UTC)
        for collection, key, document in packed.get("writes", ()):
            fenced = {"_id": key, "_seq": {"$lt": head.seq}}
            mark = {"_seq": head.seq, "_from": head.id, "_gone": now if document is None else None}
            operation = ReplaceOne(fenced, {"_id": key, **(document or {}), **mark}, upsert=True)
            by_collection.setdefault(collection, []).append(operation)
        await asyncio.gather(*(self._mongo.write(name, operations) for name, operations in by_collection.items()))

    async def _seen(self, head: Head, sightings: Sightings) -> list[Write]:
        """Return the writes that add what a batch told of its sources: a document a tenant."""
        news: dict[str, dict[str, Sighting]] = defaultdict(dict)
        for (tenant, source), sighting in sightings.newest.items():
            news[SEPARATOR.join((head.id, tenant))][source] = sighting
        if not news:
            return []
        found = await self._mongo.find(self._sightings, {"_id": {"$in": list(news)}, **PRESENT})
        known = {each["_id"]: _sightings(each) for each in found}
        return [
            Write(
                self._sightings,
                name,
                {
                    "tenant": name.partition(SEPARATOR)[2],
                    "sources": [[source, *each] for source, each in _merged(known.get(name, {}), told).items()],
                },
            )
            for name, told in news.items()
        ]

    # Large batches ----------------------------------------------------------------------------------------------

    async def _packed(self, content: Mapping[str, Any], writes: Collection[Write] = ()) -> _Packed:
        raw = encoded(content)
        if len(raw) <= PIECE_BYTES // 2:
            return _Packed(raw)
        for write in writes:
            if write.document is not None and len(encoded(write.document)) > DOCUMENT_BYTES_MAX:
                raise ValueError(f"{write.id!r} in {write.collection} is longer than {DOCUMENT_BYTES_MAX} bytes")
        name, at = uuid.uuid4().hex, datetime.now(UTC)
        pieces = [raw[start : start + PIECE_BYTES] for start in range(0, len(raw), PIECE_BYTES)]
        for number, piece in enumerate(pieces):  # one request each: together they may be longer than one can be
            await self._mongo.write(self._pieces, [InsertOne({"_id": f"{name}/{number}", "at": at, "raw": piece})])
        return _Packed(name=name, pieces=len(pieces))

    async def _keep(self, head: Head) -> None:
        """Let the pieces of what has happened not expire, as those do of what never did: they are dropped when due."""
        names = _names(head.writes, *(each.outputs for each in head.topics.values()))
        if names:
            await asked(
                self._mongo.collection(self._pieces).update_many({"_id": {"$in": names}}, {"$unset": {"at": 1}})
            )

    async def _unpacked(self, packed: _Packed) -> dict[str, Any] | None:
        """Return what was packed; None when its pieces have been removed."""
        if not packed.pieces:
            return decoded(packed.inline) if packed.inline else {}
        names = _names(packed)
        found = {each["_id"]: each["raw"] for each in await self._mongo.find(self._pieces, {"_id": {"$in": names}})}
        return decoded(b"".join(found[name] for name in names)) if len(found) == len(names) else None

    async def _drop(self, *packed: _Packed) -> None:
        if names := _names(*packed):
            await asked(self._mongo.collection(self._pieces).delete_many({"_id": {"$in": names}}))


def _names(*packed: _Packed) -> list[str]:
    """Return the names of the pieces."""
    return [f"{each.name}/{number}" for each in packed for number in range(each.pieces)]


def _merged(known: Mapping[str, Sighting], news: Mapping[str, Sighting]) -> dict[str, Sighting]:
    """Return the newest of both, by source; see `FreshnessTable.save`."""
    merged = dict(known)
    for source, new in news.items():
        old = merged.get(source, Sighting(0, 0, ""))
        merged[source] = Sighting(
            max(old.occurred_ms, new.occurred_ms),
            max(old.heartbeat_ms, new.heartbeat_ms),
            new.position if new.occurred_ms >= max(old.occurred_ms, 1) else old.position,
        )
    return merged


def _sightings(found: Mapping[str, Any]) -> dict[str, Sighting]:
    return {source: Sighting(*fields) for source, *fields in found["sources"]}


def _document(head: Head) -> dict[str, Any]:
    return {
        "_id": head.id,
        "group": head.group,
        "partition": head.partition,
        "seq": head.seq,
        "topics": [{"topic": topic, **entry._asdict()} for topic, entry in head.topics.items()],
        "writes": head.writes,
    }


def _head(group: str, partition: int, found: Mapping[str, Any] | None) -> Head:
    if found is None:
        return Head(group, partition)
    topics = {
        each["topic"]: _Entry(each["start"], each["next_offset"], tuple(each["tally"]), _Packed(*each["outputs"]))
        for each in found["topics"]
    }
    return Head(group, partition, found["seq"], topics, _Packed(*found["writes"]))


def _fields(message: Message) -> dict[str, Any]:
    return {**message._asdict(), "headers": dict(message.headers)}


def _message(fields: Mapping[str, Any]) -> Message:
    message = Message(**fields)
    return message if message.headers else message._replace(headers=EMPTY)
