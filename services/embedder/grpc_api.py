"""EmbedderService: requests in, searches and the retry state out."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any

import grpc

from headwater.embedder.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from services.embedder.events import GROUP, STATES
from services.embedder.index import Reader
from services.embedder.knowledge import Knowledge
from services.embedder.ports import Jobs
from services.embedder.rows import NOBODY
from services.embedder.searcher import Searcher
from services.embedder.state import Key
from services.kernel import topics
from services.kernel.errors import DeadlineError, InvalidInputError
from services.kernel.jobs import WAITING, JobState
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Log, encode_token, position_of
from services.kernel.records import record_key

TOP_K, TOP_K_MAX = 10, 100
QUERY_MAX = 10_000
ROWS_MAX = 100
JOBS_LIMIT, JOBS_LIMIT_MAX = 100, 1000
AWAIT_TIMEOUT_S = 30.0
WATCH_IDLE_S = 3600.0

Context = grpc.aio.ServicerContext[Any, Any]
_STATE_OF = {proto: state for state, proto in STATES.items()}


class EmbedderApi(service_pb2_grpc.EmbedderServiceServicer):
    """Answers from the knowledge base."""

    def __init__(
        self,
        log: Log,
        knowledge: Knowledge,
        searcher: Searcher,
        jobs: Jobs,
        wake: Callable[[], None],
        *,
        tables: Collection[tuple[str, str]] = (),
    ) -> None:
        """Wire the API.

        Args:
            log: the log.
            knowledge, searcher, jobs: what it answers from.
            wake: called without arguments when jobs have become pending.
            tables: the tables, as source and entity, whose rows become documents.
        """
        self._log, self._knowledge, self._searcher, self._jobs = log, knowledge, searcher, jobs
        self._wake, self._tables = wake, tables

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        service_pb2_grpc.add_EmbedderServiceServicer_to_server(self, server)

    # Search -----------------------------------------------------------------------------------------------------

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Find the chunks nearest to a text."""
        del context
        if not request.query.strip():
            raise InvalidInputError("Search: the query is empty: say what to look for")
        if len(request.query) > QUERY_MAX:
            raise InvalidInputError(
                f"Search: the query has {len(request.query)} characters, at most {QUERY_MAX} are taken"
            )
        if not 0 <= request.top_k <= TOP_K_MAX:
            raise InvalidInputError(f"Search: top_k is {request.top_k}: it must be 1 to {TOP_K_MAX}, or 0 for {TOP_K}")
        tenant = request.tenant or DEFAULT_TENANT
        # First: a commit in between must not make the hits look newer than they are.
        freshness = await self._knowledge.freshness(tenant)
        reader = Reader(tenant, _labels(request.access), frozenset(request.sources))
        found = await self._searcher.search(request.query, reader, request.top_k or TOP_K)
        return pb.SearchResponse(hits=found.hits, freshness=freshness, missing=found.missing)

    async def GetRows(self, request: pb.GetRowsRequest, context: Context) -> pb.GetRowsResponse:
        """Find rows by their primary keys, in whichever of the tables they are."""
        del context
        if len(request.keys) > ROWS_MAX:
            raise InvalidInputError(f"GetRows: {len(request.keys)} keys are named, at most {ROWS_MAX} are taken")
        ids = [record_key(source, entity, {"": key}) for source, entity in self._tables for key in set(request.keys)]
        reader = Reader(request.tenant or DEFAULT_TENANT, _labels(request.access))
        return pb.GetRowsResponse(hits=await self._searcher.rows(ids, reader))

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        """Return a document's text."""
        del context
        key = Key(request.tenant or DEFAULT_TENANT, request.document_id)
        return await self._knowledge.document(key, request.version, _labels(request.access))

    # Jobs -------------------------------------------------------------------------------------------------------

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """List documents that are not searchable, and why."""
        del context
        if not 0 <= request.limit <= JOBS_LIMIT_MAX:
            raise InvalidInputError(f"ListJobs: limit is {request.limit}: it must be 1 to {JOBS_LIMIT_MAX}")
        tenant = request.tenant or DEFAULT_TENANT
        states = [_state(proto) for proto in request.states] or [*WAITING, JobState.PARKED]
        counts = await self._jobs.counts(tenant)
        return pb.ListJobsResponse(
            jobs=await self._jobs.listed(tenant, states, request.limit or JOBS_LIMIT),
            counts={state.value: count for state, count in counts.items()},
        )

    async def RetryJobs(self, request: pb.RetryJobsRequest, context: Context) -> pb.RetryJobsResponse:
        """Make parked and waiting documents pending again."""
        del context
        retried = await self._jobs.retry(request.tenant or DEFAULT_TENANT, request.document_ids)
        self._wake()
        return pb.RetryJobsResponse(retried=retried)

    # Freshness --------------------------------------------------------------------------------------------------

    async def WatchIndex(self, request: pb.WatchIndexRequest, context: Context) -> AsyncIterator[pb.WatchIndexResponse]:
        """Stream what becomes searchable or goes away from now on; a slow reader is served from the log."""
        tenant = request.tenant or DEFAULT_TENANT
        seen = {(topics.INDEXED, partition): end for partition, end in enumerate(await self._log.end(topics.INDEXED))}
        # Tells the caller that it will see everything that it causes from here on.
        await context.send_initial_metadata(())
        while True:
            for place in list(seen):
                while records := await self._log.read(*place, seen[place]):
                    seen[place] = records[-1].offset + 1
                    for record in records:
                        owner = (record.key or b"").decode().partition(SEPARATOR)[0]
                        if owner == tenant and record.value is not None:
                            yield pb.WatchIndexResponse(indexed=events_pb2.DocumentIndexed.FromString(record.value))
            await self._log.wait_for((topics.INDEXED,), seen, WATCH_IDLE_S)

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Context) -> pb.GetFreshnessResponse:
        """Tell what the knowledge base is current to."""
        del context
        return pb.GetFreshnessResponse(freshness=await self._knowledge.freshness(request.tenant or DEFAULT_TENANT))

    async def AwaitPosition(self, request: pb.AwaitPositionRequest, context: Context) -> pb.AwaitPositionResponse:
        """Wait until every document up to a position is searchable; those that were given up are named."""
        left = context.time_remaining()
        # A little less than the caller waits, so that the answer tells what was reached.
        timeout_s = AWAIT_TIMEOUT_S if left is None else max(0.0, left * 0.95 - 0.02)
        deadline = time.monotonic() + timeout_s
        position = request.position
        before = {(place.topic, place.partition): place.offset for place in position.offsets}
        if not await self._log.wait_committed([GROUP], position, timeout_s):
            raise await self._too_late(timeout_s)
        if not await self._jobs.finished_before(before, deadline - time.monotonic()):
            raise await self._too_late(timeout_s)
        response = pb.AwaitPositionResponse(parked=await self._jobs.parked(before))
        ends = {(topics.INDEXED, partition): end for partition, end in enumerate(await self._log.end(topics.INDEXED))}
        response.outputs.CopyFrom(position_of(ends))
        return response

    async def _too_late(self, timeout_s: float) -> DeadlineError:
        reached = encode_token(await self._knowledge.applied())
        return DeadlineError(
            f"the knowledge base did not reach the position within {timeout_s:.1f} s: it is at {reached}; "
            "wait longer, or see ListJobs for documents that are being embedded"
        )


def _labels(access: Iterable[str]) -> frozenset[str]:
    return frozenset(access) - {NOBODY}


def _state(proto: int) -> JobState:
    try:
        return _STATE_OF[events_pb2.JobState.ValueType(proto)]
    except KeyError:
        raise InvalidInputError(f"ListJobs: {proto} is no state of a job") from None
