"""The calls to the other services: each with its own deadline, and each failure told instead of raised."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import grpc

from headwater.common.v1 import common_pb2
from headwater.embedder.v1 import service_pb2 as embedder_pb2, service_pb2_grpc as embedder_grpc
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.profile.v1 import events_pb2 as profile_events_pb2, service_pb2 as profile_pb2, service_pb2_grpc
from headwater.rag_gateway.v1 import service_pb2
from services.kernel import topics
from services.kernel.errors import HeadwaterError, StaleContextError, from_rpc
from services.kernel.log import decode_token
from services.kernel.service import Peers
from services.rag_gateway.settings import Settings

T = TypeVar("T")
_RELATED_TIMEOUT_S = 0.5
_DOCUMENT_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Gathered:
    """What the peers had.

    Attributes:
        hits: what the knowledge base found, best first.
        profile: the profile of the person who asks; None when nobody is named or it could not be had.
        freshness: what each store is current to.
        missing: what could not be had, and why.
    """

    hits: list[embedder_pb2.Hit] = field(default_factory=list)
    profile: profile_events_pb2.Profile | None = None
    freshness: list[common_pb2.StoreFreshness] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class PeerCalls:
    """Asks profile, embedder and identity_graph."""

    def __init__(self, peers: Peers, settings: Settings) -> None:
        self._peers, self._settings = peers, settings

    # Addresses are known once the process listens, which is after the services are built: hence at the first use.
    @cached_property
    def _profile(self) -> "service_pb2_grpc.ProfileServiceAsyncStub":
        return service_pb2_grpc.ProfileServiceStub(self._peers.channel("profile"))

    @cached_property
    def _embedder(self) -> "embedder_grpc.EmbedderServiceAsyncStub":
        return embedder_grpc.EmbedderServiceStub(self._peers.channel("embedder"))

    @cached_property
    def _identity(self) -> "identity_grpc.IdentityGraphServiceAsyncStub":
        return identity_grpc.IdentityGraphServiceStub(self._peers.channel("identity_graph"))

    async def gather(self, question: service_pb2.Question, looked_up: str) -> Gathered:
        """Ask everybody at once; whoever fails is named in `missing`.

        Args:
            question: the question.
            looked_up: its text as it is searched for.
        """
        gathered = Gathered()
        results = await asyncio.gather(
            self._told(self._find_profile(question, gathered), "profile", gathered),
            self._told(self._search(question, looked_up, gathered), "knowledge", gathered),
            self._told(self._identity_freshness(question, gathered), "identity freshness", gathered),
        )
        gathered.freshness = [freshness for freshness in results if freshness is not None]
        return gathered

    async def _told(self, call: Awaitable[T], what: str, gathered: Gathered) -> T | None:
        """The result of a call; None when it failed, which is told."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            gathered.missing.append(f"{what}: {from_rpc(error, what)}")
        except HeadwaterError as error:
            gathered.missing.append(f"{what}: {error}")
        return None

    async def _find_profile(self, question: service_pb2.Question, gathered: Gathered) -> common_pb2.StoreFreshness:
        timeout_s = self._settings.profile_timeout_s
        asker = asker_of(question)
        if not asker.kind:
            only = profile_pb2.GetFreshnessRequest(tenant=question.tenant)
            return (await self._profile.GetFreshness(only, timeout=timeout_s)).freshness
        request = profile_pb2.GetProfileRequest(
            tenant=question.tenant, identifier=asker, purpose=self._settings.purpose
        )
        response = await self._profile.GetProfile(request, timeout=timeout_s)
        gathered.profile = response.profile
        if response.withheld:
            gathered.missing.append(f"profile fields that are not for this purpose: {', '.join(response.withheld)}")
        return response.freshness

    async def _search(
        self, question: service_pb2.Question, looked_up: str, gathered: Gathered
    ) -> common_pb2.StoreFreshness:
        request = embedder_pb2.SearchRequest(
            tenant=question.tenant,
            query=looked_up,
            top_k=question.top_k or self._settings.top_k,
            access=question.access,
        )
        response = await self._embedder.Search(request, timeout=self._settings.search_timeout_s)
        gathered.hits.extend(response.hits)
        gathered.missing.extend(f"knowledge: {missing}" for missing in response.missing)
        return response.freshness

    async def _identity_freshness(self, question: service_pb2.Question, _: Gathered) -> common_pb2.StoreFreshness:
        request = identity_pb2.GetFreshnessRequest(tenant=question.tenant)
        response = await self._identity.GetFreshness(request, timeout=self._settings.profile_timeout_s)
        return response.freshness

    async def related(self, question: service_pb2.Question, keys: Sequence[str]) -> list[embedder_pb2.Hit]:
        """The rows that the asker's own rows refer to by key, where the knowledge base has them; none when it fails."""
        request = embedder_pb2.GetRowsRequest(tenant=question.tenant, keys=keys, access=question.access)
        try:
            response = await self._embedder.GetRows(request, timeout=_RELATED_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return []  # the search has told already that the knowledge base fails; this only adds to it
        return list(response.hits)

    async def document(self, question: service_pb2.Question, document_id: str, version: str) -> str | None:
        """The whole text of a version of a document; None when it is not current any more, or not for this reader.

        Raises:
            HeadwaterError: it cannot be told.
        """
        request = embedder_pb2.GetDocumentRequest(
            tenant=question.tenant, document_id=document_id, version=version, access=question.access
        )
        try:
            response = await self._embedder.GetDocument(request, timeout=_DOCUMENT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                return None
            raise from_rpc(error, "GetDocument of embedder") from error
        return response.text if response.version == version else None

    async def await_position(self, token: str, timeout_s: float) -> None:
        """Wait until everything that an answer is made from has seen a position.

        Raises:
            StaleContextError: it was not reached in time.
            InvalidInputError: it is not a position token.
        """
        position = decode_token(token)
        changes = _part(position, topics.CHANGES)
        knowledge = _part(position, topics.CHANGES, topics.DOCUMENTS)
        waits: list[Awaitable[object]] = []
        if changes.offsets:
            waits.append(self._await_profile(changes, timeout_s))
        if knowledge.offsets:
            request = embedder_pb2.AwaitPositionRequest(position=knowledge)
            waits.append(
                self._reached(self._embedder.AwaitPosition(request, timeout=timeout_s), "knowledge", timeout_s)
            )
        await asyncio.gather(*waits)

    async def _await_profile(self, changes: common_pb2.Position, timeout_s: float) -> None:
        """Identity resolution first: what it answers with is what the profile store must have seen as well."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        request = identity_pb2.AwaitPositionRequest(position=changes)
        assigned = await self._reached(self._identity.AwaitPosition(request, timeout=timeout_s), "identity", timeout_s)
        wanted = common_pb2.Position(offsets=[*changes.offsets, *assigned.outputs.offsets])
        left_s = max(0.001, deadline - asyncio.get_running_loop().time())
        await self._reached(
            self._profile.AwaitPosition(profile_pb2.AwaitPositionRequest(position=wanted), timeout=left_s),
            "profile",
            timeout_s,
        )

    async def _reached(self, call: Awaitable[T], store: str, timeout_s: float) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise StaleContextError(
                f"the {store} store has not reached the demanded position within {timeout_s:g} s "
                f"({from_rpc(error, store)}): ask again, wait longer with at_least_timeout, or see `headwater balance`"
            ) from error


def asker_of(question: service_pb2.Question) -> common_pb2.Identifier:
    """Who asks; the field's name is a word of Python."""
    asker: common_pb2.Identifier = getattr(question, "as")
    return asker


def _part(position: common_pb2.Position, *names: str) -> common_pb2.Position:
    return common_pb2.Position(offsets=[place for place in position.offsets if place.topic in names])
