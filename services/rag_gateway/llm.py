"""Any OpenAI-compatible endpoint as the model that answers, streamed over HTTP."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from headwater.rag_gateway.v1 import service_pb2
from services.kernel.errors import DeadlineError, OverloadedError, UnavailableError
from services.kernel.retry_after import retry_after_s
from services.rag_gateway.ports import Finished, Piece, Words
from services.rag_gateway.settings import LlmSettings

if TYPE_CHECKING:  # imported at first use: most installations start without a model
    import aiohttp

_LATER = frozenset({429, 503})
_ERROR_BYTES = 500
_PER_MILLION = 1_000_000
_CUT = {
    "length": "the answer was cut: it reached rag_gateway.llm.max_tokens",
    "content_filter": "the answer was cut by the model's content filter",
}


class OpenAiModel:
    """A chat model behind an OpenAI-compatible endpoint."""

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._settings.model

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        """What an answer costs, in the configured currency."""
        prices = self._settings
        return (prompt_tokens * prices.prompt_price + answer_tokens * prices.answer_price) / _PER_MILLION

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def stream(self, messages: Sequence[service_pb2.PromptMessage]) -> AsyncIterator[Piece]:
        """Answer, word by word; see `ports.LanguageModel`."""
        import aiohttp

        limit_s = self._settings.timeout_s
        deadline = time.monotonic() + limit_s
        try:
            async with asyncio.timeout(limit_s):
                async with await self._opened(messages, deadline) as response:
                    async for piece in _pieces(response):
                        yield piece
        except TimeoutError as error:
            raise DeadlineError(
                f"{self._url}: no whole answer in {limit_s:g} s: raise rag_gateway.llm.timeout_s or lower max_tokens"
            ) from error
        except aiohttp.ClientError as error:
            raise UnavailableError(f"{self._url}: {error or type(error).__name__}: is the endpoint running?") from error

    async def _opened(self, messages: Sequence[service_pb2.PromptMessage], deadline: float) -> "aiohttp.ClientResponse":
        """The response once the endpoint accepts; one that asks to come back later is asked once more, if in time."""
        response = await self._post(messages)
        if response.status in _LATER and (asked_s := retry_after_s(response.headers, time.time())) is not None:
            response.release()
            wait_s = max(0.0, asked_s)
            if time.monotonic() + wait_s >= deadline:
                raise OverloadedError(
                    f"{self._url} asks to come back in {wait_s:g} s, which is later than the deadline"
                )
            await asyncio.sleep(wait_s)
            response = await self._post(messages)
        if response.status == 200:
            return response
        async with response:
            said = (await response.content.read(_ERROR_BYTES)).decode(errors="replace")
        kind = OverloadedError if response.status in _LATER else UnavailableError
        raise kind(f"{self._url} refused with {response.status}: {' '.join(said.split())}{_cure(response.status)}")

    async def _post(self, messages: Sequence[service_pb2.PromptMessage]) -> "aiohttp.ClientResponse":
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))
        settings = self._settings
        body = {
            "model": settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"content-type": "application/json", **_authorization(settings.api_key_env)}
        return await self._session.post(self._url, data=orjson.dumps(body), headers=headers, allow_redirects=False)


async def _pieces(response: "aiohttp.ClientResponse") -> AsyncIterator[Piece]:
    """The pieces of a response, which is a stream of events, or one document where the endpoint does not stream."""
    finished, ended = Finished(), False
    async for document in _documents(response):
        if document is None:
            ended = True
            break
        text, finished, last = _read(document, finished)
        ended = ended or last
        if text:
            yield Words(text)
    if not ended:
        raise UnavailableError(f"{response.url}: the stream broke off before its end")
    yield finished


async def _documents(response: "aiohttp.ClientResponse") -> AsyncIterator[dict[str, Any] | None]:
    """The JSON documents of a response; None where the stream says that it is done."""
    if response.content_type == "application/json":
        yield _document(await response.read())
        return
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            yield None if data == b"[DONE]" else _document(data)


def _read(document: dict[str, Any], so_far: Finished) -> tuple[str, Finished, bool]:
    """The words of one document, what is known of the end after it, and whether it is the end."""
    if error := document.get("error"):
        raise UnavailableError(f"the model broke off: {error.get('message') if isinstance(error, dict) else error}")
    usage = document.get("usage") or {}
    text, cut, ended = "", so_far.cut, False
    for choice in document.get("choices") or ():
        held = choice.get("delta") or choice.get("message") or {}
        text += held.get("content") or ""
        reason = choice.get("finish_reason")
        cut, ended = _CUT.get(reason, cut), ended or bool(reason)
    prompt_tokens = usage.get("prompt_tokens") or so_far.prompt_tokens
    answer_tokens = usage.get("completion_tokens") or so_far.answer_tokens
    return text, Finished(prompt_tokens, answer_tokens, cut), ended


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UnavailableError(f"the endpoint sent something that is not JSON: {data[:80]!r}") from error
    if not isinstance(document, dict):
        raise UnavailableError(f"the endpoint sent something that is no JSON object: {data[:80]!r}")
    return document


def _authorization(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise UnavailableError(
            f"the environment variable {variable}, which rag_gateway.llm.api_key_env names, is empty: set it to the key"
        )
    return {"authorization": f"Bearer {key}"}


def _cure(status: int) -> str:
    if status in (401, 403):
        return " (check the key that rag_gateway.llm.api_key_env names)"
    if status == 404:
        return " (check rag_gateway.llm.base_url and model)"
    return ""
