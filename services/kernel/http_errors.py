"""Errors as HTTP answers, in the shape that OpenAI's clients read; and streams of server-sent events."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiohttp import web

from services.kernel.errors import (
    DeadlineError,
    HeadwaterError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    StaleContextError,
    UnavailableError,
    VersionConflictError,
)

_STATUS: dict[type[HeadwaterError], int] = {
    InvalidInputError: 400,
    PermissionDeniedError: 403,
    NotFoundError: 404,
    VersionConflictError: 409,
    StaleContextError: 412,
    OverloadedError: 429,
    UnavailableError: 503,
    DeadlineError: 504,
}


def status_of(error: HeadwaterError) -> int:
    """The HTTP status of an error."""
    return _STATUS.get(type(error), 500)


def error_body(message: str, status: int, code: str, parameter: str | None = None) -> dict[str, Any]:
    """The document of an error: `{"error": {"message", "type", "param", "code"}}`."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def body_of(error: HeadwaterError) -> dict[str, Any]:
    """The document of an error; its code is the gRPC status, in small letters."""
    return error_body(str(error), status_of(error), error.status.name.lower())


def error_response(error: HeadwaterError) -> web.Response:
    """The answer to a request that failed."""
    return json_response(body_of(error), status_of(error))


def http_error_response(error: web.HTTPException, request: web.Request) -> web.Response:
    """The answer to a request that never reached a handler, or that one refused."""
    message = error.text or error.reason
    if error.status == 404:
        paths = sorted({resource.canonical for resource in request.app.router.resources()})
        message = f"there is nothing at {request.path}: there are {', '.join(paths)}"
    elif error.status == 405:
        message = f"{request.path} does not take {request.method}"
    elif error.status == 413:
        message = "the body is too large: at most 1 MiB is taken here"
    return json_response(error_body(message, error.status, error.reason.lower().replace(" ", "_")), error.status)


def json_response(document: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request; raises InvalidInputError when the body is none."""
    try:
        document = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"{request.path}: the body is not JSON ({error}): send one JSON object") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{request.path}: the body is not a JSON object")
    return document


@contextlib.asynccontextmanager
async def event_stream(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    """Answer with server-sent events for the length of a block, which ends early when the reader goes away."""
    response = web.StreamResponse(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        yield response


async def send(response: web.StreamResponse, document: Any, event: str = "") -> None:
    """Send one event."""
    name = f"event: {event}\n".encode() if event else b""
    await response.write(name + b"data: " + orjson.dumps(document) + b"\n\n")
