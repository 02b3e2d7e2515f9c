"""From a record of the topic `changes` to what it means for identity. Pure."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import orjson

from headwater.ingest.v1 import events_pb2
from services.identity_graph.columns import Entry, Extractor
from services.identity_graph.model import Key, key_text, text_of
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Record
from services.kernel.records import record_key

CHANGE = events_pb2.Change.DESCRIPTOR.full_name


class Effect(Enum):
    """What a change asks for."""

    NONE = "none"  # it is of no person: a hotel's row, or something of a kind that is not known yet
    HOLD = "hold"  # the record holds these identifiers now
    REMOVE = "remove"  # the record is gone, or is none of a person any more
    TRUNCATE = "truncate"  # all records of the entity are gone
    HEARTBEAT = "heartbeat"  # nothing changed


class Delta(NamedTuple):
    """A change, as far as it matters here.

    Attributes:
        effect: what it asks for.
        tenant, source, entity: whose it is and where it is from.
        key: the record; empty for a truncation and a heartbeat.
        entries: the identifiers that the row holds, for HOLD.
        text: the text of the content that they make.
        unavailable: columns of identifiers whose value was left out because it did not change.
        told: of a partial change, the columns that it tells; None for one that tells the whole row.
        always_person: whether each row of the entity is a person's, whatever its columns.
        position: the source's own position.
        source_position: the same as the source writes it.
        occurred_ms: when it happened, milliseconds since the epoch.
        partition, offset: its place in the topic.
    """

    effect: Effect
    tenant: str
    source: str
    entity: str
    key: Key
    entries: tuple[Entry, ...]
    text: str
    unavailable: tuple[str, ...]
    position: str
    source_position: str
    occurred_ms: int
    partition: int
    offset: int
    told: frozenset[str] | None = None
    always_person: bool = False


_REMOVALS = {events_pb2.OPERATION_DELETE}
_HOLDS = {events_pb2.OPERATION_SNAPSHOT, events_pb2.OPERATION_INSERT, events_pb2.OPERATION_UPDATE}


def read_change(record: Record, extractor: Extractor) -> Delta:
    """Return what a record means.

    Raises:
        InvalidInputError: it is no change that this version understands.
        DecodeError, JSONDecodeError: it is broken.
    """
    if record.value is None or (record.type and record.type != CHANGE):
        return Delta(Effect.NONE, "", "", "", "", (), "", (), "", "", 0, record.partition, record.offset)
    change = events_pb2.Change.FromString(record.value)
    tenant, source, entity = change.tenant or DEFAULT_TENANT, change.source, change.entity
    operation = change.operation
    entries: tuple[Entry, ...] = ()
    unavailable: tuple[str, ...] = ()
    told: frozenset[str] | None = None
    if operation in _HOLDS or operation in _REMOVALS:
        if not change.record:
            raise InvalidInputError(
                f"a change of {source}/{entity} names no record: the decoder must give a record key"
            )
        if extractor.ignores(source, entity):
            effect = Effect.NONE
        elif operation in _REMOVALS:
            effect = Effect.REMOVE
        elif change.partial:
            row = _object(change.after_json)
            _, entries = extractor.read(source, entity, _object(change.key_json), row)
            effect, told = Effect.HOLD, frozenset(row).difference(change.unavailable)
        else:
            person, entries, unavailable = _whole(change, extractor)
            effect = Effect.HOLD if person else Effect.REMOVE
    elif operation == events_pb2.OPERATION_TRUNCATE:
        effect = Effect.NONE if extractor.ignores(source, entity) else Effect.TRUNCATE
    elif operation == events_pb2.OPERATION_HEARTBEAT:
        effect = Effect.HEARTBEAT
    else:
        raise InvalidInputError(f"a change of {source}/{entity} has the unknown operation {operation}")
    return Delta(
        effect, tenant, source, entity, key_text(tenant, change.record) if change.record else "", entries,
        text_of(entries), unavailable,
        change.position, change.source_position, record.timestamp_ms, record.partition, record.offset, told,
        told is not None and extractor.always_persons(source, entity),
    )  # fmt: skip


def _whole(change: events_pb2.Change, extractor: Extractor) -> tuple[bool, tuple[Entry, ...], tuple[str, ...]]:
    """Return whether a row is a person's, its identifiers, and the columns of such that were left out."""
    key, row = _object(change.key_json), _object(change.after_json)
    if not row:
        raise InvalidInputError(f"a change of {change.record} has no row: only a delete may come without")
    if not change.unavailable:
        return *extractor.read(change.source, change.entity, key, row), ()
    row = {**dict.fromkeys(change.unavailable), **row}
    person, entries = extractor.read(change.source, change.entity, key, row)
    known = extractor.columns(change.source, change.entity, key, row)
    unavailable = tuple(column for column in change.unavailable if column in known)
    return person, entries, unavailable


def _object(text: str) -> Mapping[str, Any]:
    value = orjson.loads(text) if text else {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"{text!r:.80} is not a JSON object")
    return value


def scope_prefix(tenant: str, source: str, entity: str) -> Key:
    """Return how the keys of all records of an entity begin."""
    return key_text(tenant, record_key(source, entity, {"": ""}))
