"""How far the graph in Neo4j is, and what is still to be published: kept in the same transaction as the graph."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.identity_graph.neo4j_client import Neo4j, Rows, Unit
from services.identity_graph.neo4j_outbox import as_of_now
from services.identity_graph.neo4j_schema import lane_of
from services.kernel.errors import UnavailableError
from services.kernel.log import PartitionLostError, Progress, Tally
from services.kernel.outbox import decode_messages, encode_messages

_RECORD = """
    MERGE (lane:IdentityLane {name: $name}) SET lane.locked = true
    WITH lane MATCH (settings:IdentitySettings {name: 'settings'})
    WITH lane, settings.ready AS ready, coalesce(lane.next_offset, 0) = $start AS is_next
    FOREACH (_ IN CASE WHEN ready AND is_next THEN [1] ELSE [] END |
      SET lane.start = $start, lane.next_offset = $next_offset, lane.outputs = $outputs, lane.tally = $tally)
    RETURN ready, is_next
    """
_PENDING = """
    MATCH (lane:IdentityLane {name: $name}) WHERE lane.next_offset > 0
    RETURN lane.start, lane.next_offset, lane.outputs, lane.tally
    """


class Lanes(NamedTuple):
    """Lanes that are claimed: per name the next free id, where it has any; and whether the graph holds rare things."""

    next_ids: dict[str, int | None]
    has_erased: bool
    has_truncations: bool


class Neo4jLedger:
    """See `services.kernel.log.Ledger`: a batch is one transaction, in which its store reads and writes, too."""

    def __init__(self, neo4j: Neo4j) -> None:
        self._neo4j = neo4j
        self._open: Unit | None = None
        self.seen_generation = 0  # the highest of what has been read in the open unit
        self.claimed: set[tuple[str, int]] = set()  # in the open unit

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Open the unit of work in which a batch is loaded, decided and saved."""
        async with self._neo4j.unit() as unit:
            self._open, self.seen_generation, self.claimed = unit, 0, set()
            try:
                yield
            finally:
                self._open = None

    async def run(self, query: str, **parameters: object) -> Rows:
        """Run a statement in the open unit, and return all its rows."""
        if self._open is None:
            raise RuntimeError("no unit of work is open")
        return await self._open.run(query, **parameters)

    async def claim_lanes(self, names: Sequence[str]) -> Lanes:
        """Keep others from working on partitions.

        Raises:
            UnavailableError: the graph is being emptied.
        """
        rows = await self.run(
            """
            UNWIND $names AS name MERGE (lane:IdentityLane {name: name}) SET lane.locked = true
            WITH collect([lane.name, lane.next_id]) AS lanes
            MATCH (settings:IdentitySettings {name: 'settings'})
            RETURN lanes, settings.ready, EXISTS { (:IdentityErased) }, EXISTS { (:IdentityTruncation) }
            """,
            names=sorted(names),
        )
        lanes, ready, has_erased, has_truncations = rows[0]
        _check(ready)
        return Lanes(dict(lanes), has_erased, has_truncations)

    async def record(self, progress: Progress) -> None:
        """Keep the progress, within the open unit.

        Raises:
            PartitionLostError: the store does not stand where the batch began.
            UnavailableError: the graph is being emptied.
        """
        rows = await self.run(
            _RECORD,
            name=lane_of(*progress[:3]),
            start=progress.start,
            next_offset=progress.next_offset,
            outputs=encode_messages(progress.outputs),
            tally=list(progress.tally),
        )
        ready, is_next = rows[0]
        _check(ready)
        if not is_next:
            raise PartitionLostError(f"{progress.group} has done {progress.topic}/{progress.partition} already")

    async def pending(self, group: str, topic: str, partition: int) -> Progress | None:
        """Return the newest progress of a partition, its assignments as they are now; None if there is none."""
        rows = await self._neo4j.ask(_PENDING, name=lane_of(group, topic, partition))
        if not rows:
            return None
        start, next_offset, outputs, tally = rows[0]
        messages = await as_of_now(self._neo4j, decode_messages(bytes(outputs)))
        return Progress(group, topic, partition, start, next_offset, messages, Tally(*tally))


def _check(ready: object) -> None:
    if not ready:
        raise UnavailableError("the identity graph is being emptied, to be made again: wait for that to end")
