"""The page's own endpoints, JSON in and out: everything on it comes from the services' contracts and the log."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from aiohttp import web

from headwater.common.v1 import common_pb2, operations_pb2, operations_pb2_grpc
from headwater.embedder.v1 import service_pb2 as embedder_pb2, service_pb2_grpc as embedder_grpc
from headwater.feedback.v1 import service_pb2 as feedback_pb2, service_pb2_grpc as feedback_grpc
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.profile.v1 import service_pb2 as profile_pb2, service_pb2_grpc as profile_grpc
from headwater.rag_gateway.v1 import service_pb2, service_pb2_grpc
from services.kernel.errors import HeadwaterError, InvalidInputError, from_rpc
from services.kernel.http_errors import body_of, event_stream, json_body, json_response, send
from services.kernel.http_server import tenant_of
from services.kernel.service import Platform
from services.rag_gateway.http_json import as_json, identifier_of, question_of
from services.rag_gateway.live_events import LiveEvents

CALL_TIMEOUT_S = 5.0
_KPIS_MAX = 500


class PageRoutes:
    """The handlers."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._events = LiveEvents(platform.log)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Mount the routes."""
        router.add_post("/api/ask", self.ask)
        router.add_get("/api/profile", self.profile)
        router.add_get("/api/document", self.document)
        router.add_get("/api/conversation", self.conversation)
        router.add_get("/api/events", self.events)
        router.add_get("/api/kpis", self.kpis)
        router.add_post("/api/rate", self.rate)
        router.add_get("/api/status", self.status)

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Answer a question as server-sent events: `context`, `text` (many), then `answer`, or `error`."""
        question = question_of(await json_body(request), tenant_of(request))
        stub = service_pb2_grpc.RagGatewayServiceStub(self._platform.peers.channel("rag_gateway"))
        call = stub.Ask(service_pb2.AskRequest(question=question))
        first = await call.read()  # a refusal comes here, while it can have a status of its own
        async with event_stream(request) as response:
            try:
                piece: Any = first
                while piece is not grpc.aio.EOF:
                    await _send_piece(response, piece)
                    piece = await call.read()
            except grpc.aio.AioRpcError as error:
                await send(response, body_of(from_rpc(error, "Ask of rag_gateway")), "error")
        call.cancel()  # the reader has gone, or all is read
        return response

    async def profile(self, request: web.Request) -> web.Response:
        """The profile of `?as=kind:value`: every field with where it is from."""
        identifier = identifier_of(request.query.get("as", ""))
        if identifier is None:
            raise InvalidInputError("/api/profile: name the person, for example ?as=email:ada@example.com")
        stub = profile_grpc.ProfileServiceStub(self._platform.peers.channel("profile"))
        response = await stub.GetProfile(
            profile_pb2.GetProfileRequest(tenant=tenant_of(request), identifier=identifier), timeout=CALL_TIMEOUT_S
        )
        return json_response(as_json(response))

    async def document(self, request: web.Request) -> web.Response:
        """The text of `?id=`, in the version `?version=` where it is given: for opening a citation."""
        stub = embedder_grpc.EmbedderServiceStub(self._platform.peers.channel("embedder"))
        response = await stub.GetDocument(
            embedder_pb2.GetDocumentRequest(
                tenant=tenant_of(request),
                document_id=request.query.get("id", ""),
                version=request.query.get("version", ""),
                access=request.query.getall("access", []),
            ),
            timeout=CALL_TIMEOUT_S,
        )
        return json_response(as_json(response))

    async def conversation(self, request: web.Request) -> web.Response:
        """The turns of `?id=`, oldest first."""
        stub = service_pb2_grpc.RagGatewayServiceStub(self._platform.peers.channel("rag_gateway"))
        response = await stub.GetConversation(
            service_pb2.GetConversationRequest(tenant=tenant_of(request), conversation_id=request.query.get("id", "")),
            timeout=CALL_TIMEOUT_S,
        )
        return json_response(as_json(response))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happens, as server-sent events, from a little before now on."""
        async with (
            event_stream(request) as response,
            contextlib.aclosing(self._events.follow(tenant_of(request))) as news,
        ):
            async for new in news:
                await send(response, new)
        return response

    async def kpis(self, request: web.Request) -> web.Response:
        """The KPIs of the newest windows."""
        stub = feedback_grpc.FeedbackServiceStub(self._platform.peers.channel("feedback"))
        response = await stub.GetKpis(
            feedback_pb2.GetKpisRequest(
                tenant=tenant_of(request), window=request.query.get("window", ""), limit=_KPIS_MAX
            ),
            timeout=CALL_TIMEOUT_S,
        )
        return json_response(as_json(response))

    async def rate(self, request: web.Request) -> web.Response:
        """Rate an answer: `{"answer_id": ..., "up": true}`, or `"scale": 1..5`, with optional `"text"`."""
        body = await json_body(request)
        stub = feedback_grpc.FeedbackServiceStub(self._platform.peers.channel("feedback"))
        response = await stub.Rate(_rating(body, tenant_of(request)), timeout=CALL_TIMEOUT_S)
        return json_response(as_json(response))

    async def status(self, request: web.Request) -> web.Response:
        """What each store is current to, and what the processors have read; what cannot be had is named."""
        tenant = tenant_of(request)
        missing: list[str] = []

        async def told(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                missing.append(f"{name}: {from_rpc(error, name)}")
            except HeadwaterError as error:
                missing.append(f"{name}: {error}")
            return None

        found = await asyncio.gather(
            told("profile", lambda: self._profile_freshness(tenant)),
            told("knowledge", lambda: self._knowledge_freshness(tenant)),
            told("identity", lambda: self._identity_freshness(tenant)),
        )
        balance = await told("balance", self._balance)
        return json_response(
            {
                "now_ms": int(self._platform.clock() * 1000),
                "freshness": [as_json(freshness) for freshness in found if freshness is not None],
                "balance": as_json(balance) if balance is not None else None,
                "missing": missing,
            }
        )

    async def _profile_freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        stub = profile_grpc.ProfileServiceStub(self._platform.peers.channel("profile"))
        return (
            await stub.GetFreshness(profile_pb2.GetFreshnessRequest(tenant=tenant), timeout=CALL_TIMEOUT_S)
        ).freshness

    async def _knowledge_freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        stub = embedder_grpc.EmbedderServiceStub(self._platform.peers.channel("embedder"))
        request = embedder_pb2.GetFreshnessRequest(tenant=tenant)
        return (await stub.GetFreshness(request, timeout=CALL_TIMEOUT_S)).freshness

    async def _identity_freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        stub = identity_grpc.IdentityGraphServiceStub(self._platform.peers.channel("identity_graph"))
        request = identity_pb2.GetFreshnessRequest(tenant=tenant)
        return (await stub.GetFreshness(request, timeout=CALL_TIMEOUT_S)).freshness

    async def _balance(self) -> operations_pb2.GetBalanceResponse:
        stub = operations_pb2_grpc.OperationsServiceStub(self._platform.peers.channel("rag_gateway"))
        return await stub.GetBalance(operations_pb2.GetBalanceRequest(), timeout=CALL_TIMEOUT_S)


async def _send_piece(response: web.StreamResponse, piece: service_pb2.AskResponse) -> None:
    match piece.WhichOneof("piece"):
        case "context":
            await send(response, as_json(piece.context), "context")
        case "text":
            await send(response, {"text": piece.text}, "text")
        case "answer":
            await send(response, as_json(piece.answer), "answer")
        case _:  # a piece of a newer server
            pass


def _rating(body: dict[str, Any], tenant: str) -> feedback_pb2.RateRequest:
    request = feedback_pb2.RateRequest()
    rating = request.rating
    rating.tenant = tenant
    for name in ("answer_id", "conversation_id", "text"):
        value = body.get(name) or ""
        if not isinstance(value, str):
            raise InvalidInputError(f"/api/rate: {name} must be text")
        setattr(rating, name, value)
    up, scale = body.get("up"), body.get("scale")
    if isinstance(up, bool):
        rating.up = up
    elif isinstance(scale, int) and not isinstance(scale, bool) and 1 <= scale <= 5:
        rating.scale = scale
    elif up is not None or scale is not None or not rating.text:
        raise InvalidInputError('/api/rate: send "up": true or false, "scale": 1 to 5, or a "text"')
    return request
