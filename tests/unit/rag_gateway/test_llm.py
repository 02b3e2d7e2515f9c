"""Models behind an OpenAI-compatible endpoint, against a real HTTP server."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from headwater.rag_gateway.v1 import service_pb2
from services.kernel.errors import DeadlineError, OverloadedError, UnavailableError
from services.rag_gateway.llm import OpenAiModel
from services.rag_gateway.ports import Finished, Piece, Words
from services.rag_gateway.settings import LlmSettings
from tests.unit.rag_gateway.llm_server import LlmServer, Script, refuses, streams, whole

PROMPT = [
    service_pb2.PromptMessage(role="system", content="rules"),
    service_pb2.PromptMessage(role="user", content="question"),
]


async def answer(*scripts: Script, **settings: Any) -> tuple[list[Piece], LlmServer]:
    async with LlmServer(*scripts).running() as server:
        model = OpenAiModel(replace(LlmSettings(base_url=server.base_url, model="tiny"), **settings))
        try:
            return [piece async for piece in model.stream(PROMPT)], server
        finally:
            await model.close()


async def test_streams_words_and_ends_with_the_usage() -> None:
    pieces, server = await answer(streams("Hello", " there"), max_tokens=42)
    assert pieces == [Words("Hello"), Words(" there"), Finished(11, 7)]
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert request["max_tokens"] == 42
    assert request["messages"] == [{"role": "system", "content": "rules"}, {"role": "user", "content": "question"}]
    assert "Authorization" not in server.headers[0]


async def test_takes_an_answer_in_one_piece_from_an_endpoint_that_does_not_stream() -> None:
    pieces, _ = await answer(whole("All at once"))
    assert pieces == [Words("All at once"), Finished(5, 2)]


async def test_says_when_the_answer_was_cut() -> None:
    pieces, _ = await answer(streams("Half", finish="length"))
    assert isinstance(pieces[-1], Finished)
    assert "max_tokens" in pieces[-1].cut


async def test_sends_the_key_of_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "k-123")
    _, server = await answer(streams("x"), api_key_env="SOME_KEY")
    assert server.headers[0]["Authorization"] == "Bearer k-123"


async def test_names_the_variable_whose_key_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UnavailableError, match="SOME_KEY"):
        await answer(streams("x"), api_key_env="SOME_KEY")


async def test_comes_back_once_when_it_is_asked_to() -> None:
    pieces, server = await answer(refuses(429, retry_after="0"), streams("now"))
    assert pieces[0] == Words("now")
    assert len(server.requests) == 2


async def test_comes_back_once_only() -> None:
    with pytest.raises(OverloadedError, match="429"):
        await answer(refuses(429, retry_after="0"), refuses(429, retry_after="0"), streams("never"))


@pytest.mark.parametrize("later", ["3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)])
async def test_does_not_wait_beyond_the_deadline(later: str) -> None:
    with pytest.raises(OverloadedError, match="later than the deadline"):
        await answer(refuses(503, retry_after=later), streams("never"))


@pytest.mark.parametrize(("status", "hint"), [(401, "api_key_env"), (404, "base_url"), (500, "refused with 500")])
async def test_a_refusal_says_what_to_do(status: int, hint: str) -> None:
    with pytest.raises(UnavailableError, match=hint):
        await answer(refuses(status, "because"))


async def test_a_refusal_to_be_overloaded_without_a_time_is_no_reason_to_wait() -> None:
    with pytest.raises(OverloadedError):
        await answer(refuses(429))


async def test_an_endpoint_that_is_not_there_is_named() -> None:
    model = OpenAiModel(LlmSettings(base_url="http://127.0.0.1:1/v1", model="tiny"))
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        [piece async for piece in model.stream(PROMPT)]
    await model.close()


async def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with pytest.raises(UnavailableError, match="broke off"):
        await answer(streams("Half an", finish=None, usage=None, done=False))


async def test_a_stream_without_done_but_with_a_finish_is_whole() -> None:
    pieces, _ = await answer(streams("All", done=False))
    assert pieces[0] == Words("All")


async def test_an_error_within_the_stream_is_an_error() -> None:
    def script(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        return web.Response(body=b'data: {"error": {"message": "out of memory"}}\n\n', content_type="text/event-stream")

    with pytest.raises(UnavailableError, match="out of memory"):
        await answer(script)


async def test_what_is_not_json_is_an_error() -> None:
    def script(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        return web.Response(body=b"data: <html>\n\n", content_type="text/event-stream")

    with pytest.raises(UnavailableError, match="not JSON"):
        await answer(script)


async def test_an_endpoint_that_stalls_is_given_up() -> None:
    async def script(_request: web.Request, _body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    with pytest.raises(DeadlineError, match="timeout_s"):
        await answer(script, timeout_s=0.05)


def test_the_cost_follows_from_the_prices_of_a_million_tokens() -> None:
    model = OpenAiModel(LlmSettings(base_url="http://x", model="m", prompt_price=2.0, answer_price=8.0))
    assert model.cost(500_000, 250_000) == pytest.approx(3.0)
