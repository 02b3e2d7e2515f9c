"""A scripted OpenAI-compatible server: a real HTTP server that answers what a test tells it to."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from aiohttp import web

Script = Callable[[web.Request, dict[str, Any]], Any]


class LlmServer:
    """The server; `scripts` answer one request each, the last one all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        response = script(request, body)
        answered: web.StreamResponse = await response if inspect.isawaitable(response) else response
        return answered

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["LlmServer"]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def streams(
    *words: str, finish: str | None = "stop", usage: tuple[int, int] | None = (11, 7), done: bool = True
) -> Script:
    """Answer with a stream of words."""

    async def script(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        for word in words:
            await _send(response, {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        if finish:
            await _send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage:
            counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
            await _send(response, {"choices": [], "usage": counts})
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return script


def refuses(status: int, message: str = "no", **headers: str) -> Script:
    """Refuse, as OpenAI does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, _body: web.json_response({"error": {"message": message}}, status=status, headers=named)


def whole(text: str) -> Script:
    """Answer with one document, whatever was asked for."""
    document = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    return lambda _request, _body: web.json_response(document)


async def _send(response: web.StreamResponse, document: Any) -> None:
    await response.write(b"data: " + orjson.dumps(document) + b"\n\n")
