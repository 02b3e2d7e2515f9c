"""Documents of profiles in MongoDB: the state of profile-fold.

A profile is named by the text of its topic key. What it is looked up by is part of its document, so that the two cannot
differ.

A store that was emptied is made again in a certain order. What the topic `profiles` holds takes the place of the
documents: a version and a digest, without content. Touches that had been taken in are not taken in again, for the rows
will touch all profiles anew. These are folded only when the rows are whole, so that nobody gets to see half a profile.
Then what is as it was published gets its version back, and only what is not is published.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import orjson

from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.log import SEPARATOR, Log, Progress, Record, partition_of
from services.kernel.mongo_ledger import PRESENT, Head, MongoLedger, Write
from services.kernel.mongodb import DeleteOne, Mongo, ReplaceOne, asked
from services.profile.documents import Documents, Published, Stored, digest
from services.profile.mongo_rows import ROWS
from services.profile.ports import FOLD_GROUP, ROWS_GROUP, Fold
from services.profile.projection import SourceRow
from services.profile.sqlite_documents import identifier_key

DOCUMENTS = "profile_documents"
FOLDED: Mapping[str, Any] = {**PRESENT, "content": {"$ne": None}}
"""The filter of documents; what takes the place of one that is yet to come is none."""
FOLDED_FROM = ("source", "entity", "occurred_us", "body", "identifiers", "suspect", "profile")
_PROFILES_AT_ONCE = 50  # whose rows are in memory together


class MongoDocuments:
    """The state of profile-fold."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, fold: Fold) -> None:
        self._mongo, self._ledger, self._log, self._fold = mongo, ledger, log, fold
        self._rows_are_whole = False

    async def start(self) -> None:
        """Make the indexes, and prepare a store in which nothing is."""
        await asked(self._mongo.collection(DOCUMENTS).create_index("names"))
        await self.prepare()

    async def prepare(self) -> None:
        """Where the store is empty, keep what was published, and begin where the group stands."""
        self._rows_are_whole = False
        places = [(topics.TOUCHED, partition) for partition in range(self._log.partitions(topics.TOUCHED))]
        if (await self._ledger.reached(FOLD_GROUP)).keys() >= set(places):
            return
        for partition in range(self._log.partitions(topics.PROFILES)):
            offset = 0
            while records := await self._log.read(topics.PROFILES, partition, offset):
                offset = records[-1].offset + 1
                newest = {(record.key or b"").decode(): record for record in records}
                await self._mongo.write(DOCUMENTS, [self._seed(key, record) for key, record in newest.items()])
        reached = await self._log.committed(FOLD_GROUP)
        await self._ledger.start_at(FOLD_GROUP, {place: reached.get(place, 0) for place in places})

    def _seed(self, key: str, record: Record) -> Any:
        """Return the write that puts what was published in the place of a document, unless something is there."""
        if record.value is None:
            return DeleteOne({"_id": key, "_seq": 0})
        profile = events_pb2.Profile.FromString(record.value)
        version = profile.version
        profile.ClearField("version")
        partition = partition_of(key.encode(), self._log.partitions(topics.TOUCHED))
        seed = {
            "_id": key,
            "version": version,
            "digest": digest(profile.SerializeToString(deterministic=True)),
            "happened_ms": record.timestamp_ms,
            "content": None,
            "_seq": 0,
            "_from": Head(FOLD_GROUP, partition).id,
            "_gone": None,
        }
        return ReplaceOne({"_id": key, "_seq": 0}, seed, upsert=True)

    async def load(self, batch: Sequence[Record]) -> Documents:
        """Load the documents of the touched profiles, and fold those that were touched since their last fold."""
        state = Documents()
        if not batch:
            return state
        head = await self._head(batch[0].partition)
        await self._wait_for_rows()
        # Before the rows are read: what is touched from here on is folded again.
        state.touched_end = (await self._log.end(batch[0].topic))[batch[0].partition]
        touched = {record.key.decode(): record.offset for record in batch if record.key is not None}
        found = await self._mongo.find(DOCUMENTS, {"_id": {"$in": sorted(touched)}, **PRESENT})
        for each in found:
            if each["content"] is None:
                state.published[each["_id"]] = Published(each["version"], each["digest"])
                continue
            stored = Stored(each["version"], each["content"], each["identifiers"], each["folded_to"])
            state.stored[each["_id"]] = stored
            if touched[each["_id"]] < stored.folded_to:
                del touched[each["_id"]]
        names = sorted(touched)
        for start in range(0, len(names), _PROFILES_AT_ONCE):
            await self._fold_some(state, names[start : start + _PROFILES_AT_ONCE])
        state.head = head
        return state

    async def _head(self, partition: int) -> Head:
        head = await self._ledger.head(FOLD_GROUP, partition)
        if topics.TOUCHED not in head.topics:
            raise UnavailableError("the profile store in MongoDB was emptied while this process ran: start it again")
        return head

    async def _wait_for_rows(self) -> None:
        """Raise UnavailableError while a worker still takes in rows that the store has had before."""
        if self._rows_are_whole:
            return
        told = await self._log.committed(ROWS_GROUP)  # first: the store is ahead of it
        muted = self._log.is_muted(ROWS_GROUP)  # in this process `told` is how far the store is then
        reached = await self._ledger.reached(ROWS_GROUP)
        if muted or any(reached.get(place, 0) < offset for place, offset in told.items()):
            raise UnavailableError("profiles are folded when all rows are taken in again")
        self._rows_are_whole = True

    async def _fold_some(self, state: Documents, names: Sequence[str]) -> None:
        found = await self._mongo.find(ROWS, {"profile": {"$in": list(names)}, **PRESENT}, ("key", *FOLDED_FROM))
        rows = sorted(
            (
                SourceRow(each["key"].partition(SEPARATOR)[2], *(each[name] for name in FOLDED_FROM))
                for each in found
                if each["body"] is not None
            ),
            key=attrgetter("profile"),
        )
        for key, group in itertools.groupby(rows, key=attrgetter("profile")):
            tenant, _, profile_id = key.partition(SEPARATOR)
            folded = self._fold(tenant, profile_id, list(group))
            if folded is not None:
                state.folded[key] = folded
        await asyncio.sleep(0)  # queries have their turn

    async def save(self, state: Documents, progress: Progress) -> None:
        """Write new documents, and remove those that are gone."""
        writes = [Write(DOCUMENTS, key, _document(key, new)) for key, new in state.written.items()]
        writes += [Write(DOCUMENTS, key, None) for key in sorted(state.gone)]
        head = state.head or await self._head(progress.partition)
        await self._ledger.save(head, progress, writes)


def _document(key: str, stored: Stored) -> dict[str, object]:
    tenant = key.partition(SEPARATOR)[0]
    names = [identifier_key(tenant, kind, value) for kind, value in orjson.loads(stored.identifiers)]
    return {**stored._asdict(), "names": names}
