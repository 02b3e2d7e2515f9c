"""POST /v1/chat/completions and GET /v1/models, as OpenAI's clients speak.

Who asks is `user`, as kind:value, or `metadata.as`; `metadata` may also hold conversation_id, at_least, access (labels
separated by commas), at_least_timeout_s, budget_tokens and top_k, the numbers as texts too. The answer carries a
field `headwater` with citations, freshness and ids.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from aiohttp import web

from headwater.rag_gateway.v1 import service_pb2, service_pb2_grpc
from services.kernel.errors import HeadwaterError, InvalidInputError, NotFoundError, from_rpc
from services.kernel.http_errors import body_of, event_stream, json_body, json_response, send
from services.kernel.http_server import tenant_of
from services.kernel.service import Platform
from services.rag_gateway.http_json import as_json, identifier_of, question_of

MODEL = "headwater"
_NUMBERS = {"at_least_timeout_s": float, "budget_tokens": int, "top_k": int}
_NOT_OFFERED = ("tools", "functions", "logprobs", "audio")


class OpenAiRoutes:
    """The handlers."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Mount the routes."""
        router.add_post("/v1/chat/completions", self.complete)
        router.add_get("/v1/models", self.models)
        router.add_get("/v1/models/{model}", self.model)

    async def models(self, _: web.Request) -> web.Response:
        """List the one model that there is: this gateway, whatever answers behind it."""
        return json_response({"object": "list", "data": [_MODEL]})

    async def model(self, request: web.Request) -> web.Response:
        """Describe it."""
        _check_model(request.match_info["model"])
        return json_response(_MODEL)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer the last message of a chat."""
        body = await json_body(request)
        question = _question(body, tenant_of(request))
        created = int(time.time())
        async with contextlib.aclosing(self._ask(question)) as pieces:
            if not body.get("stream"):
                answer = service_pb2.Answer()
                async for piece in pieces:
                    if piece.WhichOneof("piece") == "answer":
                        answer = piece.answer
                return json_response(_completion(answer, created))
            # Nothing is sent before the first piece: until then a refusal still has a status of its own.
            first = await anext(pieces)
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            async with event_stream(request) as response:
                await _stream(response, first, pieces, created, usage=usage)
            return response

    async def _ask(self, question: service_pb2.Question) -> AsyncGenerator[service_pb2.AskResponse, None]:
        stub = service_pb2_grpc.RagGatewayServiceStub(self._platform.peers.channel("rag_gateway"))
        try:
            async for piece in stub.Ask(service_pb2.AskRequest(question=question)):
                yield piece
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, "Ask of rag_gateway") from error


async def _stream(
    response: web.StreamResponse,
    first: service_pb2.AskResponse,
    rest: AsyncIterator[service_pb2.AskResponse],
    created: int,
    *,
    usage: bool,
) -> None:
    """Send the pieces as chunks; the last one carries `headwater`."""
    name = f"chatcmpl-{first.answer_id}"
    await send(response, _chunk(name, created, {"role": "assistant", "content": ""}))
    try:
        piece: service_pb2.AskResponse | None = first
        while piece is not None:
            match piece.WhichOneof("piece"):
                case "text":
                    await send(response, _chunk(name, created, {"content": piece.text}))
                case "answer":
                    last = _chunk(name, created, {}, "stop")
                    await send(response, last | {"headwater": _extension(piece.answer)})
                    if usage:
                        await send(response, _chunk(name, created, None) | {"usage": _usage(piece.answer)})
                case _:  # the context comes with the answer's citations
                    pass
            piece = await anext(rest, None)
    except HeadwaterError as error:
        await send(response, body_of(error))
        return
    await response.write(b"data: [DONE]\n\n")


def _question(body: dict[str, Any], tenant: str) -> service_pb2.Question:
    """The question of a chat: its last message, by its user, after what was said before."""
    _check_model(body.get("model") or MODEL)
    for name in _NOT_OFFERED:
        if body.get(name):
            raise InvalidInputError(f"{name}: this model does not offer it; leave it out")
    if body.get("n") not in (None, 1):
        raise InvalidInputError("n: one answer is given to a question; leave it out")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInputError("messages: send a list of messages, the question last")
    said = [service_pb2.PromptMessage(role=_role(message), content=_content(message)) for message in messages]
    if said[-1].role != "user":
        raise InvalidInputError(f"messages: the last one is of the role {said[-1].role}; the question must be last")
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidInputError("metadata: send an object")
    user = body.get("user")
    if "as" not in metadata and isinstance(user, str) and identifier_of(user) is not None:
        metadata = {**metadata, "as": user}
    access = metadata.get("access", "")
    if isinstance(access, str):
        access = [label.strip() for label in access.split(",") if label.strip()]
    question = question_of({**_with_numbers(metadata), "access": access, "question": said[-1].content}, tenant)
    question.history.extend(said[:-1])
    return question


def _with_numbers(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with numbers where texts stand for them: OpenAI's clients send no other values than texts."""
    read = dict(metadata)
    for name, kind in _NUMBERS.items():
        if isinstance(text := read.get(name), str):
            try:
                read[name] = kind(text)
            except ValueError:
                number = "a whole number" if kind is int else "a number"
                raise InvalidInputError(f"metadata.{name}: {text!r:.60} is not {number}") from None
    return read


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if role == "developer":
        return "system"
    if role not in ("system", "user", "assistant"):
        raise InvalidInputError(f"messages: {role!r} is not a role; there are system, user and assistant")
    return str(role)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        words = [text for text in texts if isinstance(text, str)]
        if len(words) == len(content):
            return "\n".join(words)
    raise InvalidInputError("messages: content must be text, or a list of parts of the type text")


def _check_model(model: Any) -> None:
    if model != MODEL:
        raise NotFoundError(f"there is no model {model!r} here: ask for {MODEL!r} (GET /v1/models lists it)")


def _completion(answer: service_pb2.Answer, created: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": f"chatcmpl-{answer.answer_id}",
        "object": "chat.completion",
        "created": created,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(answer),
        "headwater": _extension(answer),
    }


def _chunk(name: str, created: int, delta: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": name,
        "object": "chat.completion.chunk",
        "created": created,
        "model": MODEL,
        "choices": choices,
    }


def _usage(answer: service_pb2.Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.answer_tokens,
        "total_tokens": answer.prompt_tokens + answer.answer_tokens,
    }


def _extension(answer: service_pb2.Answer) -> dict[str, Any]:
    document = as_json(answer)
    for name in ("text", "prompt_tokens", "answer_tokens"):
        document.pop(name, None)
    return document


_MODEL = {"id": MODEL, "object": "model", "created": 0, "owned_by": "headwater"}
