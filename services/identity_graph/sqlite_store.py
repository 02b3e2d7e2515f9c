"""The identity graph in SQLite, the embedded adapter of `ports.GraphStore`: what a batch writes."""

from collections.abc import Collection, Iterable, Mapping

import orjson

from services.identity_graph.clustering import Outcome
from services.identity_graph.model import Erased, Key, birth_id, buried
from services.identity_graph.sqlite_reads import SqliteReads
from services.identity_graph.sqlite_schema import as_json, checksum
from services.identity_graph.working_set import LINK_SEPARATOR, Node, Row, StoredRow, WorkingSet
from services.kernel.freshness import FreshnessTable
from services.kernel.sqlite import Database


class SqliteGraph(SqliteReads):
    """See `ports.GraphStore`."""

    def __init__(self, database: Database, freshness: FreshnessTable) -> None:
        super().__init__(database)
        self._freshness = freshness

    async def write(self, state: WorkingSet, outcome: Outcome) -> None:
        """Make a batch's outcome last, and what it tells of its sources, within the open unit of work."""
        self._write_nodes(outcome.nodes)
        self._write_rows(row for row in state.rows.values() if row.touched)
        run = self.connection.executemany
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
        self._freshness.save(state.sightings)

    async def forget(self, keys: Collection[Key], fences: Mapping[str, Erased]) -> None:
        """Remove what is left of records that are out of the graph, and keep the fences, by birth id."""
        run = self.connection.executemany
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
        keys, ids = as_json(row.key for row in rows), as_json(row.stored.id for row in rows if row.stored)
        node_ids = as_json(node.id for node in nodes)
        links = as_json({link for node in nodes for link in node.content.links})
        digests = as_json({buried(link) for node in nodes for link in node.content.links})
        among = "IN (SELECT value FROM json_each(?))"
        searches = {
            "records": (f"identity_records WHERE key {among}", keys),
            "contents": (f"identity_nodes WHERE id {among}", node_ids),
            "identifiers": (f"identity_links WHERE link {among} AND node {among}", links + node_ids),
            "former records": (f"identity_buried WHERE digest {among} AND record {among}", digests + ids),
        }
        return {
            name: self.connection.execute(f"SELECT count(*) FROM {where}", parameters).fetchone()[0]
            for name, (where, parameters) in searches.items()
        }

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
        run = self.connection.executemany
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
            elif row.moves or row.sighted or row.carried or row.stored.carried:
                moved.append((row, row.stored))
            else:
                same.append((row.offset, row.position, row.stored.id))
        run = self.connection.executemany
        if new:
            run(
                "INSERT INTO identity_records (key, birth, partition, place, position, first_seen, node, carried, "
                "buried, aside) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(row.key, birth_id(row.key), *_row_fields(row)) for row in new],
            )
        if moved:
            run(
                "UPDATE identity_records SET partition=?, place=?, position=?, first_seen=?, node=?, carried=?, "
                "buried=?, aside=? WHERE id=?",
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
            run("UPDATE identity_records SET place=?, position=? WHERE id=?", same)


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
        row.partition, row.offset, row.position, row.first_seen, node_id,
        orjson.dumps(row.carried).decode() if row.carried else None,
        orjson.dumps(row.buried).decode() if row.buried else None,
        row.aside,
    )  # fmt: skip
