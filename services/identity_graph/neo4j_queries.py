"""What the API asks of the graph in Neo4j: each a statement of its own, of what has become lasting."""

from collections.abc import AsyncIterator, Collection, Sequence

import orjson

from services.identity_graph.explain import Evidence
from services.identity_graph.model import OVERGROWN, Crowd, Key, Kinds, Link, buried, key_text, split_key
from services.identity_graph.neo4j_client import Neo4j, table
from services.identity_graph.ports import Found, Subject
from services.identity_graph.working_set import LINK_SEPARATOR
from services.kernel.log import SEPARATOR

PAGE = 500
ALL = (1 << 63) - 1
_HELD = "-[:HOLDS]->(n:IdentityContent)"
_FOUND = "r.key, n.id, coalesce(n.profile, r.birth), n.suspect"
_EVIDENCE = "n.id, n.tenant, n.text, n.links, n.first_key, n.rows, n.profile, n.muted"


class Neo4jQueries:
    """See `ports.GraphQueries`."""

    def __init__(self, neo4j: Neo4j, kinds: Kinds) -> None:
        self._ask, self._kinds = neo4j.ask, kinds

    async def by_record(self, tenant: str, record: str) -> Found | None:
        """Return where a record is."""
        return await self._found("r.key = $key", key=key_text(tenant, record))

    async def by_profile(self, tenant: str, profile_id: str) -> Found | None:
        """Return where the record is whose own id a profile has, or had."""
        condition = "r.birth = $birth AND r.key STARTS WITH $prefix"
        return await self._found(condition, birth=profile_id, prefix=key_text(tenant, ""))

    async def _found(self, condition: str, **parameters: str) -> Found | None:
        rows = await self._ask(
            f"MATCH (r:IdentityRecord) WHERE {condition} MATCH (r){_HELD} RETURN {_FOUND} LIMIT 1", **parameters
        )
        if not rows:
            return None
        key, node_id, profile, suspect = rows[0]
        return Found(split_key(key)[1], node_id, profile, bool(suspect))

    async def by_link(self, link: Link) -> Found | None:
        """Return a record that holds an identifier: of the largest profile where several do, and then suspect."""
        rows = await self._ask(
            "MATCH (:IdentityLink {link: $link})<-[:NAMES]-(n:IdentityContent) WHERE n.profile IS NOT NULL "
            "WITH n.profile AS profile, sum(n.rows) AS size, head(collect(n)) AS n ORDER BY size DESC, profile LIMIT 2 "
            "RETURN n.first_key, n.id, profile, n.suspect",
            link=link,
        )
        if not rows:
            return None
        key, node_id, profile, suspect = rows[0]
        return Found(split_key(key)[1], node_id, profile, bool(suspect) or len(rows) > 1)

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the identifiers that are quarantined."""
        rows = await self._ask(
            "MATCH (i:IdentityLink) WHERE i.link IN $links AND i.records IS NOT NULL RETURN i.link, i.records, i.rows",
            links=list(links),
        )
        return {link: Crowd(records, count) for link, records, count in rows}

    async def evidence(self, node_ids: Collection[int]) -> Sequence[Evidence]:
        """Return nodes, with everything that links join with them."""
        rows = await self._ask(
            "UNWIND $ids AS id MATCH (m:IdentityContent {id: id}) "
            f"OPTIONAL MATCH (other:IdentityContent {{component: m.component}}) WHERE m.component > {OVERGROWN} "
            f"WITH DISTINCT coalesce(other, m) AS n {table(_EVIDENCE)}",
            ids=list(node_ids),
        )
        return [
            Evidence(
                node_id,
                self._kinds.content_of_links(tenant, text, links.split(LINK_SEPARATOR) if links else ()),
                split_key(first_key)[1], count, profile, tuple(orjson.loads(muted)) if muted else (),
            )
            for node_id, tenant, text, links, first_key, count, profile, muted in rows
        ]  # fmt: skip

    async def subject(self, found: Found, limit: int = -1) -> Subject:
        """Return the records of a person, in order, with their own ids, and the identifiers that link them."""
        nodes = await self._ask(
            "MATCH (m:IdentityContent {id: $id}) MATCH (n:IdentityContent {component: m.component}) "
            f"WHERE m.component > {OVERGROWN} AND n.profile = m.profile " + table("n.id", "n.links", "n.muted"),
            id=found.node_id,
        )
        links = {link for _, joined, _ in nodes if joined for link in joined.split(LINK_SEPARATOR)}
        for *_, muted in nodes:
            links.difference_update(orjson.loads(muted) if muted else ())
        if nodes:
            rows = await self._ask(
                "MATCH (n:IdentityContent)<-[:HOLDS]-(r:IdentityRecord) WHERE n.id IN $ids "
                "WITH r LIMIT $limit " + table("r.key", "r.birth", "r.position"),
                ids=[node[0] for node in nodes],
                limit=ALL if limit < 0 else limit,
            )
        else:  # a record that stands alone
            rows = await self._ask(
                "MATCH (r:IdentityRecord {birth: $birth})-[:HOLDS]->(:IdentityContent {id: $id}) "
                "RETURN r.key, r.birth, r.position",
                birth=found.profile_id,
                id=found.node_id,
            )
        keys, births, positions = zip(*sorted(rows), strict=True) if rows else ((), (), ())
        return Subject(tuple(split_key(key)[1] for key in keys), births, positions, tuple(sorted(links)))

    async def buried(self, links: Collection[Link]) -> Sequence[tuple[Key, str, str]]:
        """Return key, own id and position of records that are gone and held one of the identifiers."""
        rows = await self._ask(
            "MATCH (b:IdentityBuried) WHERE b.digest IN $digests MATCH (r:IdentityRecord {key: b.key}) "
            "WHERE NOT (r)-[:HOLDS]->() RETURN DISTINCT r.key AS key, r.birth, r.position ORDER BY key",
            digests=[buried(link) for link in links],
        )
        return [(key, birth, position) for key, birth, position in rows]

    async def assignments(self, tenant: str) -> AsyncIterator[Sequence[tuple[str, str]]]:
        """Return pages of record and profile of a tenant, in the order of records, each as of its own instant."""
        start, stop = key_text(tenant, ""), f"{tenant}{chr(ord(SEPARATOR) + 1)}"
        while rows := await self._ask(
            "MATCH (r:IdentityRecord) WHERE r.key > $start AND r.key < $stop "
            f"MATCH (r){_HELD} WITH r, n ORDER BY r.key LIMIT {PAGE} " + table("r.key", "coalesce(n.profile, r.birth)"),
            start=start,
            stop=stop,
        ):
            yield [(split_key(key)[1], profile) for key, profile in rows]
            start = rows[-1][0]
