"""Removes erased subjects from MongoDB and the index, and searches for what is left: the state of `embedder-erasure`.

Other workers own the documents. So the digests are written first, by which older changes are known; then documents are
removed by way of their owners' ledger, which makes batches void that were loaded before. Work that was under way finds
that nobody wants it any more, and removes what it has put; a hint that comes due later looks once more.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from headwater.common.v1 import events_pb2 as common_pb2
from services.embedder.erasure import Erased, places_of
from services.embedder.events import GROUP
from services.embedder.index import ChunkIndex
from services.embedder.mongo_chunks import forget
from services.embedder.mongo_documents import DOCUMENTS, ERASURES, FENCES, HINTS, TEXTS, name_of
from services.embedder.ports import nothing
from services.embedder.state import Key, digest_of
from services.kernel import topics
from services.kernel.erasure import requests_of
from services.kernel.log import DEFAULT_TENANT, Log, Progress, Record, partition_of
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, UpdateOne, asked

LOOK_AGAIN_S = 300.0  # longer than work on a document takes that nobody has told of the erasure


class MongoErasures:
    """What the group `embedder-erasure` loads. Loading a batch is what erases; one that was cut off is done again."""

    def __init__(
        self, mongo: Mongo, ledger: MongoLedger, log: Log, index: ChunkIndex, *, clock: Callable[[], float]
    ) -> None:
        self._mongo, self._ledger, self._log, self._index, self._clock = mongo, ledger, log, index, clock
        self.forget_queries: Callable[[], None] = nothing

    async def load(self, batch: Sequence[Record]) -> dict[int, Erased]:
        """Carry out the erasures of a batch; return what was done, by offset."""
        return {
            record.offset: await self._erase(request, record.timestamp_ms) for record, request in requests_of(batch)
        }

    async def save(self, state: dict[int, Erased], progress: Progress) -> None:
        """Keep the progress: all else is done."""
        del state
        await self._ledger.save(await self._ledger.head(progress.group, progress.partition), progress, ())

    async def _erase(self, request: common_pb2.ErasureRequested, happened_ms: int) -> Erased:
        places = places_of(request, happened_ms)
        tenant = request.tenant or DEFAULT_TENANT
        await self._mongo.write(
            ERASURES,
            [
                UpdateOne(
                    {"_id": digest_of(key)},
                    {
                        "$max": {"at_ms": place.at_ms},
                        **({"$set": {"position": place.position}} if place.position else {}),
                    },
                    upsert=True,
                )
                for key, place in places.items()
            ],
        )
        keys = [Key(tenant, record) for record in request.records]
        names = [name_of(key) for key in keys]
        # Of those that went in an erasure which was cut off, the hint tells.
        present = {
            each["_id"]
            for collection in (DOCUMENTS, HINTS)
            for each in await self._mongo.find(collection, {"_id": {"$in": names}, **PRESENT}, ["_id"])
        }
        removed = await self._count(keys)
        owners: dict[int, list[Write]] = defaultdict(list)
        for name in names:
            slot = partition_of(name.encode(), self._log.partitions(topics.DOCUMENTS))
            again = {"slot": slot, "show": False, "due_at": self._clock() + LOOK_AGAIN_S}
            owners[slot] += [Write(DOCUMENTS, name, None), Write(FENCES, name, None)]
            if name in present:
                owners[slot].append(Write(HINTS, name, again))
        for slot, writes in sorted(owners.items()):
            await self._ledger.amend(GROUP, slot, writes, lambda: self._log.committed(GROUP))
        for key in keys:
            await forget(self._mongo, self._index, key)
        left = await self._index.expunge() if removed["chunks"] else 0
        self.forget_queries()
        remaining = await self._count(keys) | {"words": left}
        gone = tuple(key for key, name in zip(keys, names, strict=True) if name in present)
        return Erased(request, gone, removed, remaining, int(self._clock() * 1000))

    async def _count(self, keys: Sequence[Key]) -> dict[str, int]:
        names = {"$in": [name_of(key) for key in keys]}

        async def counted(collection: str, wanted: dict[str, Any]) -> int:
            return int(await asked(self._mongo.collection(collection).count_documents(wanted)))

        return {
            "documents": await counted(DOCUMENTS, {"_id": names, **PRESENT}),
            "chunks": sum([await self._index.remains(key) for key in keys]),
            "jobs": await counted(DOCUMENTS, {"_id": names, "job": {"$ne": None}, **PRESENT}),
            "fences": await counted(FENCES, {"_id": names, **PRESENT}),
            "texts": await counted(TEXTS, {"document": names}),
        }
