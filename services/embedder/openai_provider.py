"""Any OpenAI-compatible `/embeddings` as the embedding model, over HTTP.

Texts of many documents share a request. A request that the endpoint refuses is halved until the poisonous text stands
alone: its document is parked, the others never notice. An endpoint that refuses a harmless text, too, is set up
wrongly, and no document is given up for that. One that is busy is left alone for as long as it asks.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from services.embedder.batching import Batches, Waiting
from services.embedder.openai_answers import DoubtfulError, TextsRefusedError, refusal, vectors_of
from services.embedder.ports import Model, Vector
from services.embedder.rate_limits import backfill_wait_s
from services.embedder.settings import ModelSettings
from services.kernel.breaker import Breaker, BreakerPolicy
from services.kernel.jobs import EnrichmentError, Lane, PermanentError, RateLimited, TransientError
from services.kernel.retry import backoff_s

if TYPE_CHECKING:  # imported at first use: most installations embed in their own process
    import aiohttp

HARMLESS = "a text"
CONNECT_TIMEOUT_S = 10.0
DOCUMENTS_MAX = 256
# Busy without a word of for how long: the longest waits, from the first on.
PATIENCE_BASE_S, PATIENCE_CAP_S = 0.5, 60.0
# Queries that find an unwell endpoint are answered by words at once for a while, and not after their deadline.
QUERY_BREAKER = BreakerPolicy(failures=2, pause_s=2.0, pause_max_s=30.0)
_LARGE_BYTES = 100_000  # an answer that is read in a thread, so that nothing else waits for it
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
        self._settings, self._tokenizer = settings, tokenizer
        self._url = f"{settings.base_url.rstrip('/')}/embeddings"
        self.model_id = f"openai/{settings.model}/{settings.dimensions or 'native'}"
        self.dimensions = settings.dimensions
        self.tokens_max = settings.tokens_max - 2 if settings.tokens_max else tokenizer.tokens_max
        self.texts_at_once = settings.batch_texts_max
        self.documents_at_once = min(DOCUMENTS_MAX, settings.requests_max * settings.batch_texts_max)
        self.live_documents = max(1, self.documents_at_once // 4)
        self._batches = Batches(
            texts_max=settings.batch_texts_max,
            tokens_max=settings.batch_tokens_max,
            requests_max=settings.requests_max,
        )
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._paused_until = self._backfill_from = float("-inf")
        self._busy_in_a_row = 0
        self._queries, self._query_trouble = Breaker(QUERY_BREAKER), ""

    async def embed(self, texts: Sequence[str], lane: Lane, *, alone: bool = False) -> Sequence[Vector]:
        """Return the vectors of texts of one document; see `ports.Embedder`."""
        self._refuse_while_paused()
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
        self._refuse_while_paused()
        key, limit_s = object(), self._settings.query_timeout_s
        if self._queries.blocks(time.monotonic()):
            raise TransientError(self._query_trouble)
        if self._queries.is_open:
            self._queries.probing = key
        try:
            async with asyncio.timeout(limit_s):
                (vector,) = await self._request([await asyncio.to_thread(self._cut, text)])
        except TimeoutError:
            slow = f"{self._url}: no answer to a query in {limit_s:g} s: see embedder.model.query_timeout_s"
            raise self._query_failed(key, TransientError(slow)) from None
        except TransientError as error:
            raise self._query_failed(key, error) from error
        finally:
            self._queries.ended(key)
        self._queries.succeeded()
        if vector is None:
            raise TextsRefusedError(f"{self._url}: the query's vector is zero, or not finite")
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
        if self._session is not None:
            await self._session.close()

    # Requests of documents --------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Send what may be sent just now."""
        wait_s = self._backfill_from - time.monotonic()
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
                each.fail(TransientError(f"{self._url}: {type(error).__name__}: {error}"))
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
                elif not each.vector.done():
                    each.vector.set_result(vector)
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
        """Tell a poisonous text from an endpoint that takes nothing at all."""
        harmless = await self._tried([HARMLESS])
        if isinstance(harmless, EnrichmentError):
            waiting.fail(harmless)
        elif isinstance(harmless, list) and harmless[0] is not None:
            text = " ".join(waiting.text.split())[:_SHOWN]
            waiting.fail(PermanentError(f"a text cannot be embedded, {text!r}…: {error}: change or leave out the text"))
        else:
            waiting.fail(TransientError(f"{error}; nor does it take a harmless text: check [embedder.model]"))

    # One request ------------------------------------------------------------------------------------------------

    async def _tried(self, texts: Sequence[str]) -> Outcome:
        try:
            return await self._request(texts)
        except (EnrichmentError, TextsRefusedError) as error:
            return error

    async def _request(self, texts: Sequence[str]) -> list[Vector | None]:
        self._refuse_while_paused()
        status, headers, body = await self._posted(texts)
        now = time.time()
        self._backfill_from = time.monotonic() + backfill_wait_s(headers, now)
        if status != 200:
            patience_s = backoff_s(self._busy_in_a_row + 1, base_s=PATIENCE_BASE_S, cap_s=PATIENCE_CAP_S, chance=1.0)
            error = refusal(self._url, status, headers, body, now=now, patience_s=patience_s)
            if isinstance(error, RateLimited):
                self._pause(error)
            raise error
        self._busy_in_a_row = 0
        call = (body, len(texts), self.dimensions)
        vectors = await asyncio.to_thread(vectors_of, *call) if len(body) > _LARGE_BYTES else vectors_of(*call)
        self.dimensions = self.dimensions or next((len(vector) for vector in vectors if vector is not None), 0)
        return vectors

    async def _posted(self, texts: Sequence[str]) -> tuple[int, Any, bytes]:
        import aiohttp

        settings = self._settings
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            )
        document: dict[str, Any] = {"model": settings.model, "input": texts}
        if settings.dimensions:
            document["dimensions"] = settings.dimensions
        headers = {"content-type": "application/json", **_authorization(settings.api_key_env)}
        try:
            async with (
                asyncio.timeout(settings.timeout_s),
                self._session.post(
                    self._url, data=orjson.dumps(document), headers=headers, allow_redirects=False
                ) as response,
            ):
                return response.status, response.headers, await response.read()
        except TimeoutError as error:
            raise TransientError(
                f"{self._url}: no answer in {settings.timeout_s:g} s: raise embedder.model.timeout_s, or lower "
                "batch_texts_max"
            ) from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{self._url}: {error or type(error).__name__}: is the endpoint running?") from error

    def _pause(self, error: RateLimited) -> None:
        """Leave the endpoint alone for as long as it asks; what waits is deferred until then."""
        now = time.monotonic()
        if now >= self._paused_until:  # requests that were in flight together say it together
            self._busy_in_a_row += 1
        self._paused_until = max(self._paused_until, now + error.retry_after_s)
        for each in self._batches.drain():
            each.fail(RateLimited(str(error), error.retry_after_s))

    def _refuse_while_paused(self) -> None:
        left_s = self._paused_until - time.monotonic()
        if left_s > 0:
            raise RateLimited(f"{self._url} asks to come back in {left_s:.3g} s", left_s)

    def _query_failed(self, key: object, error: TransientError) -> TransientError:
        self._query_trouble = str(error)
        self._queries.failed(key, time.monotonic())
        return error

    def _cut(self, text: str) -> str:
        """What the model takes of a query."""
        starts = self.token_starts(text)
        return text if len(starts) <= self.tokens_max else text[: starts[self.tokens_max]]


def _authorization(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise TransientError(
            f"the environment variable {variable}, which embedder.model.api_key_env names, is empty: set it to the key"
        )
    return {"authorization": f"Bearer {key}"}
