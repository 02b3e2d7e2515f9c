"""What the API asks of the graph, on the reader's connection: committed data, short statements."""

import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence

import orjson

from services.identity_graph.explain import Evidence
from services.identity_graph.model import Crowd, Key, Kinds, Link, buried, key_text, split_key
from services.identity_graph.ports import Found, Subject
from services.identity_graph.working_set import LINK_SEPARATOR
from services.kernel.log import SEPARATOR
from services.kernel.sqlite import Database

PAGE = 500
_EVIDENCE = "n.id, n.tenant, n.text, n.links, n.first_key, n.rows, n.profile, n.muted, n.suspect, n.component"
_FOUND = "r.key, n.id, coalesce(n.profile, r.birth), n.suspect"


class SqliteQueries:
    """See `ports.GraphQueries`."""

    def __init__(self, database: Database, kinds: Kinds) -> None:
        self._database, self._kinds = database, kinds

    @property
    def _reader(self) -> sqlite3.Connection:
        return self._database.reader

    async def by_record(self, tenant: str, record: str) -> Found | None:
        """Return where a record is."""
        return self._found("r.key = ?", key_text(tenant, record))

    async def by_profile(self, tenant: str, profile_id: str) -> Found | None:
        """Return where the record is whose own id a profile has, or had."""
        return self._found("r.birth = ? AND r.key >= ? AND r.key < ?", profile_id, *_bounds(tenant))

    def _found(self, condition: str, *parameters: str) -> Found | None:
        row = self._reader.execute(
            f"SELECT {_FOUND} FROM identity_records r JOIN identity_nodes n ON n.id = r.node WHERE {condition}",
            parameters,
        ).fetchone()
        return None if row is None else Found(split_key(row[0])[1], row[1], row[2], bool(row[3]))

    async def by_link(self, link: Link) -> Found | None:
        """Return a record that holds an identifier: of the largest profile where several do, and then suspect."""
        rows = self._reader.execute(
            "SELECT n.first_key, n.id, n.profile, n.suspect, sum(n.rows) s FROM identity_links l "
            "JOIN identity_nodes n ON n.id = l.node WHERE l.link = ? AND n.profile IS NOT NULL "
            "GROUP BY n.profile ORDER BY s DESC, n.profile LIMIT 2",
            (link,),
        ).fetchall()
        if not rows:
            return None
        key, node_id, profile, suspect, _ = rows[0]
        return Found(split_key(key)[1], node_id, profile, bool(suspect) or len(rows) > 1)

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the identifiers that are quarantined."""
        rows = self._reader.execute(
            "SELECT c.link, c.records, c.rows FROM json_each(?) j CROSS JOIN identity_crowds c ON c.link = j.value",
            (orjson.dumps(list(links)).decode(),),
        )
        return {link: Crowd(records, count) for link, records, count in rows}

    async def evidence(self, node_ids: Collection[int]) -> Sequence[Evidence]:
        """Return nodes, with everything that links join with them."""
        marks = orjson.dumps(list(node_ids)).decode()
        rows = self._reader.execute(
            f"SELECT {_EVIDENCE} FROM identity_nodes n WHERE n.component IN (SELECT component FROM identity_nodes "
            "WHERE id IN (SELECT value FROM json_each(?)) AND component > 0) "
            f"UNION SELECT {_EVIDENCE} FROM identity_nodes n WHERE n.id IN (SELECT value FROM json_each(?))",
            (marks, marks),
        )
        return [
            Evidence(
                node_id,
                self._kinds.content_of_links(tenant, text, links.split(LINK_SEPARATOR) if links else ()),
                split_key(first_key)[1], count, profile, tuple(orjson.loads(muted)) if muted else (),
            )
            for node_id, tenant, text, links, first_key, count, profile, muted, _, _ in rows
        ]  # fmt: skip

    async def subject(self, found: Found, limit: int = -1) -> Subject:
        """Return the records of a person, in order, with their own ids, and the identifiers that link them."""
        nodes = self._reader.execute(
            "SELECT n.id, n.links, n.muted FROM identity_nodes m JOIN identity_nodes n ON n.component = m.component "
            "AND n.profile = m.profile WHERE m.id = ? AND m.component > 0",
            (found.node_id,),
        ).fetchall()
        links = {link for _, joined, _ in nodes if joined for link in joined.split(LINK_SEPARATOR)}
        for *_, muted in nodes:
            links.difference_update(orjson.loads(muted) if muted else ())
        if nodes:
            rows = self._reader.execute(
                "SELECT r.key, r.birth, r.position FROM json_each(?) j CROSS JOIN identity_records r "
                "ON r.node = j.value LIMIT ?",
                (orjson.dumps([node[0] for node in nodes]).decode(), limit),
            ).fetchall()
        else:  # a record that stands alone
            rows = self._reader.execute(
                "SELECT key, birth, position FROM identity_records WHERE birth = ? AND node = ?",
                (found.profile_id, found.node_id),
            ).fetchall()
        keys, births, positions = zip(*sorted(rows), strict=True) if rows else ((), (), ())
        return Subject(tuple(split_key(key)[1] for key in keys), births, positions, tuple(sorted(links)))

    async def buried(self, links: Collection[Link]) -> Sequence[tuple[Key, str, str]]:
        """Return key, own id and position of records that are gone and held one of the identifiers."""
        digests = orjson.dumps([buried(link) for link in links]).decode()
        rows = self._reader.execute(
            "SELECT DISTINCT r.key, r.birth, r.position FROM json_each(?) j CROSS JOIN identity_buried b "
            "ON b.digest = j.value JOIN identity_records r ON r.id = b.record WHERE r.node IS NULL ORDER BY r.key",
            (digests,),
        )
        return rows.fetchall()

    async def assignments(self, tenant: str) -> AsyncIterator[Sequence[tuple[str, str]]]:
        """Return pages of record and profile of a tenant, in the order of records, all as of one instant."""
        start, stop = _bounds(tenant)
        with self._database.snapshot() as connection:
            while rows := connection.execute(
                "SELECT r.key, coalesce(n.profile, r.birth) FROM identity_records r JOIN identity_nodes n "
                "ON n.id = r.node WHERE r.key > ? AND r.key < ? ORDER BY r.key LIMIT ?",
                (start, stop, PAGE),
            ).fetchall():
                yield [(split_key(key)[1], profile) for key, profile in rows]
                start = rows[-1][0]


def _bounds(tenant: str) -> tuple[Key, Key]:
    """Return what all keys of a tenant are between."""
    return f"{tenant}{SEPARATOR}", f"{tenant}{chr(ord(SEPARATOR) + 1)}"
