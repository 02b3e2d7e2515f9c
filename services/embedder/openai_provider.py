"""Any OpenAI-compatible `/embeddings` as the embedding model, over HTTP.

Texts of many documents share a request. A request that the endpoint refuses is halved until the poisonous text stands
alone: its document is parked, the others never notice. An endpoint that refuses a harmless text, too, is set up
wrongly, and no document is given up for that. One that is busy is left alone for as long as it asks.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

from services.embedder.batching import Batches, Waiting
from services.embedder.openai_answers import DoubtfulError, TextsRefusedError
from services.embedder.openai_client import OpenAiClient
from services.embedder.ports import Model, Vector
from services.embedder.settings import ModelSettings
from services.kernel.breaker import Breaker, BreakerPolicy
from services.kernel.jobs import EnrichmentError, Lane, PermanentError, TransientError

HARMLESS = "a text"
DOCUMENTS_MAX = 256
# Queries that find an unwell endpoint are answered by words at once for a while, and not after their deadline.
QUERY_BREAKER = BreakerPolicy(failures=2, pause_s=2.0, pause_max_s=30.0)
_SHOWN = 60  # characters of a text that an error shows

Outcome: TypeAlias = "list[Vector | None] | EnrichmentError | TextsRefusedError"


class OpenAiEmbedder:
    """A model behind an OpenAI-compatible endpoint; see `ports.Embedder`."""

    def __init__(self, settings: ModelSettings, tokenizer: Model) -> None:
        """Wire the provider; nothing is sent before the first text.

        Args:
            settings: the endpoint.
            tokenizer: measures texts; the endpoint's own tokenizer is not known.
        """
        self._tokenizer, self._query_timeout_s = tokenizer, settings.query_timeout_s
        self._client = OpenAiClient(settings)
        self.model_id = f"openai/{settings.model}/{settings.dimensions or 'native'}"
        self.tokens_max = settings.tokens_max - 2 if settings.tokens_max else tokenizer.tokens_max
        self.texts_at_once = settings.batch_texts_max
        self.documents_at_once = min(DOCUMENTS_MAX, settings.requests_max * settings.batch_texts_max)
        self.live_documents = max(1, self.documents_at_once // 4)
        self._batches = Batches(
            texts_max=settings.batch_texts_max,
            tokens_max=settings.batch_tokens_max,
            requests_max=settings.requests_max,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._queries, self._query_trouble = Breaker(QUERY_BREAKER), ""

    @property
    def dimensions(self) -> int:
        """The length of the vectors; 0 until the first answer tells."""
        return self._client.dimensions

    @dimensions.setter
    def dimensions(self, dimensions: int) -> None:
        self._client.dimensions = dimensions

    async def embed(self, texts: Sequence[str], lane: Lane, *, alone: bool = False) -> Sequence[Vector]:
        """Return the vectors of texts of one document; see `ports.Embedder`."""
        self._client.refuse_while_paused()
        counts = await asyncio.to_thread(lambda: [len(self.token_starts(text)) for text in texts])
        loop, owner = asyncio.get_running_loop(), object() if alone else None
        waiting = [
            Waiting(text, tokens, lane, owner, loop.create_future()) for text, tokens in zip(texts, counts, strict=True)
        ]
        self._batches.put(waiting)
        self._start()
        try:
            outcomes = await asyncio.gather(*(each.vector for each in waiting), return_exceptions=True)
        finally:
            for each in waiting:
                each.vector.cancel()  # of no effect on those that are settled
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            # A poisonous text decides over its document, whatever the others met.
            raise next((error for error in errors if isinstance(error, PermanentError)), errors[0])
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def embed_query(self, text: str) -> Vector:
        """Return the vector of a query, ahead of everything else, or raise a HeadwaterError in good time."""
        self._client.refuse_while_paused()
        key, limit_s = object(), self._query_timeout_s
        if self._queries.blocks(time.monotonic()):
            raise TransientError(self._query_trouble)
        if self._queries.is_open:
            self._queries.probing = key
        try:
            async with asyncio.timeout(limit_s):
                (vector,) = await self._client.vectors([await asyncio.to_thread(self._cut, text)])
        except TimeoutError:
            slow = f"{self._client.url}: no answer to a query in {limit_s:g} s: see embedder.model.query_timeout_s"
            raise self._query_failed(key, TransientError(slow)) from None
        except TransientError as error:
            raise self._query_failed(key, error) from error
        finally:
            self._queries.ended(key)
        self._queries.succeeded()
        if vector is None:
            raise TextsRefusedError(f"{self._client.url}: the query's vector is zero, or not finite")
        return vector

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, as the model that comes with Headwater cuts it."""
        return self._tokenizer.token_starts(text)

    async def warm_up(self) -> None:
        """Load the tokenizer."""
        await asyncio.to_thread(self._tokenizer.token_starts, HARMLESS)

    async def close(self) -> None:
        """Abandon what waits and what is in flight, and close connections."""
        for each in self._batches.drain():
            each.vector.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    # Requests of documents --------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Send what may be sent just now."""
        wait_s = self._client.backfill_from - time.monotonic()
        while batch := self._batches.take(backfill_paused=wait_s > 0):
            task = asyncio.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_s > 0 and self._batches.waits(Lane.BACKFILL):
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._start)

    async def _send(self, batch: list[Waiting]) -> None:
        try:
            await self._settle(batch, await self._tried([each.text for each in batch]))
        except Exception as error:  # noqa: BLE001 - a bug here must not leave documents waiting for ever
            for each in batch:
                each.fail(TransientError(f"{self._client.url}: {type(error).__name__}: {error}"))
        finally:
            for each in batch:
                each.vector.cancel()  # of those that were abandoned; of no effect on what is settled
            self._batches.ended(batch[0].lane)
            self._start()

    async def _settle(self, batch: Sequence[Waiting], outcome: Outcome) -> None:
        """Give everyone who waits their vector, or what became of it."""
        if isinstance(outcome, list):
            for each, vector in zip(batch, outcome, strict=True):
                if vector is None:
                    await self._stands_alone(each, TextsRefusedError("its vector is zero, or not finite"))
                else:
                    each.settle(vector)
        elif isinstance(outcome, TextsRefusedError | DoubtfulError) and len(batch) > 1:
            await self._apart(batch, outcome)
        elif isinstance(outcome, TextsRefusedError):
            await self._stands_alone(batch[0], outcome)
        else:
            for each in batch:
                each.fail(outcome)

    async def _apart(self, batch: Sequence[Waiting], error: TextsRefusedError | DoubtfulError) -> None:
        """Try the halves of a batch that failed: where both fail as before, it is the endpoint that is unwell."""
        middle = len(batch) // 2
        halves = batch[:middle], batch[middle:]
        outcomes = [await self._tried([each.text for each in half]) for half in halves]
        if isinstance(error, DoubtfulError) and all(isinstance(outcome, DoubtfulError) for outcome in outcomes):
            for each in batch:
                each.fail(error)
            return
        if isinstance(error, TextsRefusedError) and all(isinstance(outcome, list) for outcome in outcomes):
            self._batches.texts_max = min(self._batches.texts_max, len(halves[1]))  # together it was too much
        for half, outcome in zip(halves, outcomes, strict=True):
            await self._settle(half, outcome)

    async def _stands_alone(self, waiting: Waiting, error: TextsRefusedError) -> None:
        """Tell a poisonous text from an endpoint that takes nothing at all: between two tries, try a harmless one."""
        harmless = await self._tried([HARMLESS])
        if isinstance(harmless, EnrichmentError):
            waiting.fail(harmless)
            return
        if isinstance(harmless, TextsRefusedError) or harmless[0] is None:
            waiting.fail(TransientError(f"{error}; nor does it take a harmless text: check [embedder.model]"))
            return
        again = await self._tried([waiting.text])
        if isinstance(again, EnrichmentError):
            waiting.fail(again)
        elif isinstance(again, list) and again[0] is not None:  # it has been set right meanwhile
            waiting.settle(again[0])
        else:
            text = " ".join(waiting.text.split())[:_SHOWN]
            waiting.fail(PermanentError(f"a text cannot be embedded, {text!r}…: {error}: change or leave out the text"))

    async def _tried(self, texts: Sequence[str]) -> Outcome:
        try:
            return await self._client.vectors(texts)
        except (EnrichmentError, TextsRefusedError) as error:
            return error

    def _query_failed(self, key: object, error: TransientError) -> TransientError:
        self._query_trouble = str(error)
        self._queries.failed(key, time.monotonic())
        return error

    def _cut(self, text: str) -> str:
        """What the model takes of a query."""
        starts = self.token_starts(text)
        return text if len(starts) <= self.tokens_max else text[: starts[self.tokens_max]]
