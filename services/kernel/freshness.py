"""What a read model is current to, per source: the newest event and heartbeat that it has applied.

Measured from what the sources say of themselves, never from the clock of the reader of the log: a dead replicator
shows as an `as_of` that stands still. While records of the log wait to be applied, `as_of` is held back to the oldest
of them.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from headwater.common.v1 import common_pb2
from services.kernel.log import DEFAULT_TENANT, Offsets, position_of
from services.kernel.sqlite import Database

SCHEMA = (
    """CREATE TABLE freshness (
         component TEXT, tenant TEXT, source TEXT, occurred_ms INTEGER NOT NULL, heartbeat_ms INTEGER NOT NULL,
         position TEXT NOT NULL, PRIMARY KEY (component, tenant, source)) WITHOUT ROWID""",
)
Groups = Mapping[str, Collection[str]]
"""Consumer group -> the topics of it that count."""


class Backlog(Protocol):
    """What is asked of the log."""

    async def lag(self, group: str, topics: Collection[str]) -> int:
        """Return how many records the group has not passed yet."""

    async def oldest_pending_ms(self, group: str, topics: Collection[str]) -> int | None:
        """Return the event time of the oldest record that the group has not passed; None if there is none."""

    async def positions_of(self, group: str, topics: Collection[str]) -> Offsets:
        """Return where the group stands in every partition of the topics."""


class Sighting(NamedTuple):
    """The newest that is known of a source; times are milliseconds since the epoch, 0 where there is none.

    Attributes:
        occurred_ms: the newest event.
        heartbeat_ms: the newest heartbeat.
        position: where that event stands, as the source writes it.
    """

    occurred_ms: int
    heartbeat_ms: int
    position: str


class Sightings:
    """What one batch tells of its sources; part of a processor's working set."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, str], Sighting] = {}

    def note(self, tenant: str, source: str, occurred_ms: int, position: str = "") -> None:
        """Take an event of a source into account."""
        place = (tenant or DEFAULT_TENANT, source)
        known = self.newest.get(place)
        if known is None:
            self.newest[place] = Sighting(occurred_ms, 0, position)
        elif occurred_ms >= known.occurred_ms:
            self.newest[place] = Sighting(occurred_ms, known.heartbeat_ms, position)

    def note_heartbeat(self, tenant: str, source: str, heartbeat_ms: int) -> None:
        """Take a heartbeat of a source into account."""
        place = (tenant or DEFAULT_TENANT, source)
        known = self.newest.get(place, Sighting(0, 0, ""))
        self.newest[place] = known._replace(heartbeat_ms=max(known.heartbeat_ms, heartbeat_ms))


class FreshnessTable:
    """The sightings of one component, in the installation's database.

    Args:
        database: the database.
        component: whose they are, for example `profile`.
    """

    def __init__(self, database: Database, component: str) -> None:
        self._database, self._component = database, component
        database.migrate("freshness", SCHEMA)

    def save(self, sightings: Sightings) -> None:
        """Add what a batch told, in the open unit of work; older sightings change nothing."""
        self._database.writer.executemany(
            """INSERT INTO freshness VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 position=iif(excluded.occurred_ms>=max(occurred_ms, 1), excluded.position, position),
                 occurred_ms=max(occurred_ms, excluded.occurred_ms),
                 heartbeat_ms=max(heartbeat_ms, excluded.heartbeat_ms)""",
            [(self._component, *place, *newest) for place, newest in sightings.newest.items()],
        )

    def reset(self) -> None:
        """Forget everything, in the open unit of work."""
        self._database.writer.execute("DELETE FROM freshness WHERE component=?", (self._component,))

    def read(self, tenant: str) -> dict[str, Sighting]:
        """Return what is known of the sources of a tenant, by name."""
        rows = self._database.reader.execute(
            "SELECT source, occurred_ms, heartbeat_ms, position FROM freshness WHERE component=? AND tenant=?",
            (self._component, tenant or DEFAULT_TENANT),
        )
        return {source: Sighting(*fields) for source, *fields in rows}

    async def report(self, tenant: str, backlog: Backlog, groups: Groups) -> common_pb2.StoreFreshness:
        """Return what the component is current to, for a tenant.

        Args:
            tenant: whose sources; empty means the default tenant.
            backlog: the log.
            groups: everything that must have passed a record before the component shows it.
        """
        return await report(self._component, self.read(tenant), backlog, groups)


async def report(
    component: str, known: Mapping[str, Sighting], backlog: Backlog, groups: Groups
) -> common_pb2.StoreFreshness:
    """Return what a component is current to.

    Args:
        component: its name.
        known: the newest that it has applied of every source, read before this is called.
        backlog: the log.
        groups: everything that must have passed a record before the component shows it.
    """
    behind = sum([await backlog.lag(group, names) for group, names in groups.items()])
    pending = [await backlog.oldest_pending_ms(group, names) for group, names in groups.items()] if behind else []
    bound = min((ms for ms in pending if ms is not None), default=None)
    told = common_pb2.StoreFreshness(store=component, behind=behind, applied=await _applied(backlog, groups))
    for source, newest in sorted(known.items()):
        entry = told.sources.add(source=source, position=newest.position)
        as_of = max(newest.occurred_ms, newest.heartbeat_ms)
        entry.as_of.FromMilliseconds(as_of if bound is None else min(as_of, bound))
        if newest.heartbeat_ms:
            entry.heartbeat_at.FromMilliseconds(newest.heartbeat_ms)
    return told


async def _applied(backlog: Backlog, groups: Groups) -> common_pb2.Position:
    """Return how far all of the groups are."""
    reached: Offsets = {}
    for group, names in groups.items():
        for place, offset in (await backlog.positions_of(group, names)).items():
            reached[place] = min(offset, reached.get(place, offset))
    return position_of(reached)
