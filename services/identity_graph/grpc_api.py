"""IdentityGraphService: requests in, queries of the graph and the log out."""

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from headwater.common.v1 import common_pb2, events_pb2
from headwater.identity_graph.v1 import service_pb2 as pb, service_pb2_grpc
from services.identity_graph import consumer, erasure
from services.identity_graph.assignments import identifier as identifier_of
from services.identity_graph.columns import JUNK, Extractor
from services.identity_graph.explain import Side, notes, path
from services.identity_graph.model import Kinds, split_key
from services.identity_graph.ports import Found, IdentityStores
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.errors import DeadlineError, InvalidInputError, NotFoundError, StaleContextError
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Log, encode_token, message_of, position_of

RECORDS_LISTED = 1_000  # of one person, in the answer to Resolve
WAIT_S = 30.0  # where the caller sets no deadline
CATCH_UP_S = 20.0
OUT_OF_REACH = (
    "the source systems themselves: a row that is still there comes back when it changes",
    "what other systems have read from Headwater before: consumers of its topics, prompts sent to a model provider",
    "copies of the installation's data that somebody else made: backups, snapshots of disks",
    "values that a record of somebody else held before: they stay in the log until it is compacted",
)

Context = grpc.aio.ServicerContext[Any, Any]


class IdentityGraphApi(service_pb2_grpc.IdentityGraphServiceServicer):
    """Answers from the identity graph."""

    def __init__(self, stores: IdentityStores, log: Log, settings: Settings, clock: Callable[[], float]) -> None:
        self._queries, self._erasures, self._freshness = stores.queries, stores.erasures, stores.freshness
        self._log, self._settings, self._clock = log, settings, clock
        self._kinds, self._extractor = Kinds(settings), Extractor(settings)

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        service_pb2_grpc.add_IdentityGraphServiceServicer_to_server(self, server)

    # Who is who -------------------------------------------------------------------------------------------------

    async def Resolve(self, request: pb.ResolveRequest, context: Context) -> pb.ResolveResponse:
        """Find the profile of an identifier."""
        del context
        found = await self._find(request.tenant or DEFAULT_TENANT, request.identifier)
        subject = await self._queries.subject(found, RECORDS_LISTED)
        return pb.ResolveResponse(
            profile_id=found.profile_id, aliases=sorted(set(subject.births) - {found.profile_id}),
            records=subject.records, identifiers=map(identifier_of, subject.links), suspect=found.suspect,
        )  # fmt: skip

    async def _find(self, tenant: str, identifier: common_pb2.Identifier) -> Found:
        kind, value = identifier.kind, identifier.value
        if not kind or not value:
            raise InvalidInputError("name a person by kind:value, for example email:ada@example.com")
        if kind == "record":
            found = await self._queries.by_record(tenant, value)
        elif kind == "profile":
            found = await self._queries.by_profile(tenant, value)
        elif kind in self._kinds.rank:
            found = await self._find_by_value(tenant, kind, value)
        else:
            known = ", ".join(["record", "profile", *self._kinds.rank])
            raise InvalidInputError(f"{kind} is no kind of identifier that names a person; there are {known}")
        if found is None:
            raise NotFoundError(f"nobody is known by {kind}:{value}: look at `headwater identity clusters`")
        return found

    async def _find_by_value(self, tenant: str, kind: str, value: str) -> Found | None:
        known = self._extractor.normalise(kind, value)
        if known is None:
            raise InvalidInputError(f"{value!r} is no {kind}")
        if known[0].startswith(JUNK):
            raise NotFoundError(f"{kind}:{value} names nobody: it is known to say nothing about a person")
        link = SEPARATOR.join((tenant, *known))
        if crowd := (await self._queries.crowds([link])).get(link):
            raise NotFoundError(
                f"{kind}:{value} names nobody: it is quarantined, for {crowd.rows} records hold it, {crowd.records} of "
                "them different; name the person by another identifier"
            )
        return await self._queries.by_link(link)

    async def ListAssignments(
        self, request: pb.ListAssignmentsRequest, context: Context
    ) -> AsyncIterator[pb.ListAssignmentsResponse]:
        """Stream every record with its profile, in the order of records."""
        del context
        async for page in self._queries.assignments(request.tenant or DEFAULT_TENANT):
            for record, profile_id in page:
                yield pb.ListAssignmentsResponse(record=record, profile_id=profile_id)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """Tell why two records are, or are not, the same person."""
        del context
        tenant = request.tenant or DEFAULT_TENANT
        found = [await self._find(tenant, identifier) for identifier in (request.left, request.right)]
        component = await self._queries.evidence({one.node_id for one in found})
        by_id = {node.id: node for node in component}
        left, right = (Side(by_id[one.node_id], one.record, one.profile_id) for one in found)
        same = left.profile == right.profile
        muted = {link for node in component for link in node.muted}
        response = pb.ExplainResponse(
            same=same, left_profile_id=left.profile, right_profile_id=right.profile,
            notes=notes(left, right, component, self._kinds, dict(await self._queries.crowds(muted))),
        )  # fmt: skip
        if same:
            for step in path(left, right, [node for node in component if node.profile == left.profile]):
                response.path.add(record=step.record, identifier=identifier_of(step.link), next_record=step.next_record)
        return response

    # Erasure ----------------------------------------------------------------------------------------------------

    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        """Ask every service to remove a person, with all records that are theirs or were when they went."""
        tenant = request.tenant or DEFAULT_TENANT
        ends = {(topics.CHANGES, partition): end for partition, end in enumerate(await self._log.end(topics.CHANGES))}
        timeout_s = min(CATCH_UP_S, _time_left(context))
        if not await self._log.wait_committed([consumer.GROUP], position_of(ends), timeout_s):
            raise StaleContextError(
                "identity_graph has not caught up with the log, so that records of the person may be missed: try again"
            )
        found = await self._find(tenant, request.identifier)
        subject = await self._queries.subject(found)
        buried = await self._queries.buried(subject.links)
        now_ms = int(self._clock() * 1000)
        own = found.profile_id
        event = events_pb2.ErasureRequested(
            erasure_id=f"e_{secrets.token_hex(8)}", tenant=tenant, reason=request.reason,
            profile_ids=[own, *sorted({*subject.births, *(row[1] for row in buried)} - {own})],
            records=[*subject.records, *(split_key(row[0])[1] for row in buried)],
            positions=[*subject.positions, *(row[2] for row in buried)],
            before=position_of(await self._log.positions_of(consumer.GROUP, [topics.CHANGES])),
        )  # fmt: skip
        event.requested_at.FromMilliseconds(now_ms)
        await self._log.append([message_of(topics.ERASURES, event.erasure_id.encode(), event, now_ms)])
        return pb.EraseResponse(erasure_id=event.erasure_id, profile_id=own, records=len(event.records))

    async def GetErasure(self, request: pb.GetErasureRequest, context: Context) -> pb.GetErasureResponse:
        """Tell which services have acknowledged an erasure."""
        state = await self._erasures.state(request.erasure_id)
        if state is None:  # perhaps it was asked for just now
            ends = {(topics.ERASURES, place): end for place, end in enumerate(await self._log.end(topics.ERASURES))}
            await self._log.wait_committed([erasure.GROUP], position_of(ends), min(CATCH_UP_S, _time_left(context)))
            state = await self._erasures.state(request.erasure_id)
        if state is None:
            raise NotFoundError(f"there is no erasure {request.erasure_id}: `Erase` gives its id")
        answered = {answer.service for answer in state.answers}
        response = pb.GetErasureResponse(
            erasure_id=request.erasure_id, acknowledgements=state.answers, out_of_reach=OUT_OF_REACH,
            waiting_for=[name for name in self._settings.erasure_services if name not in answered],
        )  # fmt: skip
        response.requested_at.FromMilliseconds(state.requested_ms)
        return response

    # Freshness --------------------------------------------------------------------------------------------------

    async def AwaitPosition(self, request: pb.AwaitPositionRequest, context: Context) -> pb.AwaitPositionResponse:
        """Wait until a log position has been taken into account, and tell where the assignments stand then."""
        if not await self._log.wait_committed([consumer.GROUP], request.position, _time_left(context)):
            reached = position_of(await self._log.positions_of(consumer.GROUP, [topics.CHANGES]))
            raise DeadlineError(f"identity_graph has not reached the position; it is at {encode_token(reached)}")
        ends = await self._log.end(topics.ASSIGNMENTS)
        return pb.AwaitPositionResponse(
            outputs=position_of({(topics.ASSIGNMENTS, partition): end for partition, end in enumerate(ends)})
        )

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Context) -> pb.GetFreshnessResponse:
        """Tell what the graph is current to."""
        del context
        report = await self._freshness.report(request.tenant, self._log, {consumer.GROUP: (topics.CHANGES,)})
        return pb.GetFreshnessResponse(freshness=report)


def _time_left(context: Context) -> float:
    """Return how long the caller waits, less what it takes to answer."""
    left = context.time_remaining()
    return WAIT_S if left is None else max(0.0, left - 0.05)
