"""Small real gRPC services in the place of the gateway's peers, for what the real ones cannot be made to do: fail at
will, be slow, change a document between its search and the check of a citation."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from headwater.common.v1 import common_pb2
from headwater.embedder.v1 import service_pb2 as embedder_pb2, service_pb2_grpc as embedder_grpc
from headwater.feedback.v1 import service_pb2 as feedback_pb2, service_pb2_grpc as feedback_grpc
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.profile.v1 import (
    events_pb2 as profile_events_pb2,
    service_pb2 as profile_pb2,
    service_pb2_grpc as profile_grpc,
)
from services.kernel.errors import DeadlineError, HeadwaterError, NotFoundError
from services.kernel.runner import Build
from services.kernel.service import Platform, Service
from services.rag_gateway.words import terms


@dataclass
class Document:
    id: str
    text: str
    title: str = ""
    version: str = "v1"
    live: str = ""
    access: tuple[str, ...] = ()


@dataclass
class World:
    """What the doubles hold, and how they misbehave."""

    documents: dict[str, Document] = field(default_factory=dict)
    profiles: dict[str, profile_events_pb2.Profile] = field(default_factory=dict)
    failing: dict[str, HeadwaterError] = field(default_factory=dict)  # RPC -> error
    slow: dict[str, float] = field(default_factory=dict)  # RPC -> seconds
    unreached: bool = False
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ratings: list[Any] = field(default_factory=list)

    def add(self, *documents: Document) -> None:
        self.documents.update({document.id: document for document in documents})

    async def called(self, name: str, request: Any) -> None:
        self.calls.append((name, request))
        await asyncio.sleep(self.slow.get(name, 0.0))
        if name in self.failing:
            raise self.failing[name]

    @property
    def builds(self) -> list[Build]:
        # The calls that the gateway does not make answer UNIMPLEMENTED, as an older server's would.
        doubles: dict[str, Callable[[grpc.aio.Server], None]] = {
            "profile": lambda s: profile_grpc.add_ProfileServiceServicer_to_server(_Profile(self), s),  # type: ignore[abstract]
            "embedder": lambda s: embedder_grpc.add_EmbedderServiceServicer_to_server(_Embedder(self), s),  # type: ignore[abstract]
            "identity_graph": lambda s: identity_grpc.add_IdentityGraphServiceServicer_to_server(_Identity(self), s),  # type: ignore[abstract]
            "feedback": lambda s: feedback_grpc.add_FeedbackServiceServicer_to_server(_Feedback(self), s),  # type: ignore[abstract]
        }
        return [_builds(Service(name, register, [], erases=False)) for name, register in doubles.items()]


def _builds(service: Service) -> Build:
    def build(platform: Platform) -> Service:
        del platform
        return service

    return build


def freshness(store: str) -> common_pb2.StoreFreshness:
    report = common_pb2.StoreFreshness(store=store, behind=0)
    report.sources.add(source="crm").as_of.GetCurrentTime()
    return report


class _Profile(profile_grpc.ProfileServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def GetProfile(self, request: Any, context: Any) -> profile_pb2.GetProfileResponse:  # noqa: N802
        await self.world.called("GetProfile", request)
        name = f"{request.identifier.kind}:{request.identifier.value}"
        if name not in self.world.profiles:
            raise NotFoundError(f"there is no profile for {name}")
        return profile_pb2.GetProfileResponse(profile=self.world.profiles[name], freshness=freshness("profile"))

    async def GetFreshness(self, request: Any, context: Any) -> profile_pb2.GetFreshnessResponse:  # noqa: N802
        await self.world.called("profile.GetFreshness", request)
        return profile_pb2.GetFreshnessResponse(freshness=freshness("profile"))

    async def AwaitPosition(self, request: Any, context: Any) -> profile_pb2.AwaitPositionResponse:  # noqa: N802
        await self.world.called("profile.AwaitPosition", request)
        return profile_pb2.AwaitPositionResponse(outputs=request.position)


class _Identity(identity_grpc.IdentityGraphServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def GetFreshness(self, request: Any, context: Any) -> identity_pb2.GetFreshnessResponse:  # noqa: N802
        await self.world.called("identity.GetFreshness", request)
        return identity_pb2.GetFreshnessResponse(freshness=freshness("identity"))

    async def AwaitPosition(self, request: Any, context: Any) -> identity_pb2.AwaitPositionResponse:  # noqa: N802
        await self.world.called("identity.AwaitPosition", request)
        if self.world.unreached:
            raise DeadlineError("identity has not reached the position")
        outputs = common_pb2.Position(
            offsets=[common_pb2.TopicOffset(topic="identity.assignments", partition=0, offset=7)]
        )
        return identity_pb2.AwaitPositionResponse(outputs=outputs)


class _Embedder(embedder_grpc.EmbedderServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def Search(self, request: Any, context: Any) -> embedder_pb2.SearchResponse:  # noqa: N802
        await self.world.called("Search", request)
        return embedder_pb2.SearchResponse(
            hits=found(request.query, list(self.world.documents.values()), request.top_k or 10, request.access),
            freshness=freshness("knowledge"),
        )

    async def GetRows(self, request: Any, context: Any) -> embedder_pb2.GetRowsResponse:  # noqa: N802
        rows = [document for document in self.world.documents.values() if document.id.split("/")[-1] in request.keys]
        return embedder_pb2.GetRowsResponse(hits=[hit_of(document, 0.0) for document in rows])

    async def GetDocument(self, request: Any, context: Any) -> embedder_pb2.GetDocumentResponse:  # noqa: N802
        await self.world.called("GetDocument", request)
        document = self.world.documents.get(request.document_id)
        if document is None or request.version not in ("", document.version):
            raise NotFoundError(f"there is no {request.document_id} in version {request.version}")
        return embedder_pb2.GetDocumentResponse(
            document_id=document.id, version=document.version, title=document.title, text=document.text
        )

    async def GetFreshness(self, request: Any, context: Any) -> embedder_pb2.GetFreshnessResponse:  # noqa: N802
        return embedder_pb2.GetFreshnessResponse(freshness=freshness("knowledge"))

    async def AwaitPosition(self, request: Any, context: Any) -> embedder_pb2.AwaitPositionResponse:  # noqa: N802
        await self.world.called("embedder.AwaitPosition", request)
        return embedder_pb2.AwaitPositionResponse()


class _Feedback(feedback_grpc.FeedbackServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def Rate(self, request: Any, context: Any) -> feedback_pb2.RateResponse:  # noqa: N802
        self.world.ratings.append(request.rating)
        return feedback_pb2.RateResponse(position_token="token")

    async def GetKpis(self, request: Any, context: Any) -> feedback_pb2.GetKpisResponse:  # noqa: N802
        return feedback_pb2.GetKpisResponse()


def found(query: str, documents: Sequence[Document], top_k: int, access: Sequence[str] = ()) -> list[embedder_pb2.Hit]:
    """Documents that share words with the query, the most first."""
    asked = set(terms(query))
    scored = []
    for document in documents:
        if document.access and not set(document.access) & set(access):
            continue
        shared = len(asked & set(terms(f"{document.title} {document.text} {document.id.replace('/', ' ')}")))
        if shared:
            scored.append((shared / max(1, len(asked)), document))
    scored.sort(key=lambda pair: (-pair[0], pair[1].id))
    return [hit_of(document, score) for score, document in scored[:top_k]]


def hit_of(document: Document, score: float) -> embedder_pb2.Hit:
    return embedder_pb2.Hit(
        document_id=document.id, version=document.version, ordinal=0, text=document.text, start=0,
        end=len(document.text), score=score, title=document.title, live_json=document.live,
    )  # fmt: skip
