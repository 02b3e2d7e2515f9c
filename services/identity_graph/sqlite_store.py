"""The identity graph in SQLite, the embedded adapter of `ports.GraphStore`."""

import itertools
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import orjson

from services.identity_graph.clustering import Outcome
from services.identity_graph.model import (
    LINK_SEPARATOR,
    Crowd,
    Erased,
    Key,
    Link,
    Node,
    Row,
    Scope,
    StoredNode,
    StoredRow,
    WorkingSet,
    birth_id,
    buried,
)
from services.kernel.hashing import state_hash
from services.kernel.sqlite import Database

SCHEMA = (
    """CREATE TABLE identity_records (
         id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, birth TEXT NOT NULL, partition INTEGER NOT NULL,
         place INTEGER NOT NULL, position TEXT NOT NULL, first_seen INTEGER NOT NULL, node INTEGER, carried TEXT,
         buried TEXT)""",
    "CREATE INDEX identity_records_birth ON identity_records (birth)",
    "CREATE INDEX identity_records_node ON identity_records (node) WHERE node IS NOT NULL",
    """CREATE TABLE identity_nodes (
         id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, text TEXT NOT NULL, links TEXT NOT NULL,
         rows INTEGER NOT NULL, first_seen INTEGER NOT NULL, first_key TEXT NOT NULL, component INTEGER, profile TEXT,
         suspect INTEGER NOT NULL, muted TEXT, lone INTEGER)""",
    "CREATE INDEX identity_nodes_component ON identity_nodes (component) WHERE component IS NOT NULL",
    # A node that stands alone is found by a checksum of what it holds; the others are found by their links.
    "CREATE INDEX identity_nodes_lone ON identity_nodes (lone) WHERE lone IS NOT NULL",
    "CREATE TABLE identity_links (link TEXT, node INTEGER, PRIMARY KEY (link, node)) WITHOUT ROWID",
    """CREATE TABLE identity_crowds (
         link TEXT PRIMARY KEY, records INTEGER NOT NULL, rows INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE identity_truncations (
         tenant TEXT, source TEXT, entity TEXT, partition INTEGER, position TEXT NOT NULL,
         PRIMARY KEY (partition, tenant, source, entity)) WITHOUT ROWID""",
    # Records that are gone, by digests of what they held: for erasures.
    "CREATE TABLE identity_buried (digest TEXT, record INTEGER, PRIMARY KEY (digest, record)) WITHOUT ROWID",
    """CREATE TABLE identity_erased (
         birth TEXT PRIMARY KEY, place INTEGER NOT NULL, position TEXT NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE identity_counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO identity_counters VALUES ('generation', 0), ('node', 0)",
    "CREATE TABLE identity_settings (fingerprint TEXT)",
    # Records that were told to be somebody's before everything was worked out anew.
    "CREATE TABLE identity_ghosts (key TEXT PRIMARY KEY, first_seen INTEGER NOT NULL) WITHOUT ROWID",
)
_ROW = "r.id, r.key, r.partition, r.place, r.position, r.first_seen, r.node, n.text, r.carried, r.buried"
_NODE = "n.id, n.tenant, n.text, n.links, n.rows, n.first_seen, n.first_key, n.component, n.profile, n.suspect, n.muted"


def checksum(tenant: str, text: str) -> int:
    """Return the checksum by which a node that nothing links is found."""
    return zlib.crc32(text.encode(), zlib.crc32(tenant.encode()))


def _json(values: Iterable[object]) -> tuple[str]:
    return (orjson.dumps(list(values)).decode(),)


class SqliteGraph:
    """See `ports.GraphStore`; everything happens on the writer's connection, in the open unit of work."""

    def __init__(self, database: Database) -> None:
        database.migrate("identity_graph", SCHEMA)
        self._connection: sqlite3.Connection = database.writer

    def _is_empty(self, table: str) -> bool:
        return self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None

    async def counters(self) -> tuple[int, int]:
        """Return the next generation of assignments and the next free id of a node."""
        values = dict(self._connection.execute("SELECT name, value FROM identity_counters"))
        return values["generation"] + 1, values["node"] + 1

    async def rows(self, keys: Collection[Key]) -> Sequence[StoredRow]:
        """Return the records that are there."""
        cursor = self._connection.execute(
            f"SELECT {_ROW} FROM json_each(?) j CROSS JOIN identity_records r ON r.key = j.value "
            "LEFT JOIN identity_nodes n ON n.id = r.node",
            _json(keys),
        )
        return list(map(StoredRow._make, cursor))

    async def rows_of_scope(self, prefix: Key, partition: int) -> Sequence[StoredRow]:
        """Return the records in the graph whose keys begin with `prefix` and which came by a partition."""
        cursor = self._connection.execute(
            f"SELECT {_ROW} FROM identity_records r JOIN identity_nodes n ON n.id = r.node "
            "WHERE r.key >= ? AND r.key < ? AND r.partition = ?",
            (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1), partition),
        )
        return list(map(StoredRow._make, cursor))

    async def truncations(self, partition: int) -> dict[Scope, str]:
        """Return the newest truncation of every scope in a partition."""
        cursor = self._connection.execute(
            "SELECT tenant, source, entity, position FROM identity_truncations WHERE partition = ?", (partition,)
        )
        return {(tenant, source, entity): position for tenant, source, entity, position in cursor}

    async def erased(self, keys: Collection[Key]) -> Mapping[str, Erased]:
        """Return the fences of erased records, by birth id."""
        if self._is_empty("identity_erased"):
            return {}
        cursor = self._connection.execute(
            "SELECT e.birth, e.place, e.position FROM json_each(?) j CROSS JOIN identity_erased e ON e.birth = j.value",
            _json(map(birth_id, keys)),
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
        cursor = self._connection.execute(f"SELECT {_NODE} FROM {tables}", _json(values))
        return list(map(StoredNode._make, cursor))

    async def components_of(self, links: Collection[Link]) -> Mapping[Link, int]:
        """Return the component of the holders of each link that is held, and that is not quarantined."""
        if not links:
            return {}
        # All holders of such a link are in one component, so any of them tells.
        cursor = self._connection.execute(
            "SELECT j.value, (SELECT n.component FROM identity_links l JOIN identity_nodes n ON n.id = l.node "
            "WHERE l.link = j.value LIMIT 1) FROM json_each(?) j",
            _json(links),
        )
        return {link: component for link, component in cursor if component is not None}

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the links that are quarantined."""
        if not links or self._is_empty("identity_crowds"):
            return {}
        cursor = self._connection.execute(
            "SELECT c.link, c.records, c.rows FROM json_each(?) j CROSS JOIN identity_crowds c ON c.link = j.value",
            _json(links),
        )
        return {link: Crowd(records, rows) for link, records, rows in cursor}

    async def members(self, node_ids: Collection[int]) -> Sequence[tuple[int, Key, int]]:
        """Return node, key and first sighting of all rows of nodes."""
        cursor = self._connection.execute(
            "SELECT r.node, r.key, r.first_seen FROM json_each(?) j CROSS JOIN identity_records r ON r.node = j.value",
            _json(node_ids),
        )
        return cursor.fetchall()

    async def write(self, state: WorkingSet, outcome: Outcome) -> None:
        """Make a batch's outcome last, within the open unit of work."""
        self._write_nodes(outcome.nodes)
        self._write_rows(row for row in state.rows.values() if row.touched)
        run = self._connection.executemany
        run(
            "INSERT INTO identity_crowds VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET records=excluded.records, "
            "rows=excluded.rows",
            [(link, *crowd) for link, crowd in outcome.crowds.items() if crowd is not None],
        )
        run("DELETE FROM identity_crowds WHERE link=?", [(link,) for link in outcome.released])
        run(
            "INSERT INTO identity_truncations VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET position=excluded.position",
            [(*scope, partition, state.truncated[scope]) for scope, partition in state.truncations.items()],
        )
        run(
            "UPDATE identity_counters SET value=? WHERE name=?",
            [(state.generation, "generation"), (state.next_id - 1, "node")],
        )

    async def forget(self, keys: Collection[Key], fences: Mapping[str, Erased]) -> None:
        """Remove what is left of records that are out of the graph, and keep the fences, by birth id."""
        run = self._connection.executemany
        run(
            "DELETE FROM identity_buried WHERE (digest, record) IN (SELECT d.value, r.id FROM identity_records r, "
            "json_each(r.buried) d WHERE r.key=?)",
            [(key,) for key in keys],
        )
        run("DELETE FROM identity_records WHERE key=?", [(key,) for key in keys])
        run(
            "INSERT INTO identity_erased VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET place=max(place, excluded.place), "
            "position=excluded.position",
            [(birth, *fence) for birth, fence in fences.items()],
        )

    async def remains(self, rows: Collection[Row], nodes: Collection[Node]) -> dict[str, int]:
        """Search for what is left of records and nodes that are gone; return how much there is, by kind."""
        keys, ids = _json(row.key for row in rows), _json(row.stored.id for row in rows if row.stored)
        node_ids = _json(node.id for node in nodes)
        links = _json({link for node in nodes for link in node.content.links})
        digests = _json({buried(link) for node in nodes for link in node.content.links})
        among = "IN (SELECT value FROM json_each(?))"
        searches = {
            "records": (f"identity_records WHERE key {among}", keys),
            "contents": (f"identity_nodes WHERE id {among}", node_ids),
            "identifiers": (f"identity_links WHERE link {among} AND node {among}", links + node_ids),
            "former records": (f"identity_buried WHERE digest {among} AND record {among}", digests + ids),
        }
        return {
            name: self._connection.execute(f"SELECT count(*) FROM {where}", parameters).fetchone()[0]
            for name, (where, parameters) in searches.items()
        }

    async def reset(self) -> None:
        """Forget everything but the fences of erasures and the numbers that must go on growing, in the open unit."""
        for table in ("records", "nodes", "links", "crowds", "truncations", "buried"):
            self._connection.execute(f"DELETE FROM identity_{table}")

    async def fingerprint(self) -> str | None:
        """Return the fingerprint of the settings that the graph was worked out by."""
        row = self._connection.execute("SELECT fingerprint FROM identity_settings").fetchone()
        return None if row is None else str(row[0])

    async def set_fingerprint(self, fingerprint: str) -> None:
        """Keep the fingerprint of the settings, within the open unit of work."""
        self._connection.execute("DELETE FROM identity_settings")
        self._connection.execute("INSERT INTO identity_settings VALUES (?)", (fingerprint,))

    async def start_over(self) -> None:
        """Empty the graph, but remember first sightings and who was told to be somebody, within the open unit."""
        run = self._connection.execute
        run("INSERT OR IGNORE INTO identity_ghosts SELECT key, first_seen FROM identity_records WHERE node IS NOT NULL")
        run("UPDATE identity_records SET node=NULL, place=-1, position='', carried=NULL, buried=NULL")
        for table in ("nodes", "links", "crowds", "truncations", "buried"):
            run(f"DELETE FROM identity_{table}")

    async def lay_ghosts(self) -> tuple[int, list[tuple[Key, int]]]:
        """Forget the ghosts, within the open unit of work.

        Returns:
            A generation, and key and first sighting of those that did not come back into the graph.
        """
        run = self._connection.execute
        generation, _ = await self.counters()
        run("UPDATE identity_counters SET value=? WHERE name='generation'", (generation,))
        gone = run(
            "SELECT key, first_seen FROM identity_ghosts WHERE key NOT IN "
            "(SELECT key FROM identity_records WHERE node IS NOT NULL) ORDER BY key"
        ).fetchall()
        run("DELETE FROM identity_ghosts")
        return generation, gone

    async def seed(self, rows: Iterable[tuple[Key, int | None, int]]) -> None:
        """Take first sightings over from the service's own events, before a rebuild, within the open unit of work.

        Args:
            rows: record, first sighting (None: the record was erased), and the generation of the assignment.
        """
        for key, first_seen, generation in rows:
            if first_seen is None:
                self._connection.execute("DELETE FROM identity_records WHERE key=?", (key,))
            else:
                self._connection.execute(
                    "INSERT INTO identity_records (key, birth, partition, place, position, first_seen) "
                    "VALUES (?, ?, 0, -1, '', ?) ON CONFLICT (key) DO UPDATE SET first_seen=excluded.first_seen",
                    (key, birth_id(key), first_seen),
                )
            self._connection.execute(
                "UPDATE identity_counters SET value=max(value, ?) WHERE name='generation'", (generation,)
            )

    def _write_nodes(self, nodes: Iterable[Node]) -> None:
        new, changed, gone = [], [], []
        for node in nodes:
            if not node.before.rows:
                if node.rows:
                    new.append(node)
            elif not node.rows:
                gone.append(node)
            elif (node.rows, node.first, node.component, node.standing) != node.before:
                changed.append(node)
        run = self._connection.executemany
        if new:
            run(
                "INSERT INTO identity_nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (n.id, n.content.tenant, n.content.text, LINK_SEPARATOR.join(n.content.links), *_fields(n))
                    for n in new
                ],
            )
            run(
                "INSERT INTO identity_links VALUES (?, ?)",
                sorted((link, n.id) for n in new for link in n.content.links),
            )
        if changed:
            run(
                "UPDATE identity_nodes SET rows=?, first_seen=?, first_key=?, component=?, profile=?, suspect=?, "
                "muted=?, lone=? WHERE id=?",
                [(*_fields(n), n.id) for n in changed],
            )
        if gone:
            run("DELETE FROM identity_nodes WHERE id=?", [(n.id,) for n in gone])
            run(
                "DELETE FROM identity_links WHERE link=? AND node=?",
                [(link, n.id) for n in gone for link in n.content.links],
            )

    def _write_rows(self, rows: Iterable[Row]) -> None:
        new: list[Row] = []
        moved: list[tuple[Row, StoredRow]] = []
        same: list[tuple[int, str, int]] = []
        for row in rows:
            if row.stored is None:
                new.append(row)
            elif row.moves or row.sighted or row.carried:
                moved.append((row, row.stored))
            else:
                same.append((row.offset, row.position, row.stored.id))
        run = self._connection.executemany
        if new:
            run(
                "INSERT INTO identity_records (key, birth, partition, place, position, first_seen, node, carried, "
                "buried) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(row.key, birth_id(row.key), row.partition, *_row_fields(row)) for row in new],
            )
        if moved:
            run(
                "UPDATE identity_records SET place=?, position=?, first_seen=?, node=?, carried=?, buried=? WHERE id=?",
                [(*_row_fields(row), stored.id) for row, stored in moved],
            )
            risen = [
                (digest, stored.id) for row, stored in moved if stored.buried and not row.buried
                for digest in orjson.loads(stored.buried)
            ]  # fmt: skip
            run("DELETE FROM identity_buried WHERE digest=? AND record=?", risen)
            run(
                "INSERT OR IGNORE INTO identity_buried VALUES (?, ?)",
                [(digest, stored.id) for row, stored in moved for digest in row.buried],
            )
        if same:  # the most frequent change of all: nothing that matters here
            run("UPDATE identity_records SET place=?, position=?, carried=NULL WHERE id=?", same)


