"""Which row of a record is current, and to which profile it belongs: changes and assignments in, touches out. Pure.

A record's state is two registers that do not depend on one another, so that it does not matter in what order the
two topics are read: the row, fenced by the source's position, and the assignment, fenced by its generation. A row is
kept even while no assignment has come (it may be on its way, and for hotels and flights none ever comes), but only
a row that is assigned touches a profile.

A change may leave out columns that it did not change (`unavailable`, or all that a `partial` one does not name). Their
values are kept, together with the
position at which each is known, so that an older change that arrives late still fills them in: the row is then the
same as if everything had come in order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import SEPARATOR, Message, Record
from services.kernel.positions import newer
from services.kernel.processor import APPLIED, SUPERSEDED, Decision
from services.kernel.records import OTHER_COLUMNS
from services.profile.rows import Entity, Row, Rows

DELETE = ingest_pb2.OPERATION_DELETE
TRUNCATE = ingest_pb2.OPERATION_TRUNCATE
HEARTBEAT = ingest_pb2.OPERATION_HEARTBEAT
_TOUCHED_TYPE = events_pb2.ProfileTouched.DESCRIPTOR.full_name


def decide(state: Rows, record: Record) -> Decision:
    """Bring the working set up to date with a change or an assignment."""
    event = state.events[record.offset]
    if event is None:
        if record.value is None:
            return SUPERSEDED  # the log has forgotten the record; the erasure itself removes the row
        raise InvalidInputError(f"{record.topic}/{record.partition}/{record.offset} is not a {record.type}")
    if isinstance(event, ingest_pb2.Change):
        return _change(state, record, event)
    return _assign(state, record, event)


def finish(state: Rows) -> Sequence[Message]:
    """Return one touch for every profile that the batch touched."""
    return [touch(profile, happened_ms) for profile, happened_ms in state.touched.items()]


def touch(profile: str, happened_ms: int) -> Message:
    """Return the message that makes a profile, named by its key, be folded again."""
    tenant, _, profile_id = profile.partition(SEPARATOR)
    value = events_pb2.ProfileTouched(tenant=tenant, profile_id=profile_id).SerializeToString()
    return Message(topics.TOUCHED, profile.encode(), value, _TOUCHED_TYPE, happened_ms)


def _change(state: Rows, record: Record, change: ingest_pb2.Change) -> Decision:
    operation = change.operation
    occurred = change.occurred_at
    occurred_us = occurred.seconds * 1_000_000 + occurred.nanos // 1000 or record.timestamp_ms * 1000
    source, position = change.source, change.position
    if operation == HEARTBEAT:
        state.sightings.note_heartbeat(change.tenant, source, occurred_us // 1000)
        return APPLIED
    state.sightings.note(change.tenant, source, occurred_us // 1000, change.source_position)
    if operation == TRUNCATE:
        return _truncate(state, record, change)

    key = (record.key or b"").decode()
    if state.erased and record.timestamp_ms <= state.erased.get(key, -1):
        return SUPERSEDED
    if state.truncated:
        fence = state.truncated.get(Entity(change.tenant or "default", source, change.entity))
        if fence is not None and not newer(position, fence):
            return SUPERSEDED
    row = state.rows.get(key)
    if row is not None and row.position is not None and not newer(position, row.position):
        return _fill(state, record, row, change) if row.known_at else SUPERSEDED
    if operation == DELETE:
        if row is None and key in state.erased:
            return SUPERSEDED  # nothing of it is here: its name shall not come back as a tombstone
        body, known_at = None, None
    else:
        body, known_at = _body(row, change)
    if row is None:
        row = state.rows[key] = Row()
    row.source, row.entity, row.partition = source, change.entity, record.partition
    row.position, row.occurred_us, row.body, row.known_at = position, occurred_us, body, known_at
    state.changed.add(key)
    _touch_profile(state, row.profile, record.timestamp_ms)
    return APPLIED


def _body(row: Row | None, change: ingest_pb2.Change) -> tuple[str, dict[str, str] | None]:
    """Return the row that a change makes, as JSON, and where the columns that it leaves out are known from."""
    values = _values(change)
    if not change.unavailable and not change.partial:
        return change.after_json, None
    before = orjson.loads(row.body) if row is not None and row.body is not None else {}
    known_before = (row.known_at or {}) if row is not None else {}
    here = (row.position or "") if row is not None else ""

    def known(column: str) -> str:
        return known_before.get(column, here if column in before else known_before.get(OTHER_COLUMNS, here))

    left_out: Iterable[str] = change.unavailable
    if change.partial:
        left_out = {*left_out, OTHER_COLUMNS, *before, *known_before} - values.keys()
    known_at = {column: known(column) for column in left_out}
    return _encoded(values | {column: before[column] for column in left_out if column in before}), known_at


def _fill(state: Rows, record: Record, row: Row, older: ingest_pb2.Change) -> Decision:
    """Take from a change that came late what newer ones left out."""
    if row.body is None or row.known_at is None:
        return SUPERSEDED
    values = {} if older.operation == DELETE else _values(older)
    body, known_at = orjson.loads(row.body), row.known_at
    unnamed_at = known_at.get(OTHER_COLUMNS)
    if unnamed_at is not None and newer(older.position, unnamed_at):
        for column in (*values, *older.unavailable):
            if column not in body:
                known_at.setdefault(column, unnamed_at)
    silent = set(older.unavailable)
    if older.partial:
        silent |= known_at.keys() - values.keys()
    columns = [column for column, at in known_at.items() if column not in silent and newer(older.position, at)]
    if not columns:
        return SUPERSEDED
    for column in columns:
        known_at[column] = older.position
        body.pop(column, None)
        if column in values:
            body[column] = values[column]
    row.body = _encoded(body)
    state.changed.add((record.key or b"").decode())
    _touch_profile(state, row.profile, record.timestamp_ms)
    return APPLIED


def _truncate(state: Rows, record: Record, change: ingest_pb2.Change) -> Decision:
    """Remove every row of an entity in this partition, but those that are newer than the truncation."""
    entity = Entity(change.tenant or "default", change.source, change.entity)
    position = change.position
    fence = state.truncated.get(entity)
    if fence is not None and not newer(position, fence):
        return SUPERSEDED
    state.truncated[entity] = position
    state.truncated_now[entity] = record.partition
    prefix = entity.tenant + SEPARATOR
    for key, row in state.rows.items():
        if row.body is None or (row.source, row.entity) != (entity.source, entity.entity) or not key.startswith(prefix):
            continue
        if newer(position, row.position or ""):
            row.body, row.known_at = None, None
        elif not _forget(row, position):
            continue
        state.changed.add(key)
        _touch_profile(state, row.profile, record.timestamp_ms)
    return APPLIED


def _forget(row: Row, position: str) -> bool:
    """Drop kept values that are older than a truncation from a row that is newer; tell whether there were any."""
    if not row.known_at or row.body is None:
        return False
    columns = [column for column, at in row.known_at.items() if newer(position, at)]
    body = orjson.loads(row.body)
    for column in columns:
        row.known_at[column] = position
        body.pop(column, None)
    row.body = _encoded(body)
    return bool(columns)


def _assign(state: Rows, record: Record, assigned: identity_pb2.RecordAssigned) -> Decision:
    key = (record.key or b"").decode()
    row = state.rows.get(key)
    if key in state.erased and (record.timestamp_ms <= state.erased[key] or (row is None and not assigned.profile_id)):
        return SUPERSEDED
    if row is None:
        row = state.rows[key] = Row()
    elif assigned.generation <= row.generation:
        return SUPERSEDED
    before = row.profile
    tenant = key.partition(SEPARATOR)[0]
    row.profile = f"{tenant}{SEPARATOR}{assigned.profile_id}" if assigned.profile_id else None
    row.generation, row.suspect = assigned.generation, assigned.suspect
    row.identifiers = orjson.dumps(sorted({(i.kind, i.value) for i in assigned.identifiers})).decode()
    state.assigned.add(key)
    if row.body is not None:
        _touch_profile(state, before, record.timestamp_ms)
        _touch_profile(state, row.profile, record.timestamp_ms)
    return APPLIED


def _touch_profile(state: Rows, profile: str | None, happened_ms: int) -> None:
    if profile is not None:
        state.touched[profile] = max(happened_ms, state.touched.get(profile, happened_ms))


def _values(change: ingest_pb2.Change) -> dict[str, Any]:
    """Decode the row of a change: a body that is no JSON object would poison every fold of its profile."""
    try:
        values = orjson.loads(change.after_json)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"{change.record}: its row is not JSON ({error}): correct the writer") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{change.record}: its row is not a JSON object: correct the writer")
    return values


def _encoded(values: dict[str, Any]) -> str:
    # Sorted, so that the text does not tell in which order the columns came to be known.
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()
