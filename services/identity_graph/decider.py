"""What a change does to the records that it is about. Pure.

Every change is fenced by its source position, so that a stale or repeated one does nothing, save that the earliest
sighting of a record counts whatever the order of arrival. What follows for persons is worked out once a batch, in
`clustering`.
"""

from typing import assert_never

from services.identity_graph.changes import Delta, Effect, scope_prefix
from services.identity_graph.columns import merged, of_columns, without
from services.identity_graph.model import Row, WorkingSet, birth_id, entries_of, text_of
from services.kernel.positions import newer
from services.kernel.processor import APPLIED, SUPERSEDED, Decision


def apply(state: WorkingSet, delta: Delta) -> Decision:
    """Take a change into account."""
    state.newest_ms = max(state.newest_ms, delta.occurred_ms)
    match delta.effect:
        case Effect.HOLD | Effect.REMOVE:
            return _apply_row(state, delta)
        case Effect.NONE:
            if delta.source:
                state.sightings.note(delta.tenant, delta.source, delta.occurred_ms, delta.source_position)
            return APPLIED
        case Effect.HEARTBEAT:
            state.sightings.note_heartbeat(delta.tenant, delta.source, delta.occurred_ms)
            return APPLIED
        case Effect.TRUNCATE:
            return _truncate(state, delta)
        case _:
            assert_never(delta.effect)


def _apply_row(state: WorkingSet, delta: Delta) -> Decision:
    if state.erased and _was_erased(state, delta):
        return SUPERSEDED
    row = state.rows.get(delta.key)
    if row is None:
        row = state.rows[delta.key] = Row(delta.key)
    if delta.occurred_ms < row.first_seen:
        row.first_seen, row.touched = delta.occurred_ms, True
        row.cause_ms = max(row.cause_ms, delta.occurred_ms)
    fence = state.truncated.get((delta.tenant, delta.source, delta.entity)) if state.truncated else None
    if (row.position and not newer(delta.position, row.position)) or (fence and not newer(delta.position, fence)):
        return APPLIED if row.carried and _fill_in(row, delta) else SUPERSEDED
    state.sightings.note(delta.tenant, delta.source, delta.occurred_ms, delta.source_position)
    if delta.effect is Effect.REMOVE:
        row.text, row.carried = None, None
    else:
        _hold(row, delta, fence if fence and newer(fence, row.position) else row.position)
    row.touched, row.cause_ms = True, delta.occurred_ms
    row.partition, row.offset = delta.partition, delta.offset
    row.position = delta.position or row.position
    return APPLIED


def _was_erased(state: WorkingSet, delta: Delta) -> bool:
    fence = state.erased.get(birth_id(delta.key))
    if fence is None:
        return False
    return delta.offset < fence.offset or bool(fence.position and not newer(delta.position, fence.position))


def _hold(row: Row, delta: Delta, known_from: str) -> None:
    if not delta.unavailable:
        row.carried, row.text = None, delta.text
        return
    # Columns that the source left out keep what is stored; from which position that is known goes with it.
    stored = of_columns(entries_of(row.text), delta.unavailable)
    row.carried = {column: (row.carried or {}).get(column, known_from) for column in delta.unavailable}
    row.text = text_of(merged(delta.entries, stored))


def _fill_in(row: Row, delta: Delta) -> bool:
    """Take from an older change, which came late, what a newer one left out; tell whether there was anything."""
    if row.text is None or row.carried is None:
        return False
    columns = [
        column
        for column, known_from in row.carried.items()
        if column not in delta.unavailable and newer(delta.position, known_from)
    ]
    if columns:
        row.carried.update(dict.fromkeys(columns, delta.position))
        row.text = text_of(merged(without(entries_of(row.text), columns), of_columns(delta.entries, columns)))
        row.touched, row.cause_ms = True, delta.occurred_ms
    return bool(columns)


def _truncate(state: WorkingSet, delta: Delta) -> Decision:
    scope = (delta.tenant, delta.source, delta.entity)
    known = state.truncated.get(scope, "")
    if known and not newer(delta.position, known):
        return SUPERSEDED
    state.sightings.note(delta.tenant, delta.source, delta.occurred_ms, delta.source_position)
    state.truncated[scope] = delta.position or known
    state.truncations[scope] = delta.partition
    prefix = scope_prefix(*scope)
    for row in state.rows.values():
        if row.text is None or row.partition != delta.partition or not row.key.startswith(prefix):
            continue
        if row.position and not newer(delta.position, row.position):  # it came late: this row was written after it
            _fill_in(row, delta)
            continue
        row.text, row.carried = None, None
        row.touched, row.cause_ms = True, delta.occurred_ms
        row.position = delta.position or row.position
    return APPLIED
