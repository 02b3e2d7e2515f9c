"""A model that runs in this process, as an `Embedder`: one text at a time, several at once in threads."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from services.embedder.ports import Model, Vector
from services.kernel.jobs import Lane, TransientError

THREADS = min(4, os.cpu_count() or 1)


class InProcess:
    """Runs a model in threads; queries have one of their own."""

    texts_at_once = 16
    # One more document than threads: what comes in live then shares the threads with the backfill at once.
    documents_at_once = THREADS + 1
    live_documents = 1

    def __init__(self, model: Model) -> None:
        self._model = model
        self.model_id, self.dimensions, self.tokens_max = model.model_id, model.dimensions, model.tokens_max
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="embed")
        self._query_thread = ThreadPoolExecutor(1, thread_name_prefix="embed-query")

    async def embed(self, texts: Sequence[str], lane: Lane, *, alone: bool = False) -> Sequence[Vector]:
        """Return the vectors of texts."""
        del lane, alone  # the documents at once leave a share to each lane, and no two texts share a call
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._threads, self._vector, text) for text in texts))

    async def embed_query(self, text: str) -> Vector:
        """Return the vector of a query."""
        return await asyncio.get_running_loop().run_in_executor(self._query_thread, self._vector, text)

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters."""
        return self._model.token_starts(text)

    async def warm_up(self) -> None:
        """Load the model beside everything else, so that the first document and query do not wait for it."""
        await asyncio.to_thread(self._model.load)

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._query_thread.shutdown(wait=False, cancel_futures=True)

    def _vector(self, text: str) -> Vector:
        vector = self._model.embed(text)
        self.dimensions = self.dimensions or len(vector)
        if len(vector) != self.dimensions:
            raise TransientError(
                f"{self.model_id}: a vector has {len(vector)} dimensions, not {self.dimensions}: "
                "check embedder.model.model and embedder.model.dimensions"
            )
        return vector
