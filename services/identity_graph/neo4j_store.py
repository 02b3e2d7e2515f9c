"""The identity graph in Neo4j, an adapter of `ports.GraphStore`: what a batch writes."""

from collections.abc import Collection, Iterable, Mapping

import orjson

from services.identity_graph.clustering import Outcome
from services.identity_graph.model import OVERGROWN, Erased, Key, birth_id
from services.identity_graph.neo4j_reads import Neo4jReads
from services.identity_graph.neo4j_schema import digest_of
from services.identity_graph.working_set import LINK_SEPARATOR, Node, Row, WorkingSet
from services.kernel.log import SEPARATOR

_SET_NODE = (
    "SET n.rows = row[1], n.first_seen = row[2], n.first_key = row[3], n.component = row[4], n.profile = row[5], "
    "n.suspect = row[6], n.muted = row[7], n.generation = row[8]"
)
_NEW_NODES = f"""
    UNWIND $rows AS row
    MERGE (n:IdentityContent {{digest: row[9]}}) SET n.id = row[0], n.tenant = row[10], n.text = row[11],
      n.links = row[12] {_SET_NODE}
    WITH n UNWIND split(n.links, $separator) AS link
    MATCH (i:IdentityLink {{link: link}}) CREATE (n)-[:NAMES]->(i)
    """
_SET_ROW = (
    "SET r.partition = row[1], r.place = row[2], r.position = row[3], r.first_seen = row[4], r.carried = row[5], "
    "r.buried = row[6], r.aside = row[7], r.generation = coalesce(row[8], r.generation)"
)
_NEW_ROW = "CREATE (r:IdentityRecord {key: row[0], birth: row[10]})"
_HANG = "MATCH (n:IdentityContent {id: row[9]}) CREATE (r)-[:HOLDS]->(n)"


