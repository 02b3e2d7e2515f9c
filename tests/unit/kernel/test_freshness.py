"""Freshness: from what sources say, held back by what waits, never newer than what was applied."""

from collections.abc import Collection

from services.kernel.freshness import FreshnessTable, Sightings
from services.kernel.log import Offsets
from services.kernel.sqlite import Database


class Backlog:
    """A log whose groups are as far as the test says."""

    def __init__(self, lag: int = 0, oldest_ms: int | None = None, offsets: dict[str, Offsets] | None = None) -> None:
        self._lag, self._oldest_ms, self._offsets = lag, oldest_ms, offsets or {}

    async def lag(self, group: str, topics: Collection[str]) -> int:
        return self._lag

    async def oldest_pending_ms(self, group: str, topics: Collection[str]) -> int | None:
        return self._oldest_ms

    async def positions_of(self, group: str, topics: Collection[str]) -> Offsets:
        return self._offsets.get(group, {})


GROUPS = {"g": ("changes",)}


async def save(database: Database, table: FreshnessTable, *noted: tuple[str, int, str]) -> None:
    sightings = Sightings()
    for source, ms, position in noted:
        if position == "heartbeat":
            sightings.note_heartbeat("", source, ms)
        else:
            sightings.note("", source, ms, position)
    async with database.transaction():
        table.save(sightings)


async def test_the_newest_event_and_heartbeat_of_each_source_count(database: Database) -> None:
    table = FreshnessTable(database, "graph")
    await save(database, table, ("crm", 5_000, "p5"), ("crm", 3_000, "p3"), ("web", 1_000, "w1"))
    await save(database, table, ("crm", 4_000, "p4"), ("crm", 9_000, "heartbeat"), ("web", 2_000, "w2"))
    await save(database, table, ("crm", 8_000, "heartbeat"))
    report = await table.report("", Backlog(), GROUPS)
    assert [(s.source, s.as_of.ToMilliseconds(), s.position) for s in report.sources] == [
        ("crm", 9_000, "p5"), ("web", 2_000, "w2"),
    ]  # fmt: skip
    assert report.sources[0].heartbeat_at.ToMilliseconds() == 9_000
    assert not report.sources[1].HasField("heartbeat_at")


async def test_what_waits_holds_it_back(database: Database) -> None:
    table = FreshnessTable(database, "graph")
    await save(database, table, ("crm", 9_000, "p9"), ("web", 4_000, "w4"))
    report = await table.report("", Backlog(lag=3, oldest_ms=6_000), GROUPS)
    assert report.behind == 3
    assert [s.as_of.ToMilliseconds() for s in report.sources] == [6_000, 4_000]


async def test_components_and_tenants_do_not_see_one_another(database: Database) -> None:
    graph, profile = FreshnessTable(database, "graph"), FreshnessTable(database, "profile")
    await save(database, graph, ("crm", 1_000, "p1"))
    assert graph.read("default")
    assert not graph.read("acme")
    assert not profile.read("")
    async with database.transaction():
        graph.reset()
    assert not graph.read("")


async def test_applied_is_what_every_group_has_passed(database: Database) -> None:
    table = FreshnessTable(database, "graph")
    backlog = Backlog(offsets={"a": {("t", 0): 5, ("t", 1): 2}, "b": {("t", 0): 3}})
    report = await table.report("", backlog, {"a": ("t",), "b": ("t",)})
    assert [(place.topic, place.partition, place.offset) for place in report.applied.offsets] == [
        ("t", 0, 3),
        ("t", 1, 2),
    ]
