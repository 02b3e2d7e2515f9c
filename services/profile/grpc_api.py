"""ProfileService: requests in, queries of the stores and the log out."""

import re
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import structlog

from headwater.common.v1 import common_pb2
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.profile.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from services.kernel import topics
from services.kernel.errors import DeadlineError, InvalidInputError, NotFoundError, from_rpc
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Log, Record, encode_token, position_of
from services.kernel.service import Peers
from services.profile.policy import Policy
from services.profile.ports import FOLD_GROUP, ROWS_GROUP, ProfileStores

# Identity resolution owns identifiers, but a profile can be read without it: it is not waited for long.
RESOLVE_TIMEOUT_S = 0.5
AWAIT_TIMEOUT_S = 30.0
WATCH_IDLE_S = 3600.0
_WITHOUT_IDENTITY = {
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger(__name__)


class Resolved(NamedTuple):
    """What identity resolution finds for an identifier: the profile, its former ids, and whether it is suspected."""

    profile_id: str
    aliases: tuple[str, ...]
    suspect: bool


class ProfileApi(service_pb2_grpc.ProfileServiceServicer):
    """Answers from the profile stores."""

    def __init__(self, stores: ProfileStores, policy: Policy, log_: Log, peers: Peers) -> None:
        self._stores, self._policy, self._log, self._peers = stores, policy, log_, peers

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        service_pb2_grpc.add_ProfileServiceServicer_to_server(self, server)

    # GetProfile -------------------------------------------------------------------------------------------------

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.GetProfileResponse:
        """Find a profile by any identifier."""
        del context
        tenant, identifier = request.tenant or DEFAULT_TENANT, request.identifier
        if not identifier.kind or not identifier.value:
            raise InvalidInputError(
                "GetProfile: name a person by a kind and a value, such as email and ada@example.com"
            )
        resolved = await self._resolve(tenant, identifier)
        freshness = await self._stores.freshness(
            tenant
        )  # first: a commit in between must not make the document look newer
        profile = await self._find(tenant, identifier, resolved)
        if resolved is not None:
            profile.aliases.extend(resolved.aliases)
            profile.suspect = profile.suspect or resolved.suspect
        view = self._policy.view(profile, request.purpose)
        return pb.GetProfileResponse(profile=view.profile, withheld=view.withheld, freshness=freshness)

    async def _resolve(self, tenant: str, identifier: common_pb2.Identifier) -> Resolved | None:
        """Ask identity resolution, which owns identifiers; None when it cannot be asked."""
        stub = identity_grpc.IdentityGraphServiceStub(self._peers.channel("identity_graph"))
        request = identity_pb2.ResolveRequest(tenant=tenant, identifier=identifier)
        try:
            found = await stub.Resolve(request, timeout=RESOLVE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _WITHOUT_IDENTITY:
                log.debug("profile.without_identity", code=error.code().name)
                return None
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise _not_found(tenant, identifier) from error
            raise from_rpc(error, "Resolve of identity_graph") from error
        return Resolved(found.profile_id, tuple(found.aliases), found.suspect)

    async def _find(
        self, tenant: str, identifier: common_pb2.Identifier, resolved: Resolved | None
    ) -> events_pb2.Profile:
        """Return the document of the profile that was resolved, or else that the service's own look-up finds."""
        # After a split, the own look-up may still lead to the document of both: what was resolved is final.
        ids = [resolved.profile_id] if resolved is not None else await self._look_up(tenant, identifier)
        if len(ids) > 1:
            raise NotFoundError(
                f"{identifier.kind}:{identifier.value} is on {len(ids)} profiles ({', '.join(ids[:5])}), and "
                "identity_graph, which tells whose it is, does not answer: ask for one as profile:ID, or try again"
            )
        stored = await self._stores.reader.document(tenant, ids[0]) if ids else None
        if stored is None:
            raise _not_found(tenant, identifier)
        return stored.profile()

    async def _look_up(self, tenant: str, identifier: common_pb2.Identifier) -> list[str]:
        match identifier.kind:
            case "profile":
                return [identifier.value]
            case "record":
                profile_id = await self._stores.reader.profile_of_record(tenant, identifier.value)
                return [] if profile_id is None else [profile_id]
            case kind:
                return await self._stores.reader.profiles_of(tenant, kind, spellings(identifier.value))

    # WatchProfiles ----------------------------------------------------------------------------------------------

    async def WatchProfiles(
        self, request: pb.WatchProfilesRequest, context: Context
    ) -> AsyncIterator[pb.WatchProfilesResponse]:
        """Stream the changes from now on; a slow reader is served from the log, so nothing piles up for it."""
        ends = await self._log.end(topics.PROFILES)
        places = [(topics.PROFILES, partition) for partition in range(len(ends))]
        seen = dict(zip(places, ends, strict=True))
        # Tells the caller that it will see everything that it causes from here on.
        await context.send_initial_metadata(())
        while True:
            for place in places:
                while records := await self._log.read(*place, seen[place]):
                    seen[place] = records[-1].offset + 1
                    for record in records:
                        if (response := self._watched(request, record)) is not None:
                            yield response
            await self._log.wait_for((topics.PROFILES,), seen, WATCH_IDLE_S)

    def _watched(self, request: pb.WatchProfilesRequest, record: Record) -> pb.WatchProfilesResponse | None:
        tenant, _, profile_id = (record.key or b"").decode().partition(SEPARATOR)
        if tenant != (request.tenant or DEFAULT_TENANT) or request.profile_id not in ("", profile_id):
            return None
        if record.value is None:
            return pb.WatchProfilesResponse(profile_id=profile_id)
        view = self._policy.view(events_pb2.Profile.FromString(record.value), request.purpose)
        return pb.WatchProfilesResponse(profile_id=profile_id, profile=view.profile)

    # Freshness --------------------------------------------------------------------------------------------------

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Context) -> pb.GetFreshnessResponse:
        """Tell what the profile store is current to."""
        del context
        return pb.GetFreshnessResponse(freshness=await self._stores.freshness(request.tenant))

    async def AwaitPosition(self, request: pb.AwaitPositionRequest, context: Context) -> pb.AwaitPositionResponse:
        """Wait until rows and documents have taken a position of `changes` and assignments into account."""
        left = context.time_remaining()
        # A little less than the caller waits, so that the answer tells what was reached.
        timeout_s = AWAIT_TIMEOUT_S if left is None else max(0.0, left * 0.95 - 0.02)
        deadline = time.monotonic() + timeout_s
        if not await self._log.wait_committed([ROWS_GROUP], request.position, timeout_s):
            raise await self._too_late(ROWS_GROUP, timeout_s)
        touched = position_of({(topics.TOUCHED, p): end for p, end in enumerate(await self._log.end(topics.TOUCHED))})
        if not await self._log.wait_committed([FOLD_GROUP], touched, max(0.0, deadline - time.monotonic())):
            raise await self._too_late(FOLD_GROUP, timeout_s)
        ends = {(topics.PROFILES, p): end for p, end in enumerate(await self._log.end(topics.PROFILES))}
        return pb.AwaitPositionResponse(outputs=position_of(ends))

    async def _too_late(self, group: str, timeout_s: float) -> DeadlineError:
        reached = encode_token(position_of(await self._log.committed(group)))
        return DeadlineError(
            f"the profile store did not reach the position within {timeout_s:.1f} s: {group} is at {reached}; "
            "wait longer, or see `headwater balance`"
        )


def spellings(value: str) -> list[str]:
    """Return what an identifier may look like once normalised, for when identity resolution cannot be asked."""
    trimmed = value.strip()
    found = [value, trimmed, trimmed.casefold()]
    if re.fullmatch(r"(\+|00)[\d\s().\-/]+", trimmed):
        digits = re.sub(r"\D", "", trimmed.removeprefix("00"))
        found += [f"+{digits}", digits]
    return list(dict.fromkeys(found))


def _not_found(tenant: str, identifier: common_pb2.Identifier) -> NotFoundError:
    return NotFoundError(
        f"there is no profile for {identifier.kind}:{identifier.value} in tenant {tenant}: check the spelling, and "
        "whether its records have arrived (`headwater balance`)"
    )
