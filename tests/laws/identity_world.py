"""A small world for the laws of identity: generated histories, the graph under test, and the answer from scratch."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from hypothesis import strategies as st

from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2
from services.identity_graph.app import changes_processor
from services.identity_graph.columns import Extractor
from services.identity_graph.matching import resolve
from services.identity_graph.model import Content, Kinds, birth_id, key_text, text_of
from services.identity_graph.settings import Settings
from services.identity_graph.sqlite_lifecycle import hash_of
from services.kernel import topics
from services.kernel.log import Message, Progress, Record, Tally, key_of, partition_of
from services.kernel.processor import Outcome
from services.kernel.records import record_key
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS

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


def encode(event: Event) -> list[tuple[int, events_pb2.Change]]:
    """Return the change of an event, with the partitions that it goes to."""
    change = events_pb2.Change(
        tenant="", source="crm", entity=event.entity, operation=event.operation,
        position=f"pg:crm:{event.number:020d}", unavailable=event.unavailable, partial=event.partial,
    )  # fmt: skip
    change.occurred_at.FromMilliseconds(event.time_ms)
    if event.operation == Type.OPERATION_TRUNCATE:
        return [(partition, change) for partition in range(PARTITIONS)]
    change.record, change.key_json = event.record, orjson.dumps({"id": event.key}).decode()
    if event.operation != Type.OPERATION_DELETE:
        change.after_json = orjson.dumps(event.row).decode()
    return [(partition_of(key_of("", event.record), PARTITIONS), change)]


class World:
    """The graph under test, fed batch by batch."""

    def __init__(self, folder: Path, settings: Settings = SETTINGS) -> None:
        self.database = Database(folder)
        self._log = SqliteLog(self.database)
        self.kinds = Kinds(settings)
        self.processor = changes_processor(self.database, settings)
        self._offsets = itertools.count()
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
        await self._log.create_topics(TOPICS)
        async with self.database.transaction():
            work = await processor.store.load(batch)
            self.outcomes.extend(processor.decide(work, record).outcome for record in batch)
            outputs = list(processor.finish(work))
            progress = Progress(
                processor.name,
                batch[0].topic,
                batch[0].partition,
                batch[0].offset,
                batch[-1].offset + 1,
                outputs,
                Tally(),
            )
            await processor.store.save(work, progress)
        self._consume(outputs)

    def _consume(self, outputs: Iterable[Message]) -> None:
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
        return await hash_of(self.database.writer)

    def check_tables(self) -> None:
        """Check that the tables agree with one another."""
        query = self.database.writer.execute
        nodes = {
            row[0]: row[1:]
            for row in query("SELECT id, text, rows, first_seen, first_key, links, lone FROM identity_nodes")
        }
        members = defaultdict(list)
        for node, seen, key in query("SELECT node, first_seen, key FROM identity_records WHERE node IS NOT NULL"):
            members[node].append((seen, key))
        assert set(members) == set(nodes)
        assert len({row[0] for row in nodes.values()}) == len(nodes), "two nodes of one content"
        links: set[tuple[str, int]] = set()
        for node, (text, count, first_seen, first_key, joined, _lone) in nodes.items():
            assert (count, (first_seen, first_key)) == (len(members[node]), min(members[node])), text
            found = self.kinds.content(TENANT, text).links
            assert joined == "\x1e".join(found)
            links.update((link, node) for link in found)
        assert set(query("SELECT link, node FROM identity_links")) == links
        crowds = {row[0] for row in query("SELECT link FROM identity_crowds")}
        component = dict(query("SELECT id, component FROM identity_nodes"))
        lone = {node for node, found in component.items() if found is None}
        assert all((row[5] is None) == bool(component[node]) for node, row in nodes.items())
        for link, node in links:
            assert link in crowds or node not in lone
        by_link = defaultdict(set)
        for link, node in links:
            if link not in crowds:
                by_link[link].add(component[node])
        assert all(len(found) == 1 for found in by_link.values()), by_link
        digests = set(query("SELECT digest, record FROM identity_buried"))
        stored = query("SELECT buried, id FROM identity_records WHERE buried IS NOT NULL")
        assert digests == {(digest, record) for text, record in stored for digest in orjson.loads(text)}

    def close(self) -> None:
        self.database.close()


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
