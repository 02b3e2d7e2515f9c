"""What happens to the graph in Neo4j as a whole: it is emptied, seeded, hashed, and worked out anew.

A large graph cannot be emptied in one transaction. So until it is empty and seeded, it is not `ready`: no batch begins,
and whoever starts while the one that empties it has died begins again. Nobody else does as long as that one lives.
"""

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import structlog

from services.identity_graph.consumer import GROUP
from services.identity_graph.model import Key, birth_id
from services.identity_graph.neo4j_client import Neo4j, Unit, table
from services.identity_graph.neo4j_schema import FIRST, GRAPH, STATEMENTS, lane_of
from services.identity_graph.ports import Told
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.hashing import state_hash
from services.kernel.retry import backoff_s
from services.kernel.sqlite import Database

TOGETHER = 5_000  # nodes in one transaction, or in one answer
LEASE_MS = 60_000
_MODULUS = 1 << 256
_SETTINGS = "MATCH (s:IdentitySettings {name: 'settings'})"

log = structlog.get_logger(__name__)


class Neo4jLifecycle:
    """See `ports.GraphLife`.

    Args:
        neo4j: the server.
        database: the local database, in whose unit of work a rebuild begins.
        partitions: the number of partitions of the topic `changes`.
    """

    def __init__(self, neo4j: Neo4j, database: Database, partitions: Callable[[], int]) -> None:
        self._neo4j, self._database, self._partitions = neo4j, database, partitions
        self._name = uuid.uuid4().hex
        self._opening: asyncio.Task[None] | None = None
        self._is_rebuilt = False  # between the beginning of a rebuild and its end

    async def start(self) -> None:
        """Make constraints and indexes."""
        for statement in (*STATEMENTS, *FIRST):
            await self._neo4j.ask(statement)
        await self._neo4j.ask("CALL db.awaitIndexes(300)")

    async def is_whole(self) -> bool:
        """Tell whether batches can begin, or could soon: a rebuild that was begun here is seeded just now."""
        return self._is_rebuilt or bool((await self._neo4j.ask(f"{_SETTINGS} RETURN s.ready"))[0][0])

    async def close(self) -> None:
        """Close all connections."""
        if self._opening is not None:
            self._opening.cancel()
        await self._neo4j.close()

    # Emptying ---------------------------------------------------------------------------------------------------

    async def reset(self) -> None:
        """Forget everything but the fences of erasures and who was somebody; once the unit of work ends, go on."""
        self._is_rebuilt = True
        self._database.unit.on_rollback.append(self._give_up)
        await self._empty()
        self._database.unit.on_commit.append(self._open_later)

    def _give_up(self) -> None:
        self._is_rebuilt = False

    def _open_later(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open_surely())

    async def _open_surely(self) -> None:
        attempt = 0
        while True:
            try:
                await self._open()
            except UnavailableError as error:
                attempt += 1
                log.warning("identity.opens_again", error=str(error))
                await asyncio.sleep(backoff_s(attempt, base_s=0.1, cap_s=5.0))
            else:
                self._is_rebuilt = False
                return

    async def _open(self, **settings: str) -> None:
        """Let batches begin."""
        await self._neo4j.ask(f"{_SETTINGS} SET s.ready = true, s.busy_until = null, s += $more", more=settings)

    async def _empty(self, *, remembered: bool = False) -> None:
        """Let no batch begin any more, send the groups back to the beginning, and remove the graph.

        Args:
            remembered: whether it is remembered who was somebody, and when.
        """
        await self._stay_busy()
        async with self._neo4j.unit() as unit:  # what is in hand has come to its end, or to nothing
            await self._claim_all(unit)
            await unit.run(f"{_SETTINGS} SET s.ready = null")
            await unit.run("MATCH (lane:IdentityLane) SET lane.next_offset = 0, lane.outputs = null")
        if remembered:
            await self._in_parts(
                "MATCH (r:IdentityRecord) WHERE r.key > $after WITH r ORDER BY r.key LIMIT $count "
                "OPTIONAL MATCH (r)-[:HOLDS]->(n:IdentityContent) "
                "FOREACH (_ IN CASE WHEN n IS NULL THEN [] ELSE [1] END | MERGE (g:IdentityGhost {key: r.key}) "
                "ON CREATE SET g.first_seen = r.first_seen SET g.generation = n.generation) RETURN max(r.key)"
            )
        for label in (*GRAPH, "IdentitySource", "IdentityErasure", "IdentityAnswer"):
            kept = "WHERE n.id <> 0" if label == "IdentityComponent" else ""
            while (await self._neo4j.ask(
                f"MATCH (n:{label}) {kept} WITH n LIMIT {TOGETHER} DETACH DELETE n RETURN count(*)"
            ))[0][0]:  # fmt: skip
                await self._stay_busy()

    async def _in_parts(self, query: str) -> None:
        """Run a statement over all records, in the order of their keys."""
        after: str | None = ""
        while after is not None:
            after = (await self._neo4j.ask(query, after=after, count=TOGETHER))[0][0]
            await self._stay_busy()

    async def _stay_busy(self) -> None:
        """Take, or keep, the right to empty the graph; raises UnavailableError when somebody else has it."""
        taken = await self._neo4j.ask(
            f"{_SETTINGS} SET s.locked = true WITH s WHERE coalesce(s.busy_until, 0) < timestamp() OR s.busy = $name "
            "SET s.busy = $name, s.busy_until = timestamp() + $lease_ms RETURN s.busy",
            name=self._name,
            lease_ms=LEASE_MS,
        )
        if not taken:
            raise UnavailableError("another worker is making the identity graph again: wait for it to end")

    async def _rest(self) -> None:
        """Leave the right to empty the graph to others, where that can be said."""
        with contextlib.suppress(UnavailableError):
            await self._neo4j.ask(f"{_SETTINGS} WHERE s.busy = $name SET s.busy_until = null", name=self._name)

    async def _claim_all(self, unit: Unit) -> None:
        """Wait until no partition is being worked on, and keep it so for the length of a unit of work."""
        names = [lane_of(GROUP, topics.CHANGES, partition) for partition in range(self._partitions())]
        await unit.run(
            "UNWIND $names AS name MERGE (lane:IdentityLane {name: name}) SET lane.locked = true", names=names
        )

    async def seed(self, rows: Iterable[Told]) -> None:
        """Take first sightings over from the service's own events, before a rebuild."""
        newest = {row.key: row for row in rows}
        await self._neo4j.ask(
            "UNWIND $keys AS key MATCH (r:IdentityRecord {key: key}) DELETE r",
            keys=[row.key for row in newest.values() if row.first_seen is None],
        )
        await self._neo4j.ask(
            "UNWIND $rows AS row MERGE (r:IdentityRecord {key: row[0]}) ON CREATE SET r.birth = row[1], "
            "r.partition = 0, r.place = -1, r.position = '' SET r.first_seen = row[2], "
            "r.generation = CASE WHEN row[3] > coalesce(r.generation, 0) THEN row[3] ELSE r.generation END",
            rows=[
                [row.key, birth_id(row.key), row.first_seen, row.generation]
                for row in newest.values()
                if row.first_seen is not None
            ],
        )
        await self._stay_busy()

    # Settings ---------------------------------------------------------------------------------------------------

    async def fingerprint(self) -> str | None:
        """Return the fingerprint of the settings that the graph was worked out by; None when it never was."""
        known: str | None = (await self._neo4j.ask(f"{_SETTINGS} RETURN s.fingerprint"))[0][0]
        return known

    async def renew(self, fingerprint: str, told: AsyncIterator[Sequence[Told]]) -> None:
        """Keep the settings' fingerprint, and begin with an empty graph, but remember who was somebody, and when."""
        await self._stay_busy()
        try:
            found = await self._neo4j.ask(f"{_SETTINGS} RETURN s.ready, s.fingerprint")
            if found != [[True, fingerprint]]:  # else another worker that started with this one was faster
                await self._empty(remembered=True)
                async for rows in told:
                    await self.seed(rows)
            await self._open(fingerprint=fingerprint)
        except BaseException:
            await self._rest()
            raise

    async def ghosts(self) -> tuple[int, Sequence[tuple[Key, int]]]:
        """Return a generation, and key and first sighting of those who have not come back since it was emptied."""
        async with self._neo4j.unit() as unit:
            if not await unit.run("MATCH (g:IdentityGhost) RETURN g.key LIMIT 1"):
                return 0, []
            await self._claim_all(unit)
            gone = await unit.run(
                "MATCH (g:IdentityGhost) OPTIONAL MATCH (r:IdentityRecord {key: g.key}) "
                "WITH g, r WHERE r IS NULL OR NOT (r)-[:HOLDS]->() "
                "RETURN g.key AS key, g.first_seen, g.generation, coalesce(r.generation, 0) ORDER BY key"
            )
            generation = 1 + max((max(before, since) for _, _, before, since in gone), default=0)
            await unit.run(
                "UNWIND $keys AS key MATCH (r:IdentityRecord {key: key}) SET r.generation = $generation",
                keys=[key for key, *_ in gone],
                generation=generation,
            )
        return generation, [(key, first_seen) for key, first_seen, *_ in gone]

    async def lay_ghosts(self) -> None:
        """Forget the ghosts: they have been told of."""
        await self._neo4j.ask("MATCH (g:IdentityGhost) DELETE g")

    # Hash -------------------------------------------------------------------------------------------------------

    async def hash(self, snapshot: sqlite3.Connection) -> str:
        """Return the hash of the graph: who is who, by what evidence, and what is quarantined."""
        del snapshot
        total = 0
        async for rows in self._rows():
            total += int(await state_hash(map(tuple, rows)), 16)  # it is a sum
        return f"{total % _MODULUS:064x}"

    async def _rows(self) -> AsyncIterator[list[list[object]]]:
        after = ""
        while rows := await self._neo4j.ask(
            "MATCH (r:IdentityRecord)-[:HOLDS]->(n:IdentityContent) WHERE r.key > $after "
            "WITH r, n ORDER BY r.key LIMIT $count "
            + table("r.key", "coalesce(n.profile, r.birth)", "n.suspect", "n.text", "n.muted", "r.first_seen"),
            after=after,
            count=TOGETHER,
        ):
            yield rows
            after = rows[-1][0]
        yield await self._neo4j.ask(
            "MATCH (i:IdentityLink) WHERE i.records IS NOT NULL " + table("i.link", "i.records", "i.rows")
        )
