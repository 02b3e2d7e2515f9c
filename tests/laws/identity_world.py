"""A small world for the laws of identity: generated histories, the graph under test, and the answer from scratch."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
from hypothesis import strategies as st

from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2
from services.identity_graph.app import changes_processor, sqlite_adapters
from services.identity_graph.columns import Extractor
from services.identity_graph.matching import resolve
from services.identity_graph.model import Content, Kinds, birth_id, key_text, text_of
from services.identity_graph.ports import Adapters
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.log import Message, Progress, Record, Tally, key_of, partition_of
from services.kernel.processor import Outcome
from services.kernel.records import record_key
from services.kernel.sqlite import Database

PARTITIONS = 2
TENANT = "default"
# Limits so low that small worlds reach all of them.
SETTINGS = Settings.from_config(
    {
        "cluster_records_max": 5,
        "component_records_max": 7,
        "kinds": {
            "email": {"records_max": 3, "rows_max": 6, "values_max": 2},
            "phone": {"records_max": 3, "rows_max": 5, "values_max": 2},
            "device": {"records_max": 2, "rows_max": 3},
            "account": {"records_max": 4, "rows_max": 6},
        },
    }
)
# Limits that let components grow beyond theirs, so that they come and go.
CHAINS = Settings.from_config(
    {
        "cluster_records_max": 4,
        "component_records_max": 5,
        "kinds": {
            name: {"records_max": 5, "rows_max": 50} for name in ("email", "phone", "device", "national", "account")
        },
    }
)
Type = events_pb2.Operation


class Event(NamedTuple):
    """A change at its source: `number` is its position."""

    number: int
    operation: events_pb2.Operation.ValueType
    entity: str
    key: int
    row: dict[str, Any]
    unavailable: tuple[str, ...]
    time_ms: int
    partial: bool = False

    @property
    def record(self) -> str:
        return record_key("crm", self.entity, {"id": self.key})


class Assigned(NamedTuple):
    profile: str
    suspect: bool
    identifiers: tuple[tuple[str, str], ...]
    first_seen: int


REACHED_BY = {
    "email": st.sampled_from(["a@x.io", "b@x.io", "c@x.io", "null", None]),
    "phone": st.sampled_from(["+14155550101", "+14155550102", "1111111", None]),
}
rows = st.fixed_dictionaries(
    {},
    optional={
        **REACHED_BY,
        "device_id": st.sampled_from(["kiosk", "d2", None]),
        "ssn": st.sampled_from(["111-22-3334", "111-22-3335", None]),
        "name": st.sampled_from(["Ada", "Bob", None]),
    },
)


@st.composite
def histories(draw: st.DrawFn, *, max_size: int = 30, truncates: bool = True) -> list[Event]:
    """Histories of two entities, in the order of the source, which tells rows in one of three ways."""
    way = draw(st.sampled_from(["whole", "without what did not change", "in parts"]))
    events: list[Event] = []
    live: set[tuple[str, int]] = set()
    for number in range(draw(st.integers(1, max_size))):
        entity = draw(st.sampled_from(["leads", "customers"]))
        key = draw(st.integers(1, 6))
        time_ms = draw(st.integers(1, 9)) * 1000
        if truncates and draw(st.integers(0, 24)) == 0:
            events.append(Event(number, Type.OPERATION_TRUNCATE, entity, 0, {}, (), time_ms))
            live = {place for place in live if place[0] != entity}
        elif (entity, key) in live and draw(st.integers(0, 3)) == 0:
            events.append(Event(number, Type.OPERATION_DELETE, entity, key, {}, (), time_ms))
            live.discard((entity, key))
        else:
            row = draw(rows)
            left_out: tuple[str, ...] = ()
            known = (entity, key) in live
            short = known and way != "whole" and draw(st.booleans())
            partial = short and way == "in parts"
            if way != "whole" and not partial:  # such a source names all columns of a row
                row = {**dict.fromkeys(REACHED_BY), **row}
            if short and not partial:
                left_out = tuple(draw(st.sets(st.sampled_from(sorted(REACHED_BY)), min_size=1)))
                row = {name: value for name, value in row.items() if name not in left_out}
            operation = Type.OPERATION_UPDATE if known else Type.OPERATION_INSERT
            events.append(Event(number, operation, entity, key, {"id": key, **row}, left_out, time_ms, partial))
            live.add((entity, key))
    return events


def encode(event: Event, partitions: int = PARTITIONS) -> list[tuple[int, events_pb2.Change]]:
    """Return the change of an event, with the partitions that it goes to."""
    change = events_pb2.Change(
        tenant="", source="crm", entity=event.entity, operation=event.operation,
        position=f"pg:crm:{event.number:020d}", unavailable=event.unavailable, partial=event.partial,
    )  # fmt: skip
    change.occurred_at.FromMilliseconds(event.time_ms)
    if event.operation == Type.OPERATION_TRUNCATE:
        return [(partition, change) for partition in range(partitions)]
    change.record, change.key_json = event.record, orjson.dumps({"id": event.key}).decode()
    if event.operation != Type.OPERATION_DELETE:
        change.after_json = orjson.dumps(event.row).decode()
    return [(partition_of(key_of("", event.record), partitions), change)]


class Tables(NamedTuple):
    """What is stored.

    Attributes:
        nodes: per id its text, number of rows, first sighting and key, links as one text, and component.
        members: node, first sighting and key of every record that is in the graph.
        links: every link with each of its holders.
        crowds: what is quarantined.
        buried, dug: digest and record, by which former records are found, and as these themselves say it.
    """

    nodes: dict[int, tuple[str, int, int, str, str, int | None]]
    members: list[tuple[int, int, str]]
    links: set[tuple[str, int]]
    crowds: set[str]
    buried: set[tuple[str, str]]
    dug: set[tuple[str, str]]


class Place(Protocol):
    """Where the graph under test is."""

    @property
    def adapters(self) -> Adapters:
        """The graph."""

    def unit(self) -> AbstractAsyncContextManager[object]:
        """Open the unit of work of a batch."""

    async def record(self, progress: Progress) -> None:
        """Keep the progress of a batch."""

    async def tables(self) -> Tables:
        """Return all that is stored."""

    async def hash(self) -> str:
        """Return the hash of the graph."""

    def close(self) -> None:
        """Leave it."""


class Embedded:
    """A graph in a database of its own."""

    def __init__(self, folder: Path, kinds: Kinds) -> None:
        self._database = Database(folder)
        self.adapters = sqlite_adapters(self._database, kinds)

    def unit(self) -> AbstractAsyncContextManager[object]:
        return self._database.transaction()

    async def record(self, progress: Progress) -> None:
        """Do nothing: the log does it."""

    async def tables(self) -> Tables:
        query = self._database.writer.execute
        stored = query("SELECT buried, key FROM identity_records WHERE buried IS NOT NULL")
        for number, component, lone in query("SELECT id, component, lone FROM identity_nodes"):
            assert (lone is None) == bool(component), number
        return Tables(
            {
                number: tuple(fields)
                for number, *fields in query(
                    "SELECT id, text, rows, first_seen, first_key, links, component FROM identity_nodes"
                )
            },
            query("SELECT node, first_seen, key FROM identity_records WHERE node IS NOT NULL").fetchall(),
            set(query("SELECT link, node FROM identity_links")),
            {link for (link,) in query("SELECT link FROM identity_crowds")},
            set(query("SELECT b.digest, r.key FROM identity_buried b LEFT JOIN identity_records r ON r.id = b.record")),
            {(digest, key) for text, key in stored for digest in orjson.loads(text)},
        )

    async def hash(self) -> str:
        return await self.adapters.life.hash(self._database.writer)

    def close(self) -> None:
        self._database.close()


class World:
    """The graph under test, fed batch by batch; by default it is in a database in `folder`."""

    def __init__(self, folder: Path, settings: Settings = SETTINGS, place: Place | None = None) -> None:
        self.kinds = Kinds(settings)
        self.place = place or Embedded(folder, self.kinds)
        self.processor = changes_processor(self.place.adapters, settings)
        self._offsets = itertools.count()
        self._reached: dict[int, int] = defaultdict(int)
        self.assigned: dict[str, tuple[int, Assigned | None]] = {}
        self.decided: list[identity_pb2.IdentityDecided] = []
        self.outcomes: list[Outcome] = []
        self.messages: list[Message] = []

    def records(self, events: Iterable[Event]) -> dict[int, list[Record]]:
        """Return events as records, by partition."""
        batches: dict[int, list[Record]] = defaultdict(list)
        for event in events:
            for partition, change in encode(event):
                key = key_of("", change.record) if change.record else None
                batches[partition].append(
                    Record(topics.CHANGES, partition, next(self._offsets), key, change.SerializeToString(),
                           change.DESCRIPTOR.full_name, "", event.time_ms)
                )  # fmt: skip
        return batches

    async def deliver(self, events: Iterable[Event]) -> None:
        """Deliver events, as one batch a partition."""
        for batch in self.records(events).values():
            await self.process(batch)

    async def deliver_together(self, events: Iterable[Event]) -> None:
        """Deliver events as one batch, whatever their partitions are."""
        batches = self.records(events).values()
        await self.process(
            sorted((r._replace(partition=0) for batch in batches for r in batch), key=lambda r: r.offset)
        )

    async def process(self, batch: Sequence[Record]) -> None:
        processor = self.processor
        assert processor.finish is not None
        async with self.place.unit():
            work = await processor.store.load(batch)
            self.outcomes.extend(processor.decide(work, record).outcome for record in batch)
            outputs = list(processor.finish(work))
            partition, end = batch[0].partition, batch[-1].offset + 1
            start = self._reached[partition]
            progress = Progress(processor.name, batch[0].topic, partition, start, end, outputs, Tally())
            await processor.store.save(work, progress)
            await self.place.record(progress)
        self._reached[partition] = end
        self.read(outputs)

    def read(self, outputs: Iterable[Message]) -> None:
        """Take note of what is published, as a reader does."""
        for message in outputs:
            self.messages.append(message)
            assert message.value is not None
            if message.topic == topics.DECISIONS:
                self.decided.append(identity_pb2.IdentityDecided.FromString(message.value))
                continue
            event = identity_pb2.RecordAssigned.FromString(message.value)
            assert message.key == key_of(event.tenant, event.record)
            generation, before = self.assigned.get(event.record, (0, None))
            assert event.generation > generation
            now = Assigned(
                event.profile_id, event.suspect, tuple((i.kind, i.value) for i in event.identifiers),
                event.first_seen.ToMilliseconds(),
            ) if event.profile_id else None  # fmt: skip
            assert now != before, f"{event.record} was told again: {now}"
            self.assigned[event.record] = (event.generation, now)

    def told(self) -> dict[str, Assigned]:
        """Return what a consumer of the assignments knows."""
        return {record: now for record, (_, now) in self.assigned.items() if now is not None}

    async def hash(self) -> str:
        return await self.place.hash()

    async def check_tables(self) -> Tables:
        """Check that what is stored agrees with itself, and return it."""
        tables = await self.place.tables()
        nodes, crowds = tables.nodes, tables.crowds
        members = defaultdict(list)
        for node, seen, key in tables.members:
            members[node].append((seen, key))
        assert set(members) == set(nodes)
        assert len({row[0] for row in nodes.values()}) == len(nodes), "two nodes of one content"
        links: set[tuple[str, int]] = set()
        for node, (text, count, first_seen, first_key, joined, _) in nodes.items():
            assert (count, (first_seen, first_key)) == (len(members[node]), min(members[node])), text
            found = self.kinds.content(TENANT, text).links
            assert joined == "\x1e".join(found)
            links.update((link, node) for link in found)
        assert tables.links == links
        component = {node: fields[5] for node, fields in nodes.items()}
        lone = {node for node, found in component.items() if found is None}
        for link, node in links:
            assert link in crowds or node not in lone
        by_link = defaultdict(set)
        for link, node in links:
            if link not in crowds:
                by_link[link].add(component[node])
        assert all(len(found) == 1 for found in by_link.values()), by_link
        assert tables.buried == tables.dug
        return tables

    def close(self) -> None:
        self.place.close()


def from_scratch(events: Iterable[Event], settings: Settings = SETTINGS) -> tuple[dict[str, Assigned], set[str]]:
    """Return who is who, and what is quarantined, worked out from the changes that were delivered, in no order."""
    kinds = Kinds(settings)
    held, seen = _current(events, settings)
    nodes: dict[str, list[str]] = defaultdict(list)
    for record, text in held.items():
        nodes[text].append(record)
    contents = {text: kinds.content(TENANT, text) for text in nodes}
    quarantined = {
        link
        for link in {link for content in contents.values() for link in content.links}
        if kinds.is_crowded(link, *_crowd(link, contents.values(), nodes))
    }
    told: dict[str, Assigned] = {}
    for members in _closures(contents, quarantined):
        ordered = sorted((contents[text] for text in members), key=lambda content: content.text)
        resolution = resolve(ordered, quarantined, kinds)
        for number, cluster in enumerate(resolution.clusters):
            records = [record for i in cluster for record in nodes[ordered[i].text]]
            overgrown = len(ordered) > settings.component_records_max
            lone = overgrown or not any(link not in quarantined for i in cluster for link in ordered[i].links)
            oldest = min((seen[record], key_text(TENANT, record)) for record in records)[1]
            for i in cluster:
                links = [] if overgrown else [link for link in ordered[i].links if link not in quarantined]
                identifiers = tuple((link.split("\x1f")[1], link.split("\x1f")[2]) for link in links)
                for record in nodes[ordered[i].text]:
                    profile = birth_id(key_text(TENANT, record) if lone else oldest)
                    suspect = overgrown or number in resolution.suspect
                    told[record] = Assigned(profile, suspect, identifiers, seen[record])
    return told, quarantined


def _crowd(link: str, contents: Iterable[Content], nodes: dict[str, list[str]]) -> tuple[int, int]:
    holding = [content for content in contents if link in content.links]
    return len(holding), sum(len(nodes[content.text]) for content in holding)


def _closures(contents: dict[str, Content], quarantined: set[str]) -> list[set[str]]:
    """Join what shares a link, two by two, until nothing changes: slow and simple."""
    groups = [{text} for text in contents]

    def links(group: set[str]) -> set[str]:
        return {link for text in group for link in contents[text].links} - quarantined

    while pair := next((p for p in itertools.combinations(groups, 2) if links(p[0]) & links(p[1])), None):
        groups.remove(pair[1])
        pair[0].update(pair[1])
    return groups


def _current(events: Iterable[Event], settings: Settings) -> tuple[dict[str, str], dict[str, int]]:
    """Return what each record holds now, as text, and when each was first seen."""
    extractor = Extractor(settings)
    truncated: dict[str, int] = {}
    changes: dict[str, dict[int, Event]] = defaultdict(dict)
    truncations = set()
    for event in events:
        if event.operation == Type.OPERATION_TRUNCATE:
            truncations.add((event.entity, event.number))
            truncated[event.entity] = max(event.number, truncated.get(event.entity, -1))
        else:
            changes[event.record][event.number] = event
    held, seen = {}, {}
    for record, versions in changes.items():
        seen[record] = min(event.time_ms for event in versions.values())
        newest = versions[max(versions)]
        if newest.operation == Type.OPERATION_DELETE or newest.number < truncated.get(newest.entity, -1):
            continue
        deleted = [e.number for e in versions.values() if e.operation == Type.OPERATION_DELETE]
        born = max([*deleted, *(n for e, n in truncations if e == newest.entity and n < newest.number)], default=-1)
        row: dict[str, Any] = {}
        for number in sorted(number for number in versions if number > born):
            event = versions[number]
            row = {**(row if event.partial else {c: row.get(c) for c in event.unavailable}), **event.row}
        person, entries = extractor.read("crm", newest.entity, {"id": newest.key}, row)
        if person:
            held[record] = text_of(entries)
    return held, seen
