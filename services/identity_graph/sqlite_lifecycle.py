"""What happens to the graph as a whole: it is emptied, seeded, hashed, and worked out anew."""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence

from services.identity_graph.model import Key, birth_id
from services.identity_graph.ports import Told
from services.identity_graph.sqlite_erasures import SqliteErasures
from services.identity_graph.sqlite_reads import SqliteReads
from services.kernel.freshness import FreshnessTable
from services.kernel.hashing import state_hash
from services.kernel.sqlite import Database


class SqliteLifecycle(SqliteReads):
    """See `ports.GraphLife`; everything happens in the open unit of work of the database."""

    def __init__(self, database: Database, erasures: SqliteErasures, freshness: FreshnessTable) -> None:
        super().__init__(database)
        self._erasures, self._freshness = erasures, freshness

    async def start(self) -> None:
        """Do nothing: the tables are there."""

    async def is_whole(self) -> bool:
        """Return True: the tables are emptied in one transaction with the log."""
        return True

    async def close(self) -> None:
        """Do nothing: the database is everybody's."""

    async def reset(self) -> None:
        """Forget everything but the fences of erasures and the numbers that must go on growing."""
        for table in ("records", "nodes", "links", "crowds", "truncations", "buried"):
            self.connection.execute(f"DELETE FROM identity_{table}")
        await self._erasures.reset()
        self._freshness.reset()

    async def seed(self, rows: Iterable[Told]) -> None:
        """Take first sightings over from the service's own events, before a rebuild."""
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

    async def fingerprint(self) -> str | None:
        """Return the fingerprint of the settings that the graph was worked out by; None when it never was."""
        row = self.connection.execute("SELECT fingerprint FROM identity_settings").fetchone()
        return None if row is None else str(row[0])

    async def renew(self, fingerprint: str, told: AsyncIterator[Sequence[Told]]) -> None:
        """Keep the settings' fingerprint; where there was another, empty the graph, but remember who was somebody."""
        del told  # first sightings stay here
        run = self.connection.execute
        if await self.fingerprint() is not None:
            run(
                "INSERT OR IGNORE INTO identity_ghosts "
                "SELECT key, first_seen FROM identity_records WHERE node IS NOT NULL"
            )
            run("UPDATE identity_records SET node=NULL, place=-1, position='', carried=NULL, buried=NULL, aside=NULL")
            for table in ("nodes", "links", "crowds", "truncations", "buried"):
                run(f"DELETE FROM identity_{table}")
        run("DELETE FROM identity_settings")
        run("INSERT INTO identity_settings VALUES (?)", (fingerprint,))

    async def ghosts(self) -> tuple[int, Sequence[tuple[Key, int]]]:
        """Return a generation, and key and first sighting of those who have not come back since it was emptied."""
        gone = self.connection.execute(
            "SELECT key, first_seen FROM identity_ghosts WHERE key NOT IN "
            "(SELECT key FROM identity_records WHERE node IS NOT NULL) ORDER BY key"
        ).fetchall()
        generation = await self.generation()
        self.connection.execute("UPDATE identity_counters SET value=? WHERE name='generation'", (generation,))
        return generation, gone

    async def lay_ghosts(self) -> None:
        """Forget the ghosts: they have been told of."""
        self.connection.execute("DELETE FROM identity_ghosts")

    async def hash(self, snapshot: sqlite3.Connection) -> str:
        """Return the hash of the graph: who is who, by what evidence, and what is quarantined."""
        records = snapshot.execute(
            "SELECT r.key, coalesce(n.profile, r.birth), n.suspect, n.text, n.muted, r.first_seen "
            "FROM identity_records r JOIN identity_nodes n ON n.id = r.node"
        )
        return await state_hash(itertools.chain(records, snapshot.execute("SELECT * FROM identity_crowds")))
