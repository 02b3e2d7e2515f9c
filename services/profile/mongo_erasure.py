"""Removes erased subjects from MongoDB, and searches for what is left: the state of profile-erasure.

Other workers own the rows and documents. So a subject's digests are written first, by which its older changes are
known; then its things are removed by way of the owners' ledgers, which makes batches void that were loaded before:
those are loaded again, and find the digests.

A removed document's name, which is the record's or the profile's key, stays in a tombstone for an hour.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence

from headwater.common.v1 import events_pb2 as common_pb2
from services.kernel import topics
from services.kernel.erasure import field_bytes, requests_of
from services.kernel.log import SEPARATOR, Log, Progress, Record, key_of, partition_of
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, UpdateOne
from services.profile.erasure import Erased, Erasures
from services.profile.mongo_documents import DOCUMENTS, SEEDS
from services.profile.mongo_rows import ERASURES, ROWS
from services.profile.ports import FOLD_GROUP, ROWS_GROUP
from services.profile.sqlite_rows import digest_of


class MongoErasures:
    """The state of profile-erasure. Loading a batch is what erases, so that what is told of it was found afterwards."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, clock: Callable[[], float]) -> None:
        self._mongo, self._ledger, self._log, self._clock = mongo, ledger, log, clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch; one that was cut off is carried out again."""
        state = Erasures()
        for record, request in requests_of(batch):
            state.done[record.offset] = await self._erase(request, record.timestamp_ms)
        return state

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Keep the progress: all else is done."""
        del state
        head = await self._ledger.head(progress.group, progress.partition)
        await self._ledger.save(head, progress, ())

    async def _erase(self, request: common_pb2.ErasureRequested, happened_ms: int) -> Erased:
        records = [key_of(request.tenant, record).decode() for record in request.records]
        named = {key_of(request.tenant, profile_id).decode() for profile_id in request.profile_ids}
        asked_ms = request.requested_at.ToMilliseconds() or happened_ms
        await self._mongo.write(
            ERASURES,
            [
                UpdateOne({"_id": digest_of(record)}, {"$max": {"erased_ms": asked_ms}}, upsert=True)
                for record in records
            ],
        )
        profiles = sorted(named | await self._holding(records))
        removed = await self._count(records, profiles)
        await self._remove(ROWS_GROUP, topics.CHANGES, ROWS, records)
        await self._remove(FOLD_GROUP, topics.TOUCHED, DOCUMENTS, profiles)
        await self._mongo.collection(SEEDS).delete_many({"_id": {"$in": profiles}})
        remaining = await self._count(records, profiles)
        return Erased(request, tuple(profiles), removed, remaining, int(self._clock() * 1000))

    async def _remove(self, group: str, topic: str, collection: str, keys: Sequence[str]) -> None:
        """Remove documents by way of the ledger of the group that owns them, which reads `topic` by the same keys."""
        owners: dict[int, list[Write]] = defaultdict(list)
        for key in keys:
            owners[partition_of(key.encode(), self._log.partitions(topic))].append(Write(collection, key, None))
        for partition, writes in sorted(owners.items()):
            await self._ledger.amend(group, partition, writes)

    async def _holding(self, records: Sequence[str]) -> set[str]:
        """Return the profiles whose documents may hold something of the records.

        A record is in the document of its present profile; and in that of a former one only as long as the touch that
        its leaving caused has not been taken in.
        """
        rows = await self._mongo.find(ROWS, {"_id": {"$in": list(records)}, **PRESENT}, ["profile"])
        holding = {each["profile"] for each in rows} - {None}
        needles = [field_bytes(record.partition(SEPARATOR)[2]) for record in records]
        async for touched in self._touched():
            wanted = {"_id": {"$in": sorted(touched - holding)}, **PRESENT}
            for each in await self._mongo.find(DOCUMENTS, wanted, ["content"]):
                if any(needle in each["content"] for needle in needles):
                    holding.add(each["_id"])
        return holding

    async def _touched(self) -> AsyncIterator[set[str]]:
        """Go through the profiles that are touched and not folded again yet."""
        reached = await self._log.committed(FOLD_GROUP)
        for partition in range(self._log.partitions(topics.TOUCHED)):
            offset = reached.get((topics.TOUCHED, partition), 0)
            while records := await self._log.read(topics.TOUCHED, partition, offset):
                offset = records[-1].offset + 1
                yield {record.key.decode() for record in records if record.key is not None}

    async def _count(self, records: Sequence[str], profiles: Sequence[str]) -> dict[str, int]:
        rows = await self._mongo.find(ROWS, {"_id": {"$in": list(records)}, **PRESENT}, ["_id"])
        documents = await self._mongo.find(DOCUMENTS, {"_id": {"$in": list(profiles)}, **PRESENT}, ["names"])
        return {
            "rows": len(rows),
            "documents": len(documents),
            "identifiers": sum(len(each["names"]) for each in documents),
        }
