"""Requests to an OpenAI-compatible `/embeddings`, over HTTP. What it asks for of its rate limits is kept to."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from services.embedder.openai_answers import refusal, vectors_of
from services.embedder.ports import Vector
from services.embedder.rate_limits import backfill_wait_s
from services.embedder.settings import ModelSettings
from services.kernel.jobs import RateLimited, TransientError
from services.kernel.retry import backoff_s

if TYPE_CHECKING:  # imported at first use: most installations embed in their own process
    import aiohttp

CONNECT_TIMEOUT_S = 10.0
# Busy without a word of for how long: the wait after the first time, and the longest.
PATIENCE_BASE_S, PATIENCE_CAP_S = 0.5, 60.0
_LARGE_BYTES = 100_000  # an answer that is read in a thread, so that nothing else waits for it
_OK = 200


class OpenAiClient:
    """Sends texts, and keeps away for as long as the endpoint asks.

    Attributes:
        url: where requests go.
        dimensions: the only length of vectors that is taken; 0 until the first answer tells.
        backfill_from: until then, by the monotonic clock, what remains of the endpoint's budget is for live texts.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self.url = f"{settings.base_url.rstrip('/')}/embeddings"
        self.dimensions = settings.dimensions
        self.backfill_from = self._paused_until = float("-inf")
        self._busy_in_a_row = 0
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    def refuse_while_paused(self) -> None:
        """Raise RateLimited while the endpoint wants to be left alone."""
        left_s = self._paused_until - time.monotonic()
        if left_s > 0:
            raise RateLimited(f"{self.url} asks to come back in {left_s:.3g} s", left_s)

    async def vectors(self, texts: Sequence[str]) -> list[Vector | None]:
        """Return the vectors of texts, each of length 1; None for one with no direction.

        Raises:
            EnrichmentError: it cannot, by its kind.
            TextsRefusedError: the endpoint does not take these texts.
        """
        self.refuse_while_paused()
        status, headers, body = await self._posted(texts)
        now = time.time()
        self.backfill_from = time.monotonic() + backfill_wait_s(headers, now)
        if status != _OK:
            patience_s = backoff_s(self._busy_in_a_row + 1, base_s=PATIENCE_BASE_S, cap_s=PATIENCE_CAP_S, chance=1.0)
            error = refusal(self.url, status, headers, body, now=now, patience_s=patience_s)
            if isinstance(error, RateLimited):
                self._pause(error.retry_after_s)
            raise error
        self._busy_in_a_row = 0
        call = (body, len(texts), self.dimensions)
        found = await asyncio.to_thread(vectors_of, *call) if len(body) > _LARGE_BYTES else vectors_of(*call)
        self.dimensions = self.dimensions or next((len(vector) for vector in found if vector is not None), 0)
        return found

    def _pause(self, wait_s: float) -> None:
        now = time.monotonic()
        if now >= self._paused_until:  # requests that were in flight together say it together
            self._busy_in_a_row += 1
        self._paused_until = max(self._paused_until, now + wait_s)

    async def _posted(self, texts: Sequence[str]) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request, and return the answer's status, headers and body."""
        import aiohttp

        settings = self._settings
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            )
        document: dict[str, Any] = {"model": settings.model, "input": texts}
        if settings.dimensions:
            document["dimensions"] = settings.dimensions
        data = orjson.dumps(document)
        headers = {"content-type": "application/json", **_authorization(settings.api_key_env)}
        try:
            async with (
                asyncio.timeout(settings.timeout_s),
                # No redirects: the key is for this address alone.
                self._session.post(self.url, data=data, headers=headers, allow_redirects=False) as response,
            ):
                return response.status, response.headers, await response.read()
        except TimeoutError as error:
            raise TransientError(
                f"{self.url}: no answer in {settings.timeout_s:g} s: raise embedder.model.timeout_s, or lower "
                "batch_texts_max"
            ) from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{self.url}: {error or type(error).__name__}: is the endpoint running?") from error


def _authorization(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise TransientError(
            f"the environment variable {variable}, which embedder.model.api_key_env names, is empty: set it to the key"
        )
    return {"authorization": f"Bearer {key}"}
