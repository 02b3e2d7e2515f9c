"""The work of one job: load, chunk, embed what was never embedded, write, mark done; in that order."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from headwater.ingest.v1 import events_pb2
from services.embedder.chunking import Limits, chunks_of
from services.embedder.in_process import THREADS
from services.embedder.loaders import SUFFIXES, load
from services.embedder.ports import Assignment, Chunks, Cut, Embedder, Jobs, Making, VectorsMissingError
from services.kernel.jobs import Job, Lane, PermanentError, TransientError
from services.kernel.log import Log

T = TypeVar("T")
LOAD_TIMEOUT_S = 120.0
_TRIES = 3


class _Embedding(NamedTuple):
    """Vectors by hash that are not stored yet, and how many had to be made in all."""

    rest: dict[bytes, bytes]
    made: int


class Indexer:
    """Makes documents searchable, several at a time."""

    def __init__(
        self, log: Log, jobs: Jobs, chunks: Chunks, embedder: Embedder, *, limits: Limits, bytes_max: int
    ) -> None:
        """Wire the indexer.

        Args:
            log: where contents are.
            jobs: what is to be done.
            chunks: where it goes.
            embedder: the embedding model.
            limits: how large chunks are.
            bytes_max: the largest document that is read.
        """
        self._log, self._jobs, self._chunks, self._embedder = log, jobs, chunks, embedder
        self._limits, self._bytes_max = limits, bytes_max
        # Many documents may wait for a distant model at once, but reading them is work for this process's processors.
        self._reading = {lane: asyncio.Semaphore(THREADS) for lane in Lane}

    async def work(self, jobs: Sequence[Job]) -> None:
        """Do jobs; raises an EnrichmentError by the kind of what failed."""
        for job in jobs:
            assignment = await self._jobs.assignment(job)
            if assignment is not None:
                await self._index(job, assignment)

    async def _index(self, job: Job, assignment: Assignment) -> None:
        cut = await self._chunks.stored(job)  # another model has come, and only its vectors are missing
        if cut is None:
            cut = await self._cut(job, assignment, await self._content(job, assignment))
        making, embedded = Making(job, assignment, cut), 0
        for _ in range(_TRIES):
            embedding = await self._embed(making)
            if embedding is None:
                return  # the document has gone
            embedded += embedding.made
            try:
                await self._chunks.finish(making, embedding.rest, embedded)
            except VectorsMissingError:
                continue
            return
        raise TransientError(f"{assignment.key.document_id}: its vectors were removed while it was written")

    async def _content(self, job: Job, assignment: Assignment) -> bytes:
        if job.size > self._bytes_max:
            raise PermanentError(
                f"{assignment.key.document_id} has {job.size:,} bytes, more than document_bytes_max "
                f"({self._bytes_max:,}): split it, or raise that setting"
            )
        if assignment.content is not None:
            return assignment.content
        place = (assignment.topic, assignment.partition, assignment.offset)
        records = await self._log.read(*place, max_records=1)
        if not records or records[0].offset != assignment.offset or records[0].value is None:
            raise PermanentError(f"{assignment.key.document_id}: its content is not in the log any more: put it again")
        return events_pb2.DocumentChange.FromString(records[0].value).content

    async def _cut(self, job: Job, assignment: Assignment, content: bytes) -> Cut:
        if assignment.content is not None:  # a row's text, which is short and was made here
            return await asyncio.to_thread(self._cut_now, assignment, content)
        try:
            async with self._reading[job.lane], asyncio.timeout(LOAD_TIMEOUT_S):
                return await in_own_thread(partial(self._cut_now, assignment, content))
        except TimeoutError:
            raise PermanentError(
                f"{assignment.key.document_id} could not be read within {LOAD_TIMEOUT_S:.0f} s: it is malformed or too "
                "large; save it again in its own application, or split it"
            ) from None

    def _cut_now(self, assignment: Assignment, content: bytes) -> Cut:
        loaded = load(content, assignment.media_type, assignment.name)
        title = loaded.title or title_of(assignment.name)
        return Cut(title, loaded.text, chunks_of(loaded, title, self._embedder.token_starts, self._limits))

    async def _embed(self, making: Making) -> _Embedding | None:
        """Embed what was never embedded, and store all but the last slice as they come; None when nobody wants them."""
        embedder, job = self._embedder, making.job
        texts = {chunk.hash: chunk.embedded for chunk in making.cut.chunks}
        made, vectors = 0, dict[bytes, bytes]()
        for names in _slices(list(texts), embedder.texts_at_once):
            known = await self._chunks.known(making, names)
            new = [name for name in names if name not in known]
            if not new:
                await asyncio.sleep(0)  # others have their turn, too, where all of a long document is known
                continue
            if vectors and not await self._chunks.keep(making, vectors):
                return None
            done = await embedder.embed([texts[name] for name in new], job.lane, alone=job.attempts > 0)
            vectors = {name: vector.tobytes() for name, vector in zip(new, done, strict=True)}
            made += len(new)
        return _Embedding(vectors, made)


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def in_own_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread of its own, which is left to itself when whoever waits gives up.

    A parser that never comes back from a malformed file takes neither a thread of a pool nor the process's end with it.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on it is settled by the thread alone

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(future)


def title_of(name: str) -> str:
    """Return a file name as a title: `refund-policy.md` is "refund policy"; any other name stays as it is."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in SUFFIXES:
        return name
    return path.stem.replace("-", " ").replace("_", " ").strip()
