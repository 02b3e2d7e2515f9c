"""Removes erased subjects from MongoDB, and searches for what is left: the state of profile-erasure.

Other workers own the rows and documents. So a subject's digests are written first, by which its older changes are
known; then its things are removed by way of the owners' ledgers, which makes batches void that were loaded before:
those are loaded again, and find the digests. What had been saved before is published first, so that nothing of the
subject is published after the nulls that the erasure leads to; then the ledgers forget it, too.

Rows go before documents, else one would be folded into the other again. What documents they lead to is written down
before, for whoever goes on where this is cut off.

For an hour, of a removed row its digest stays, and of a document the key of its profile.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from headwater.common.v1 import events_pb2 as common_pb2
from services.kernel import topics
from services.kernel.erasure import field_bytes, requests_of
from services.kernel.log import SEPARATOR, Log, Progress, Record, key_of, partition_of
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, UpdateOne
from services.profile.erasure import Erased, Erasures
from services.profile.mongo_documents import DOCUMENTS, FOLDED
from services.profile.mongo_rows import ERASURES, ROWS
from services.profile.ports import FOLD_GROUP, ROWS_GROUP
from services.profile.sqlite_rows import digest_of

PLANS = "profile_erasure_plans"


class MongoErasures:
    """The state of profile-erasure. Loading a batch is what erases, so that what is told of it was found afterwards."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, clock: Callable[[], float]) -> None:
        self._mongo, self._ledger, self._log, self._clock = mongo, ledger, log, clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch; one that was cut off is carried out again."""
        state = Erasures()
        for record, request in requests_of(batch):
            state.done[record.offset] = await self._erase(request, record)
        return state

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Keep the progress, and forget the plans: all else is done."""
        head = await self._ledger.head(progress.group, progress.partition)
        plans = [Write(PLANS, f"{progress.partition}/{offset}", None) for offset in state.done]
        await self._ledger.save(head, progress, plans)

    async def _erase(self, request: common_pb2.ErasureRequested, cause: Record) -> Erased:
        records = [key_of(request.tenant, record).decode() for record in request.records]
        named = {key_of(request.tenant, profile_id).decode() for profile_id in request.profile_ids}
        asked_ms = request.requested_at.ToMilliseconds() or cause.timestamp_ms
        await self._mongo.write(
            ERASURES,
            [
                UpdateOne({"_id": digest_of(record)}, {"$max": {"erased_ms": asked_ms}}, upsert=True)
                for record in records
            ],
        )
        plan = f"{cause.partition}/{cause.offset}"
        for partition, some in self._owners(topics.CHANGES, records):
            await self._amend(ROWS_GROUP, partition, partial(self._rows_to_remove, plan, some))
        for partition in range(self._log.partitions(topics.TOUCHED)):
            await self._amend(FOLD_GROUP, partition, ())  # what is folded from here on does not find the rows
        needles = [field_bytes(record.partition(SEPARATOR)[2]) for record in records]
        planned = await self._planned(plan, named | await self._holding(needles))
        for partition, some in self._owners(topics.TOUCHED, planned["profiles"]):
            await self._amend(FOLD_GROUP, partition, [Write(DOCUMENTS, key, None) for key in some])
        removed = {"rows": len(planned["rows"]), **{kind: planned[kind] for kind in ("documents", "identifiers")}}
        remaining = await self._remaining(records, planned["profiles"], needles)
        return Erased(request, tuple(sorted(planned["profiles"])), removed, remaining, int(self._clock() * 1000))

    def _owners(self, topic: str, keys: Iterable[str]) -> list[tuple[int, list[str]]]:
        """Return keys by the partition of `topic` that they are in."""
        owners: dict[int, list[str]] = defaultdict(list)
        for key in sorted(keys):
            owners[partition_of(key.encode(), self._log.partitions(topic))].append(key)
        return sorted(owners.items())

    async def _amend(self, group: str, partition: int, writes: Any) -> None:
        await self._ledger.amend(group, partition, writes, lambda: self._log.committed(group))

    # The plan ---------------------------------------------------------------------------------------------------

    async def _rows_to_remove(self, plan: str, records: Sequence[str]) -> list[Write]:
        """Return the writes that remove rows, once it is written down which, and to whose documents they lead."""
        digests = [digest_of(record) for record in records]
        rows = await self._mongo.find(ROWS, {"_id": {"$in": digests}, **PRESENT}, ["profile"])
        profiles = {each["profile"] for each in rows} - {None}
        await self._note(plan, profiles, rows=[each["_id"] for each in rows])
        return [Write(ROWS, digest, None) for digest in digests]

    async def _planned(self, plan: str, profiles: Collection[str]) -> dict[str, Any]:
        """Write down the rest of what will be removed; return all of it."""
        await self._note(plan, profiles)
        (planned,) = await self._mongo.find(PLANS, {"_id": plan})
        documents = await self._mongo.find(DOCUMENTS, {"_id": {"$in": planned["profiles"]}, **FOLDED}, ["names"])
        await self._note(plan, (), documents=len(documents), identifiers=sum(len(each["names"]) for each in documents))
        (planned,) = await self._mongo.find(PLANS, {"_id": plan})
        return planned

    async def _note(
        self, plan: str, profiles: Collection[str], rows: Collection[str] = (), documents: int = 0, identifiers: int = 0
    ) -> None:
        more = {
            "$setOnInsert": {"_seq": 0, "_gone": None},  # so that the ledger can remove it
            "$addToSet": {"profiles": {"$each": sorted(profiles)}, "rows": {"$each": sorted(rows)}},
            "$max": {"documents": documents, "identifiers": identifiers},
        }
        await self._mongo.write(PLANS, [UpdateOne({"_id": plan}, more, upsert=True)])

    # Searching --------------------------------------------------------------------------------------------------

    async def _holding(self, needles: Sequence[bytes]) -> set[str]:
        """Return the profiles of which records have gone, and whose documents still hold something of them.

        Such are only those that are touched and not folded again yet.
        """
        holding = set()
        async for touched in self._touched():
            holding |= {each["_id"] for each in await self._having(touched, needles)}
        return holding

    async def _having(self, profiles: Collection[str], needles: Sequence[bytes]) -> list[dict[str, Any]]:
        wanted = {"_id": {"$in": sorted(profiles)}, **FOLDED}
        found = await self._mongo.find(DOCUMENTS, wanted, ["content", "names"])
        return [each for each in found if any(needle in each["content"] for needle in needles)]

    async def _touched(self) -> AsyncIterator[set[str]]:
        """Go through the profiles that are touched and not folded again yet."""
        reached = await self._log.committed(FOLD_GROUP)
        for partition in range(self._log.partitions(topics.TOUCHED)):
            offset = reached.get((topics.TOUCHED, partition), 0)
            while records := await self._log.read(topics.TOUCHED, partition, offset):
                offset = records[-1].offset + 1
                yield {record.key.decode() for record in records if record.key is not None}

    async def _remaining(
        self, records: Sequence[str], profiles: Collection[str], needles: Sequence[bytes]
    ) -> dict[str, int]:
        # A profile that others' rows are in may have its document back already: that one holds nothing of the subject.
        digests = [digest_of(record) for record in records]
        rows = await self._mongo.find(ROWS, {"_id": {"$in": digests}, **PRESENT}, ["_id"])
        documents = await self._having(profiles, needles)
        return {
            "rows": len(rows),
            "documents": len(documents),
            "identifiers": sum(len(each["names"]) for each in documents),
        }
