"""A scripted OpenAI-compatible server of embeddings: a real HTTP server that answers what a test tells it to."""

import asyncio
import base64
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from services.embedder.ports import Model
from services.embedder.settings import ModelSettings
from tests.unit.embedder.examples import HashModel

Script = Callable[[list[str]], Any]
"""What the server answers to the texts of a request, or an awaitable of it; None means vectors."""


class EmbeddingsServer:
    """The server: `scripts` answer a request each, then `always` does, and what neither answers has its vectors."""

    def __init__(self, *scripts: Script, always: Script = lambda _: None, model: Model | None = None) -> None:
        self.scripts, self.always = list(scripts), always
        self.model: Model = model or HashModel()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer_headers: dict[str, str] = {}
        self.base_url = ""
        self._runner: web.AppRunner | None = None

    @property
    def texts(self) -> list[list[str]]:
        """The texts of each request."""
        return [request["input"] for request in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        for script in [self.scripts.pop(0)] if self.scripts else [self.always]:
            answered = script(body["input"])
            response: web.StreamResponse | None = await answered if inspect.isawaitable(answered) else answered
            if response is not None:
                return response
        return await self.vectors(body["input"])

    async def vectors(self, texts: Sequence[str]) -> web.Response:
        vectors = [await asyncio.to_thread(self.model.embed, text) for text in texts]
        return web.Response(body=answer([vector * np.float32(3) for vector in vectors]), headers=self.answer_headers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["EmbeddingsServer"]:
        application = web.Application()
        application.router.add_post("/v1/embeddings", self.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    def table(self, **settings: Any) -> dict[str, Any]:
        """The table [embedder.model] that names this server."""
        return {"provider": "openai", "base_url": self.base_url, "model": "tiny"} | settings

    def settings(self, **settings: Any) -> ModelSettings:
        return ModelSettings(**self.table(**settings))


def answer(vectors: Sequence[Any], indices: Sequence[int] | None = None) -> bytes:
    """The document of an answer."""
    places = indices if indices is not None else range(len(vectors))
    entries = [
        {"object": "embedding", "index": place, "embedding": vector}
        for place, vector in zip(places, vectors, strict=True)
    ]
    return orjson.dumps({"object": "list", "data": entries}, option=orjson.OPT_SERIALIZE_NUMPY)


def answers(body: bytes) -> Script:
    return lambda _: web.Response(body=body)


def refuses(status: int, message: str = "no", **headers: str) -> Script:
    """Refuse, as OpenAI does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: web.json_response({"error": {"message": message}}, status=status, headers=named)


def when(word: str, script: Script) -> Script:
    """Do so for requests with a text that holds a word."""
    return lambda texts: script(texts) if any(word in text for text in texts) else None


def base64_of(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def unused_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
