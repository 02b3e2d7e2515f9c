"""What can be found, in a remote index and MongoDB: chunks in the index, texts beside the documents.

In this order: the chunks of a version are put into the index, beside those of the version before; its text is stored;
then the result is told. When that is taken in, the version is what can be found, from one instant to the next, and a
hint has the older chunks removed. Wherever it is cut off, the job is done again, and writes the same.
"""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from services.embedder.chunking import Chunk
from services.embedder.index import ChunkIndex, IndexedChunk, Visibility
from services.embedder.mongo_documents import DOCUMENTS, TEXTS, name_of
from services.embedder.mongo_jobs import MongoJobs
from services.embedder.ports import Cut, Making, VectorsMissingError
from services.embedder.results import result_message
from services.embedder.state import Key
from services.kernel.jobs import Job, JobState, PermanentError
from services.kernel.log import SEPARATOR
from services.kernel.mongo_ledger import DOCUMENT_BYTES_MAX, PRESENT
from services.kernel.mongodb import Mongo, asked

PAGE = 200  # chunks that are written at a time

T = TypeVar("T")


class MongoChunks:
    """Implements `Chunks`."""

    def __init__(self, mongo: Mongo, index: ChunkIndex, jobs: MongoJobs, clock: Callable[[], float]) -> None:
        self._mongo, self._index, self._jobs, self._clock = mongo, index, jobs, clock

    async def stored(self, job: Job) -> Cut | None:
        """Return None: what another model has embedded is in another index, and read anew."""
        del job
        return None

    async def known(self, making: Making, hashes: Collection[bytes]) -> Collection[bytes]:
        """Return those that have been embedded with the model already."""
        del making
        return (await self._index.vectors(hashes)).keys()

    async def keep(self, making: Making, vectors: Mapping[bytes, bytes]) -> bool:
        """Put the chunks of a version that is not finished, for after a crash; False when nobody wants it."""
        document = await self._jobs.wanted(making.job)
        if document is None:
            return False
        await self._put(making, visibility_of(document), vectors, [c for c in making.cut.chunks if c.hash in vectors])
        return await self._is_wanted_still(making)

    async def finish(self, making: Making, vectors: Mapping[bytes, bytes], embedded: int) -> bool:
        """Put a version beside the one before, and tell that it is there."""
        job, cut, key = making.job, making.cut, making.assignment.key
        document = await self._jobs.wanted(job)
        if document is None:
            return False
        visibility = visibility_of(document)
        for chunks in _pages(cut.chunks):
            lacking = {chunk.hash for chunk in chunks} - vectors.keys()
            known = {**vectors, **(await self._index.vectors(lacking) if lacking else {})}
            if not all(chunk.hash in known for chunk in chunks):
                raise VectorsMissingError
            await self._put(making, visibility, known, chunks)
        await self._write_text(key, job.version, cut.text)
        if not await self._is_wanted_still(making):
            return False
        done = replace(job, state=JobState.DONE, error="", due_at=0.0)
        message = result_message(
            key, done, document["life"], document["occurred_ms"], quiet=document["job"]["quiet"], title=cut.title,
            chunks=len(cut.chunks), embedded=embedded, source=visibility.source, access=visibility.access,
        )  # fmt: skip
        await self._jobs.hand_in(message, job)
        return True

    async def _put(
        self, making: Making, visibility: Visibility, vectors: Mapping[bytes, bytes], chunks: Sequence[Chunk]
    ) -> None:
        indexed = [
            IndexedChunk(
                chunk.ordinal, chunk.start, chunk.end, chunk.text, chunk.context, tuple(chunk.headings), chunk.label,
                chunk.hash, vectors[chunk.hash],
            )
            for chunk in chunks
        ]  # fmt: skip
        await self._index.put(making.assignment.key, making.job.version, visibility, indexed)

    async def _write_text(self, key: Key, version: str, text: str) -> None:
        packed = zlib.compress(text.encode())
        if len(packed) > DOCUMENT_BYTES_MAX:
            raise PermanentError(f"{key.document_id}: its text is longer than MongoDB takes: split the document")
        name = SEPARATOR.join((*key, version))
        document = {"_id": name, "document": name_of(key), "version": version, "text": packed}
        await asked(self._mongo.collection(TEXTS).replace_one({"_id": name}, document, upsert=True))

    async def _is_wanted_still(self, making: Making) -> bool:
        """Whether what was put may stay; of a document that has gone, or was erased, nothing may."""
        if await self._jobs.wanted(making.job) is not None:
            return True
        key = making.assignment.key
        if (
            await asked(self._mongo.collection(DOCUMENTS).find_one({"_id": name_of(key), **PRESENT}, {"_id": 1}))
            is None
        ):
            await forget(self._mongo, self._index, key)
        return False


def visibility_of(document: Mapping[str, Any]) -> Visibility:
    """Return by what the index has to filter a document that can be found as it was accepted."""
    return Visibility(document["source"], tuple(document["access"]))


async def forget(mongo: Mongo, index: ChunkIndex, key: Key, *, but: str = "") -> None:
    """Remove the chunks and texts of a document, of all versions but one."""
    await index.remove(key, but=but)
    await asked(mongo.collection(TEXTS).delete_many({"document": name_of(key), "version": {"$ne": but}}))


def _pages(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + PAGE] for start in range(0, len(items), PAGE))
