"""What happens to the graph as a whole: it is emptied, seeded, hashed, and worked out anew."""

import itertools
import sqlite3
from collections.abc import Iterable

from services.identity_graph.model import Key, birth_id
from services.identity_graph.sqlite_reads import SqliteReads
from services.kernel.hashing import state_hash


class SqliteLifecycle(SqliteReads):
    """The life of the graph's tables; everything happens in the open unit of work."""

    async def reset(self) -> None:
        """Forget everything but the fences of erasures and the numbers that must go on growing."""
        for table in ("records", "nodes", "links", "crowds", "truncations", "buried"):
            self.connection.execute(f"DELETE FROM identity_{table}")

    async def fingerprint(self) -> str | None:
        """Return the fingerprint of the settings that the graph was worked out by."""
        row = self.connection.execute("SELECT fingerprint FROM identity_settings").fetchone()
        return None if row is None else str(row[0])

    async def set_fingerprint(self, fingerprint: str) -> None:
        """Keep the fingerprint of the settings."""
        self.connection.execute("DELETE FROM identity_settings")
        self.connection.execute("INSERT INTO identity_settings VALUES (?)", (fingerprint,))

    async def start_over(self) -> None:
        """Empty the graph, but remember first sightings and who was told to be somebody."""
        run = self.connection.execute
        run("INSERT OR IGNORE INTO identity_ghosts SELECT key, first_seen FROM identity_records WHERE node IS NOT NULL")
        run("UPDATE identity_records SET node=NULL, place=-1, position='', carried=NULL, buried=NULL, aside=NULL")
        for table in ("nodes", "links", "crowds", "truncations", "buried"):
            run(f"DELETE FROM identity_{table}")

    async def lay_ghosts(self) -> tuple[int, list[tuple[Key, int]]]:
        """Forget the ghosts.

        Returns:
            A generation, and key and first sighting of those that did not come back into the graph.
        """
        run = self.connection.execute
        generation, _ = await self.counters()
        run("UPDATE identity_counters SET value=? WHERE name='generation'", (generation,))
        gone = run(
            "SELECT key, first_seen FROM identity_ghosts WHERE key NOT IN "
            "(SELECT key FROM identity_records WHERE node IS NOT NULL) ORDER BY key"
        ).fetchall()
        run("DELETE FROM identity_ghosts")
        return generation, gone

    async def seed(self, rows: Iterable[tuple[Key, int | None, int]]) -> None:
        """Take first sightings over from the service's own events, before a rebuild.

        Args:
            rows: record, first sighting (None: the record was erased), and the generation of the assignment.
        """
        for key, first_seen, generation in rows:
            if first_seen is None:
                self.connection.execute("DELETE FROM identity_records WHERE key=?", (key,))
            else:
                self.connection.execute(
                    "INSERT INTO identity_records (key, birth, partition, place, position, first_seen) "
                    "VALUES (?, ?, 0, -1, '', ?) ON CONFLICT (key) DO UPDATE SET first_seen=excluded.first_seen",
                    (key, birth_id(key), first_seen),
                )
            self.connection.execute(
                "UPDATE identity_counters SET value=max(value, ?) WHERE name='generation'", (generation,)
            )


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
