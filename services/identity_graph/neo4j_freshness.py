"""What the graph in Neo4j is current to."""

from headwater.common.v1 import common_pb2
from services.identity_graph.neo4j_client import Neo4j
from services.kernel.freshness import Backlog, Groups, Sighting, report
from services.kernel.log import DEFAULT_TENANT


class Neo4jFreshness:
    """See `ports.FreshnessReader`.

    What a source told is kept by partition, so that no two workers write the same; the newest of all counts.

    Args:
        neo4j: the server.
        component: the name of the read model.
    """

    def __init__(self, neo4j: Neo4j, component: str) -> None:
        self._neo4j, self._component = neo4j, component

    async def report(self, tenant: str, backlog: Backlog, groups: Groups) -> common_pb2.StoreFreshness:
        """Return what the graph is current to, for a tenant."""
        rows = await self._neo4j.ask(
            "MATCH (s:IdentitySource) WHERE s.tenant = $tenant WITH s ORDER BY s.occurred_ms DESC, s.position DESC "
            "WITH s.source AS source, collect(s) AS told "
            "RETURN source, head(told).occurred_ms, "
            "reduce(newest = 0, s IN told | CASE WHEN s.heartbeat_ms > newest THEN s.heartbeat_ms ELSE newest END), "
            "head(told).position",
            tenant=tenant or DEFAULT_TENANT,
        )
        known = {source: Sighting(*newest) for source, *newest in rows}
        return await report(self._component, known, backlog, groups)
