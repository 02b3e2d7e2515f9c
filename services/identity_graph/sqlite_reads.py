"""Reads for a batch, the half of the SQLite adapter that `ports.GraphReader` asks for."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from services.identity_graph.model import Crowd, Erased, Key, Link, Scope, birth_id
from services.identity_graph.sqlite_schema import SCHEMA, as_json, checksum
from services.identity_graph.working_set import StoredNode, StoredRow
from services.kernel.sqlite import Database

_ROW = "r.id, r.key, r.partition, r.place, r.position, r.first_seen, r.node, n.text, r.carried, r.buried, r.aside"
_NODE = "n.id, n.tenant, n.text, n.links, n.rows, n.first_seen, n.first_key, n.component, n.profile, n.suspect, n.muted"


class SqliteReads:
    """See `ports.GraphReader`; everything happens on the writer's connection, in the open unit of work."""

    def __init__(self, database: Database) -> None:
        database.migrate("identity_graph", SCHEMA)
        self.connection: sqlite3.Connection = database.writer

    def _is_empty(self, table: str) -> bool:
        return self.connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None

    async def enter(self, partition: int | None) -> int:
        """Return the next free id of a node; there is one writer at a time."""
        del partition
        return self._counter("node") + 1

    async def generation(self) -> int:
        """Return the next generation of assignments."""
        return self._counter("generation") + 1

    def _counter(self, name: str) -> int:
        row = self.connection.execute("SELECT value FROM identity_counters WHERE name=?", (name,)).fetchone()
        return int(row[0])

    async def claim_links(self, links: Collection[Link], contents: Collection[tuple[str, str]]) -> None:
        """Do nothing: there is one writer at a time."""

    async def claim(self, components: Collection[int], node_ids: Collection[int] = ()) -> bool:
        """Do nothing: there is one writer at a time."""
        del components, node_ids
        return False

    async def rows(self, keys: Collection[Key]) -> Sequence[StoredRow]:
        """Return the records that are there."""
        cursor = self.connection.execute(
            f"SELECT {_ROW} FROM json_each(?) j CROSS JOIN identity_records r ON r.key = j.value "
            "LEFT JOIN identity_nodes n ON n.id = r.node",
            as_json(keys),
        )
        return list(map(StoredRow._make, cursor))

    async def rows_of_scope(self, prefix: Key, partition: int) -> Sequence[StoredRow]:
        """Return the records whose keys begin with `prefix`, that hold something, and that came by a partition."""
        cursor = self.connection.execute(
            f"SELECT {_ROW} FROM identity_records r LEFT JOIN identity_nodes n ON n.id = r.node "
            "WHERE r.key >= ? AND r.key < ? AND r.partition = ? AND coalesce(n.text, r.aside) IS NOT NULL",
            (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1), partition),
        )
        return list(map(StoredRow._make, cursor))

    async def truncations(self, partition: int) -> dict[Scope, str]:
        """Return the newest truncation of every scope in a partition."""
        cursor = self.connection.execute(
            "SELECT tenant, source, entity, position FROM identity_truncations WHERE partition = ?", (partition,)
        )
        return {(tenant, source, entity): position for tenant, source, entity, position in cursor}

    async def erased(self, keys: Collection[Key]) -> Mapping[str, Erased]:
        """Return the fences of erased records, by birth id."""
        if self._is_empty("identity_erased"):
            return {}
        cursor = self.connection.execute(
            "SELECT e.birth, e.place, e.position FROM json_each(?) j CROSS JOIN identity_erased e ON e.birth = j.value",
            as_json(map(birth_id, keys)),
        )
        return {birth: Erased(place, position) for birth, place, position in cursor}

    async def nodes(self, ids: Collection[int]) -> Sequence[StoredNode]:
        """Return nodes by id."""
        return self._nodes("json_each(?) j CROSS JOIN identity_nodes n ON n.id = j.value", ids)

    async def nodes_of(self, components: Collection[int]) -> Sequence[StoredNode]:
        """Return all nodes of components."""
        return self._nodes("json_each(?) j CROSS JOIN identity_nodes n ON n.component = j.value", components)

    async def lone_nodes(self, contents: Collection[tuple[str, str]]) -> Sequence[StoredNode]:
        """Return nodes that nothing links, or that are in overgrown components, by tenant and text."""
        found = self._nodes(
            "json_each(?) j CROSS JOIN identity_nodes n ON n.lone = j.value",
            {checksum(tenant, text) for tenant, text in contents},
        )
        wanted = set(contents)
        return [node for node in found if (node.tenant, node.text) in wanted]

    async def holders(self, links: Collection[Link]) -> Sequence[StoredNode]:
        """Return all nodes that hold one of the links."""
        return self._nodes(
            "json_each(?) j CROSS JOIN identity_links l ON l.link = j.value JOIN identity_nodes n ON n.id = l.node",
            links,
        )

    def _nodes(self, tables: str, values: Collection[object]) -> list[StoredNode]:
        if not values:
            return []
        cursor = self.connection.execute(f"SELECT {_NODE} FROM {tables}", as_json(values))
        return list(map(StoredNode._make, cursor))

    async def components_of(self, links: Collection[Link]) -> Mapping[Link, int]:
        """Return the component of the holders of each link that is held, and that is not quarantined."""
        if not links:
            return {}
        # All holders of such a link are in one component, so any of them tells.
        cursor = self.connection.execute(
            "SELECT j.value, (SELECT n.component FROM identity_links l JOIN identity_nodes n ON n.id = l.node "
            "WHERE l.link = j.value LIMIT 1) FROM json_each(?) j",
            as_json(links),
        )
        return {link: component for link, component in cursor if component is not None}

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the links that are quarantined."""
        if not links or self._is_empty("identity_crowds"):
            return {}
        cursor = self.connection.execute(
            "SELECT c.link, c.records, c.rows FROM json_each(?) j CROSS JOIN identity_crowds c ON c.link = j.value",
            as_json(links),
        )
        return {link: Crowd(records, rows) for link, records, rows in cursor}

    async def members(self, node_ids: Collection[int]) -> Sequence[tuple[int, Key, int]]:
        """Return node, key and first sighting of all rows of nodes."""
        cursor = self.connection.execute(
            "SELECT r.node, r.key, r.first_seen FROM json_each(?) j CROSS JOIN identity_records r ON r.node = j.value",
            as_json(node_ids),
        )
        return cursor.fetchall()