async def hash_of(connection: sqlite3.Connection) -> str:
    """Return the hash of the graph: who is who, by what evidence, and what is quarantined.

    It is a function of the records that are there now, whatever came and went before: positions, generations, names of
    nodes and what is kept of records that are gone do not count.
    """
    records = connection.execute(
        "SELECT r.key, coalesce(n.profile, r.birth), n.suspect, n.text, n.muted, r.first_seen "
        "FROM identity_records r JOIN identity_nodes n ON n.id = r.node"
    )
    return await state_hash(itertools.chain(records, connection.execute("SELECT * FROM identity_crowds")))


def _fields(node: Node) -> tuple[object, ...]:
    profile, suspect, muted = node.standing
    lone = None if node.component else checksum(node.content.tenant, node.content.text)
    return (
        node.rows, *node.first, node.component, profile, suspect, orjson.dumps(muted).decode() if muted else None, lone
    )  # fmt: skip


def _row_fields(row: Row) -> tuple[object, ...]:
    node_id = None
    if row.node is not None:
        node_id = row.node.id
    elif row.text is not None and row.stored is not None:
        node_id = row.stored.node_id
    return (
        row.offset, row.position, row.first_seen, node_id, orjson.dumps(row.carried).decode() if row.carried else None,
        orjson.dumps(row.buried).decode() if row.buried else None,
    )  # fmt: skip
