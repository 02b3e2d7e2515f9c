"""Reads for a batch in Neo4j, and the claims that keep what is read from changing.

Neo4j gives every statement what has become lasting by then (read committed), and locks what a transaction writes, until
its end. So a claim is a write that changes nothing: `SET n.locked = true`. Whoever had to wait for a claim must read
anew, and what was deleted meanwhile has no properties any more.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from services.identity_graph.consumer import GROUP
from services.identity_graph.model import Crowd, Erased, Key, Link, Scope, birth_id
from services.identity_graph.neo4j_client import Rows, table
from services.identity_graph.neo4j_ledger import Neo4jLedger
from services.identity_graph.neo4j_schema import IDS_PER_LANE, digest_of, lane_of
from services.identity_graph.working_set import StoredNode, StoredRow
from services.kernel import topics
from services.kernel.errors import UnavailableError

CLAIM_ATTEMPTS = 20
# All holders of a link that is not quarantined are in one component, so any of them tells.
_COMPONENT = "head([(n)<-[:NAMES]-(holder:IdentityContent) | holder.component])"
_ROW = "r.key, r.partition, r.place, r.position, r.first_seen, n.id, n.text, r.carried, r.buried, r.aside, r.generation"
_NODE = (
    "n.id, n.tenant, n.text, n.links, n.rows, n.first_seen, n.first_key, n.component, n.profile, n.suspect, n.muted, "
    "n.generation"
)


class Neo4jReads:
    """See `ports.GraphReader`; everything happens in the open unit of work of the ledger.

    Args:
        ledger: that of the consumer group which works with this graph.
        partitions: the number of partitions of the topic `changes`.
    """

    def __init__(self, ledger: Neo4jLedger, partitions: Callable[[], int]) -> None:
        self._ledger, self._partitions = ledger, partitions
        self._run = ledger.run
        self._lane = ""  # whose ids are handed out
        self._next_id = 0
        self._has_erased = self._has_truncations = False
        # What was read of links with their claim: who holds them cannot change, but in which component that is.
        self._crowds: dict[Link, Crowd | None] = {}
        self._components: dict[Link, int] | None = None

    async def enter(self, partition: int | None) -> int:
        """Begin a batch of a partition of `changes`, or of something that concerns them all (None)."""
        places = range(self._partitions()) if partition is None else [partition]
        names = [lane_of(GROUP, topics.CHANGES, place) for place in places]
        next_ids, self._has_erased, self._has_truncations = await self._ledger.claim_lanes(names)
        self._lane = names[0]
        self._next_id = next_ids[self._lane] or places[0] * IDS_PER_LANE + 1
        self._crowds, self._components = {}, None
        return self._next_id

    async def generation(self) -> int:
        """Return a number for assignments: higher than all that were told of the records and nodes that were read."""
        return self._ledger.seen_generation + 1

    # Claims -----------------------------------------------------------------------------------------------------

    async def claim_links(self, links: Collection[Link], contents: Collection[tuple[str, str]]) -> None:
        """Keep others from anything that follows from who holds the links."""
        self._components = {}
        found = await self._merge("IdentityLink", "link", links, f"n.records, n.rows, {_COMPONENT}")
        for link, records, rows, component in found:
            self._crowds[link] = None if records is None else Crowd(records, rows)
            if component is not None:
                self._components[link] = component
        await self._merge("IdentityContent", "digest", [digest_of(*content) for content in contents], "null")

    async def _merge(self, label: str, key: str, values: Collection[str], told: str) -> Rows:
        """Claim nodes, made where they are missing; return key and what is told of each."""
        if not values:
            return []
        query = (
            f"UNWIND $values AS value MERGE (n:{label} {{{key}: value}}) SET n.locked = true {table(f'n.{key}', told)}"
        )
        for _ in range(CLAIM_ATTEMPTS):
            found = await self._run(query, values=sorted(values))
            if all(row[0] is not None for row in found):
                return found  # else some were deleted while we waited for them
        raise UnavailableError("what a batch needs of the identity graph is deleted again and again by others")

    async def claim(self, components: Collection[int], node_ids: Collection[int] = ()) -> bool:
        """Keep others from changing components, and nodes that are in none."""
        news = False
        for label, ids in (("IdentityComponent", components), ("IdentityContent", node_ids)):
            fresh = sorted(number for number in ids if (label, number) not in self._ledger.claimed)
            if fresh:
                await self._run(
                    f"UNWIND $ids AS id MATCH (n:{label} {{id: id}}) SET n.locked = true RETURN count(*)", ids=fresh
                )
                self._ledger.claimed.update((label, number) for number in fresh)
                news = True
        return news

    # Records ----------------------------------------------------------------------------------------------------

    async def rows(self, keys: Collection[Key]) -> Sequence[StoredRow]:
        """Return the records that are there."""
        if not keys:
            return []
        return self._rows(
            await self._run(
                "UNWIND $keys AS key MATCH (r:IdentityRecord {key: key}) "
                f"OPTIONAL MATCH (r)-[:HOLDS]->(n:IdentityContent) {table(_ROW)}",
                keys=list(keys),
            )
        )

    async def rows_of_scope(self, prefix: Key, partition: int) -> Sequence[StoredRow]:
        """Return the records whose keys begin with `prefix`, that hold something, and that came by a partition."""
        return self._rows(
            await self._run(
                "MATCH (r:IdentityRecord) WHERE r.key STARTS WITH $prefix AND r.partition = $partition "
                f"OPTIONAL MATCH (r)-[:HOLDS]->(n:IdentityContent) "
                f"WITH r, n WHERE coalesce(n.text, r.aside) IS NOT NULL {table(_ROW)}",
                prefix=prefix,
                partition=partition,
            )
        )

    def _rows(self, found: Rows) -> list[StoredRow]:
        rows = []
        for *fields, generation in found:
            self._saw(generation)
            rows.append(StoredRow(0, *fields))
        return rows

    def _saw(self, generation: int | None) -> None:
        if generation is not None and generation > self._ledger.seen_generation:
            self._ledger.seen_generation = generation

    async def truncations(self, partition: int) -> dict[Scope, str]:
        """Return the newest truncation of every scope in a partition."""
        if not self._has_truncations:
            return {}
        found = await self._run(
            "MATCH (t:IdentityTruncation {partition: $partition}) "
            + table("t.tenant", "t.source", "t.entity", "t.position"),
            partition=partition,
        )
        return {(tenant, source, entity): position for tenant, source, entity, position in found}

    async def erased(self, keys: Collection[Key]) -> Mapping[str, Erased]:
        """Return the fences of erased records, by birth id."""
        if not keys or not self._has_erased:
            return {}
        fences = {}
        for birth, place, position, generation in await self._run(
            "UNWIND $births AS birth MATCH (e:IdentityErased {birth: birth}) "
            + table("e.birth", "e.place", "e.position", "e.generation"),
            births=[birth_id(key) for key in keys],
        ):
            self._saw(generation)
            fences[birth] = Erased(place, position)
        return fences

    # Nodes ------------------------------------------------------------------------------------------------------

    async def nodes(self, ids: Collection[int]) -> Sequence[StoredNode]:
        """Return nodes by id."""
        return await self._nodes("MATCH (n:IdentityContent {id: value})", ids)

    async def nodes_of(self, components: Collection[int]) -> Sequence[StoredNode]:
        """Return all nodes of components."""
        return await self._nodes("MATCH (n:IdentityContent {component: value})", components)

    async def lone_nodes(self, contents: Collection[tuple[str, str]]) -> Sequence[StoredNode]:
        """Return nodes that nothing links, or that are in overgrown components, by tenant and text."""
        digests = [digest_of(*content) for content in contents]
        # One that was only just made to be claimed is no node yet.
        return await self._nodes("MATCH (n:IdentityContent {digest: value}) WHERE n.id IS NOT NULL", digests)

    async def holders(self, links: Collection[Link]) -> Sequence[StoredNode]:
        """Return all nodes that hold one of the links."""
        return await self._nodes(
            "MATCH (:IdentityLink {link: value})<-[:NAMES]-(n:IdentityContent) WITH DISTINCT n", links
        )

    async def _nodes(self, pattern: str, values: Collection[object]) -> list[StoredNode]:
        if not values:
            return []
        nodes = []
        for *fields, generation in await self._run(
            f"UNWIND $values AS value {pattern} {table(_NODE)}", values=list(values)
        ):
            self._saw(generation)
            nodes.append(StoredNode(*fields))
        return nodes

    async def components_of(self, links: Collection[Link]) -> Mapping[Link, int]:
        """Return the component of the holders of each link that is held, and that is not quarantined."""
        if not links:
            return {}
        if self._components is not None:
            known, self._components = self._components, None
            return {link: component for link, component in known.items() if link in links}
        found = await self._run(
            f"UNWIND $links AS value MATCH (n:IdentityLink {{link: value}}) WITH n, {_COMPONENT} AS component "
            "WHERE component IS NOT NULL " + table("n.link", "component"),
            links=list(links),
        )
        return dict(found)

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the links that are quarantined."""
        crowds = {link: crowd for link in links if (crowd := self._crowds.get(link)) is not None}
        if asked := [link for link in links if link not in self._crowds]:
            found = await self._run(
                "UNWIND $links AS value MATCH (i:IdentityLink {link: value}) WHERE i.records IS NOT NULL "
                + table("i.link", "i.records", "i.rows"),
                links=asked,
            )
            crowds.update((link, Crowd(records, rows)) for link, records, rows in found)
        return crowds

    async def members(self, node_ids: Collection[int]) -> Sequence[tuple[int, Key, int]]:
        """Return node, key and first sighting of all rows of nodes."""
        found = await self._run(
            "UNWIND $ids AS id MATCH (n:IdentityContent {id: id})<-[:HOLDS]-(r:IdentityRecord) "
            + table("id", "r.key", "r.first_seen"),
            ids=list(node_ids),
        )
        return [(node_id, key, first_seen) for node_id, key, first_seen in found]
