"""Ingest over HTTP, for applications that do not speak gRPC; mounted into the process's one HTTP server.

    POST   /v1/changes                native changes: JSON lines or a JSON array (?format= and ?source= as with gRPC)
    POST   /v1/documents              documents as JSON (`{"id": …, "text": …}`; lines or an array), with ?source=
    POST   /v1/documents?name=NAME    one document as it is, with ?source=, ?access= (repeated) and ?uri=
    DELETE /v1/documents/SOURCE/NAME  takes a document away

The answer comes when everything is in the log: `{"position_token": …, "read": …, "accepted": …, "skipped": …,
"dead_lettered": …, "errors": […]}`. Records that cannot be decoded go to dead_letters; the others are accepted.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import orjson

from headwater.ingest.v1 import events_pb2, service_pb2, service_pb2_grpc
from services.ingest.batching import Batch, LineCutter, array_batches
from services.ingest.client import CHUNK_BYTES, push_batches
from services.ingest.media_types import media_type
from services.kernel.errors import InvalidInputError, from_rpc
from services.kernel.http_server import tenant_of
from services.kernel.service import Platform
from services.kernel.settings import DOCUMENT_BYTES_MAX

if TYPE_CHECKING:
    from aiohttp import web

ARRAY_BYTES_MAX = 16 << 20
_ANY = ("application/octet-stream", "application/x-www-form-urlencoded")  # what clients say when nobody tells them


def add_routes(application: "web.Application", platform: Platform) -> None:
    """Mount the routes.

    Args:
        application: the process's HTTP application. Its middleware puts a request's tenant into `request[TENANT]`,
            and turns the errors that the handlers raise into answers.
        platform: where the ingest service is reached.
    """
    routes = _Routes(service_pb2_grpc.IngestServiceStub(platform.peers.channel("ingest")))
    application.router.add_post("/v1/changes", routes.changes)
    application.router.add_post("/v1/documents", routes.documents)
    application.router.add_delete("/v1/documents/{document_id:.+}", routes.delete)


def build_http(platform: Platform) -> "web.Application":
    """Return the HTTP application of a process in which ingest is alone."""
    from services.kernel.http_server import application_of

    application = application_of(platform, "ingest")
    add_routes(application, platform)
    return application


class _Routes:
    """The handlers; they raise HeadwaterErrors."""

    def __init__(self, stub: "service_pb2_grpc.IngestServiceAsyncStub") -> None:
        self._stub = stub

    async def changes(self, request: "web.Request") -> "web.Response":
        """Push changes."""
        return await self._push(request, request.query.get("format", "native"))

    async def documents(self, request: "web.Request") -> "web.Response":
        """Push documents as JSON, or put one as it is."""
        name = request.query.get("name", "")
        if not name:
            return await self._push(request, "documents")
        document = events_pb2.DocumentChange(
            tenant=tenant_of(request),
            source=request.query.get("source", "documents"),
            operation=events_pb2.DOCUMENT_OPERATION_PUT,
            content=await _whole(request, DOCUMENT_BYTES_MAX, "a document", "split it"),
            media_type=media_type(name) or ("" if request.content_type in _ANY else request.content_type),
            name=name,
            access=request.query.getall("access", []),
            uri=request.query.get("uri", ""),
        )
        return await self._put(document)

    async def delete(self, request: "web.Request") -> "web.Response":
        """Take a document away."""
        return await self._put(
            events_pb2.DocumentChange(
                tenant=tenant_of(request),
                document_id=request.match_info["document_id"],
                operation=events_pb2.DOCUMENT_OPERATION_DELETE,
            )
        )

    async def _push(self, request: "web.Request", format_: str) -> "web.Response":
        totals = await push_batches(
            self._stub,
            _records_of(request),
            source=request.query.get("source", ""),
            format_=format_,
            origin="http",
            tenant=tenant_of(request),
        )
        if not totals.read:
            raise InvalidInputError("the body is empty: send JSON lines, or a JSON array")
        return _json(totals._asdict())

    async def _put(self, document: events_pb2.DocumentChange) -> "web.Response":
        try:
            answer = await self._stub.PutDocument(service_pb2.PutDocumentRequest(document=document))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, "PutDocument") from error
        return _json({"position_token": answer.position_token, "document_id": answer.document_id})


def _json(document: dict[str, Any]) -> "web.Response":
    from aiohttp import web

    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def _records_of(request: "web.Request") -> AsyncIterator[Batch]:
    """The records of a body: lines as they arrive, or the elements of an array."""
    cutter, begun = LineCutter(), False
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        if not begun and chunk.lstrip()[:1] == b"[":
            body = await _whole(request, ARRAY_BYTES_MAX, "an array", "send JSON lines, which have no limit", chunk)
            for batch in array_batches(_array(body)):
                yield batch
            return
        begun = begun or not chunk.isspace()
        for batch in cutter.feed(chunk):
            yield batch
    for batch in cutter.end():
        yield batch


async def _whole(request: "web.Request", bytes_max: int, what: str, cure: str, begun: bytes = b"") -> bytes:
    """The whole body, of which `begun` has been read already; it is told what it is when it is too long."""
    body = bytearray(begun)
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        body += chunk
        if len(body) > bytes_max:
            raise InvalidInputError(f"the body is {what} of more than {bytes_max:,} bytes: {cure}")
    return bytes(body)


def _array(body: bytes) -> list[Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"the body is not a JSON array ({error}): or send one JSON object a line") from error
    return value if type(value) is list else [value]
