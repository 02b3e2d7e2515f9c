"""The state of records: what a batch of changes and assignments works on. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.kernel import topics
from services.kernel.freshness import Sightings
from services.kernel.log import Record

Event = ingest_pb2.Change | identity_pb2.RecordAssigned


class Entity(NamedTuple):
    """A kind of record of a tenant's source."""

    tenant: str
    source: str
    entity: str


@dataclass(slots=True)
class Row:
    """A record's state.

    Attributes:
        source, entity: where it is from; empty until a change has come.
        partition: its partition in `changes`.
        position: the source position of the newest change; None until one has come.
        occurred_us: when that happened at the source, microseconds since the epoch.
        body: the row as JSON; None when there is none (not yet, or not any more).
        known_at: for columns that the newest change left out, the position at which the value is known; "" is never.
        profile: the key of the profile that it is assigned to, if any.
        generation: the assignment's generation.
        identifiers: the assignment's identifiers, a sorted JSON list of [kind, value] without repetitions.
        suspect: whether the profile is suspected of holding more than one person.
    """

    source: str = ""
    entity: str = ""
    partition: int = -1
    position: str | None = None
    occurred_us: int = 0
    body: str | None = None
    known_at: dict[str, str] | None = None
    profile: str | None = None
    generation: int = -1
    identifiers: str = "[]"
    suspect: bool = False


@dataclass(slots=True)
class Rows:
    """The working set of a batch. Records and profiles are named by their topic keys, as text.

    Attributes:
        events: the batch's events by offset, decoded; None where that failed.
        rows: the state of the batch's records, and of all rows of entities that it truncates.
        truncated: the position of the newest truncation of entities, in the batch's partition.
        erased: for records that were erased, when that was asked for, in milliseconds since the epoch.
        changed, assigned: the records whose row, or assignment, is to be saved.
        truncated_now: the entities whose truncation is to be saved, with the partition.
        touched: the profiles to fold again, with the event time of the newest cause in milliseconds.
        sightings: what the batch tells of its sources.
        head: where the store stood before this was loaded, of stores that need to know it.
    """

    events: dict[int, Event | None] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    truncated: dict[Entity, str] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)
    truncated_now: dict[Entity, int] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)
    sightings: Sightings = field(default_factory=Sightings)
    head: Any = None


def events_of(batch: Iterable[Record]) -> dict[int, Event | None]:
    """Decode a batch; None stands for what cannot be decoded, or has no value."""
    return {record.offset: _event(record) for record in batch}


def _event(record: Record) -> Event | None:
    if record.value is None:
        return None
    kind = ingest_pb2.Change if record.topic == topics.CHANGES else identity_pb2.RecordAssigned
    try:
        return kind.FromString(record.value)
    except DecodeError:
        return None


def truncations(events: dict[int, Event | None]) -> set[Entity]:
    """Return the entities of which a batch truncates all rows."""
    return {
        Entity(event.tenant or "default", event.source, event.entity)
        for event in events.values()
        if isinstance(event, ingest_pb2.Change) and event.operation == ingest_pb2.OPERATION_TRUNCATE
    }
