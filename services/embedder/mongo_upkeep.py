"""Keeps the index in step with the documents: removes what cannot be found any more, and shows the rest to its readers.

Nothing that a reader could see depends on it, save that a document which was opened to more readers is found by them
when it has been here: what may be seen is asked of the documents for every hit.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from services.embedder.index import ChunkIndex
from services.embedder.mongo_chunks import forget, visibility_of
from services.embedder.mongo_documents import DOCUMENTS, HINTS, key_of_name
from services.embedder.mongo_jobs import MongoJobs
from services.kernel.mongo_ledger import PRESENT
from services.kernel.mongodb import Mongo, asked

AT_A_TIME = 100
LOOK_AGAIN_S = 1.0

log = structlog.get_logger(__name__)


class MongoUpkeep:
    """Follows the hints of this worker's partitions."""

    def __init__(self, mongo: Mongo, index: ChunkIndex, jobs: MongoJobs, clock: Callable[[], float]) -> None:
        self._mongo, self._index, self._jobs, self._clock = mongo, index, jobs, clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be new hints."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; an outage is waited for by whoever started this."""
        while True:
            self._woken.clear()
            if not await self.follow():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._woken.wait()

    async def follow(self) -> int:
        """Follow the hints that are due, at most so many; return how many there were."""
        wanted = {"slot": {"$in": self._jobs.mine()}, "due_at": {"$lte": self._clock()}, **PRESENT}
        hints = await asked(self._mongo.collection(HINTS).find(wanted).limit(AT_A_TIME).to_list(None))
        for hint in hints:
            await self._follow(hint)
        return len(hints)

    async def _follow(self, hint: Mapping[str, Any]) -> None:
        key = key_of_name(hint["_id"])
        document = await asked(self._mongo.collection(DOCUMENTS).find_one({"_id": hint["_id"], **PRESENT}))
        if document is None:
            await forget(self._mongo, self._index, key)
        elif document["job"] is None:
            if hint["show"]:
                await self._index.show(key, document["version"], visibility_of(document))
            await forget(self._mongo, self._index, key, but=document["version"])
        elif not document["version"]:  # otherwise the end of its job leaves a hint again
            await forget(self._mongo, self._index, key, but=document["wanted"])
        # A newer one stays.
        await asked(self._mongo.collection(HINTS).delete_one({"_id": hint["_id"], "_seq": hint["_seq"]}))
