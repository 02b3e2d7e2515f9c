"""The state of erasures in Neo4j: requests and the services' acknowledgements."""

from headwater.common.v1 import events_pb2
from services.identity_graph.neo4j_client import Neo4j
from services.identity_graph.neo4j_ledger import Neo4jLedger
from services.identity_graph.ports import ErasureState
from services.kernel.log import SEPARATOR


class Neo4jErasures:
    """See `ports.ErasureStore` and `ports.ErasureReader`."""

    def __init__(self, neo4j: Neo4j, ledger: Neo4jLedger) -> None:
        self._neo4j, self._ledger = neo4j, ledger

    async def note_request(self, request: events_pb2.ErasureRequested) -> None:
        """Keep that an erasure was asked for, within the open unit of work."""
        await self._ledger.run(
            "MERGE (e:IdentityErasure {id: $id}) ON CREATE SET e.requested_ms = $requested_ms",
            id=request.erasure_id,
            requested_ms=request.requested_at.ToMilliseconds(),
        )

    async def note_answer(self, answer: events_pb2.ErasureDone) -> None:
        """Keep an acknowledgement, within the open unit of work; the newest of a service stands."""
        await self._ledger.run(
            "MERGE (a:IdentityAnswer {name: $name}) SET a.erasure = $erasure, a.service = $service, a.answer = $answer",
            name=f"{answer.erasure_id}{SEPARATOR}{answer.service}",
            erasure=answer.erasure_id,
            service=answer.service,
            answer=answer.SerializeToString(deterministic=True),
        )

    async def state(self, erasure_id: str) -> ErasureState | None:
        """Return what is known of an erasure."""
        rows = await self._neo4j.ask(
            "MATCH (e:IdentityErasure {id: $id}) OPTIONAL MATCH (a:IdentityAnswer {erasure: $id}) "
            "WITH e, a ORDER BY a.service RETURN e.requested_ms, collect(a.answer)",
            id=erasure_id,
        )
        if not rows:
            return None
        requested_ms, answers = rows[0]
        return ErasureState(requested_ms, tuple(events_pb2.ErasureDone.FromString(bytes(answer)) for answer in answers))