class Neo4jGraph(Neo4jReads):
    """See `ports.GraphStore`."""

    async def write(self, state: WorkingSet, outcome: Outcome) -> None:
        """Make a batch's outcome last, and what it tells of its sources, within the open unit of work."""
        await self._write_components(outcome.nodes)
        gone = await self._write_nodes(outcome.nodes, state.generation)
        await self._write_rows([row for row in state.rows.values() if row.touched], state.generation)
        await self._write_crowds(outcome)
        await self._remove_nodes(gone)
        await self._each(
            "MERGE (t:IdentityTruncation {name: row[0]}) SET t.tenant = row[1], t.source = row[2], t.entity = row[3], "
            "t.partition = row[4], t.position = row[5]",
            [
                [SEPARATOR.join((*scope, str(partition))), *scope, partition, state.truncated[scope]]
                for scope, partition in state.truncations.items()
            ],
        )
        await self._each(
            "MERGE (s:IdentitySource {name: row[0]}) SET s.tenant = row[1], s.source = row[2], "
            "s.position = CASE WHEN row[3] >= coalesce(s.occurred_ms, 1) THEN row[5] ELSE coalesce(s.position, '') END "
            "SET s.occurred_ms = CASE WHEN row[3] >= coalesce(s.occurred_ms, 0) THEN row[3] ELSE s.occurred_ms END, "
            "s.heartbeat_ms = CASE WHEN row[4] >= coalesce(s.heartbeat_ms, 0) THEN row[4] ELSE s.heartbeat_ms END",
            [
                [SEPARATOR.join((*place, self._lane)), *place, *newest]
                for place, newest in sorted(state.sightings.newest.items())
            ],
        )
        if state.next_id != self._next_id:
            self._next_id = state.next_id
            await self._run(
                "MATCH (lane:IdentityLane {name: $name}) SET lane.next_id = $next_id",
                name=self._lane,
                next_id=state.next_id,
            )

    async def forget(self, keys: Collection[Key], fences: Mapping[str, Erased]) -> None:
        """Remove what is left of records that are out of the graph, and keep the fences, by birth id."""
        rows = [[key] for key in keys]
        await self._each("MATCH (b:IdentityBuried {key: row[0]}) DELETE b", rows)
        await self._each("MATCH (r:IdentityRecord {key: row[0]}) DETACH DELETE r", rows)
        generation = await self.generation()
        await self._each(
            "MERGE (e:IdentityErased {birth: row[0]}) "
            "SET e.place = CASE WHEN e.place > row[1] THEN e.place ELSE row[1] END, e.position = row[2], "
            "e.generation = row[3]",
            [[birth, *fence, generation] for birth, fence in fences.items()],
        )

    async def remains(self, rows: Collection[Row], nodes: Collection[Node]) -> dict[str, int]:
        """Search for what is left of records and nodes that are gone; return how much there is, by kind."""
        keys, ids = [row.key for row in rows], [node.id for node in nodes]
        links = sorted({link for node in nodes for link in node.content.links})
        searches = {
            "records": "MATCH (n:IdentityRecord) WHERE n.key IN $keys",
            "contents": "MATCH (n:IdentityContent) WHERE n.id IN $ids",
            "identifiers": "MATCH (n:IdentityLink) WHERE n.link IN $links AND NOT (n)<-[:NAMES]-()",
            "former records": "MATCH (n:IdentityBuried) WHERE n.key IN $keys",
        }
        return {
            name: (await self._run(f"{where} RETURN count(n)", keys=keys, ids=ids, links=links))[0][0]
            for name, where in searches.items()
        }

    async def _each(self, statement: str, rows: Collection[object]) -> None:
        """Run a statement for every row; without any, do nothing."""
        if rows:
            await self._run(f"UNWIND $rows AS row {statement}", rows=list(rows))

    async def _write_components(self, nodes: Iterable[Node]) -> None:
        """Make the nodes that new components are claimed by, and remove those of components that are no more."""
        before: set[int | None] = set()
        now: set[int | None] = set()
        for node in nodes:
            before.add(node.before.component)
            if node.rows:
                now.add(node.component)
        standing = {None, OVERGROWN}
        await self._each("CREATE (:IdentityComponent {id: row, locked: true})", list(now - before - standing))
        await self._each("MATCH (k:IdentityComponent {id: row}) DELETE k", list(before - now - standing))

    async def _write_nodes(self, nodes: Iterable[Node], generation: int) -> list[Node]:
        """Write nodes; return those that have no rows any more."""
        new, changed, gone = [], [], []
        for node in nodes:
            if not node.before.rows:
                if node.rows:
                    content = node.content
                    digest = digest_of(content.tenant, content.text)
                    links = LINK_SEPARATOR.join(content.links)
                    new.append([*_fields(node, generation), digest, content.tenant, content.text, links])
            elif not node.rows:
                gone.append(node)
            # What was told of any of its rows is remembered by its generation.
            elif node.joined or node.seen or (node.rows, node.first, node.component, node.standing) != node.before:
                changed.append(_fields(node, generation))
        if new:
            await self._run(_NEW_NODES, rows=new, separator=LINK_SEPARATOR)
        await self._each(f"MATCH (n:IdentityContent {{id: row[0]}}) {_SET_NODE}", changed)
        return gone

    async def _remove_nodes(self, nodes: Collection[Node]) -> None:
        await self._each("MATCH (n:IdentityContent {id: row}) DETACH DELETE n", [node.id for node in nodes])
        links = {link for node in nodes for link in node.content.links}
        await self._each("MATCH (i:IdentityLink {link: row}) WHERE NOT (i)<-[:NAMES]-() DELETE i", sorted(links))

    async def _write_rows(self, rows: Iterable[Row], generation: int) -> None:
        new: list[list[object]] = []
        aside: list[list[object]] = []
        moved: list[list[object]] = []
        same: list[list[object]] = []
        hung: list[list[object]] = []
        left, risen = [], []
        buried: list[list[object]] = []
        for row in rows:
            stored = row.stored
            if stored is None:
                (aside if row.node is None else new).append([*_row_fields(row, generation), birth_id(row.key)])
            elif row.moves or row.sighted or row.carried or stored.carried:
                moved.append(_row_fields(row, generation))
                if row.moves:
                    if stored.node_id is not None:
                        left.append(row.key)
                    if row.node is not None:
                        hung.append(moved[-1])
                    if stored.buried and not row.buried:
                        risen.append(row.key)
                    buried.extend([digest, row.key] for digest in row.buried)
            else:
                same.append([row.key, row.offset, row.position])
        await self._each(f"MATCH (n:IdentityContent {{id: row[9]}}) {_NEW_ROW}-[:HOLDS]->(n) {_SET_ROW}", new)
        await self._each(f"{_NEW_ROW} {_SET_ROW}", aside)
        await self._each(f"MATCH (r:IdentityRecord {{key: row[0]}}) {_SET_ROW}", moved)
        await self._each("MATCH (:IdentityRecord {key: row})-[held:HOLDS]->() DELETE held", left)
        await self._each(f"MATCH (r:IdentityRecord {{key: row[0]}}) {_HANG}", hung)
        await self._each("MATCH (b:IdentityBuried {key: row}) DELETE b", risen)
        await self._each("CREATE (:IdentityBuried {digest: row[0], key: row[1]})", buried)
        # The most frequent change of all: nothing that matters here.
        await self._each("MATCH (r:IdentityRecord {key: row[0]}) SET r.place = row[1], r.position = row[2]", same)

    async def _write_crowds(self, outcome: Outcome) -> None:
        crowds = [[link, *crowd] for link, crowd in outcome.crowds.items() if crowd is not None]
        await self._each("MATCH (i:IdentityLink {link: row[0]}) SET i.records = row[1], i.rows = row[2]", crowds)
        await self._each("MATCH (i:IdentityLink {link: row}) REMOVE i.records, i.rows", outcome.released)


def _fields(node: Node, generation: int) -> list[object]:
    profile, suspect, muted = node.standing
    return [
        node.id, node.rows, *node.first, node.component, profile, int(suspect),
        orjson.dumps(muted).decode() if muted else None, generation,
    ]  # fmt: skip


def _row_fields(row: Row, generation: int) -> list[object]:
    node_id = None if row.node is None else row.node.id
    left = row.node is None and row.node_before is not None
    return [
        row.key, row.partition, row.offset, row.position, row.first_seen,
        orjson.dumps(row.carried).decode() if row.carried else None,
        orjson.dumps(row.buried).decode() if row.buried else None,
        row.aside, generation if left else None, node_id,
    ]  # fmt: skip
