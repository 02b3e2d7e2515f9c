"""What a change does to the records that it is about. Pure.

Every change is fenced by its source position, so that a stale or repeated one does nothing, save that the earliest
sighting of a record counts whatever the order of arrival. What follows for persons is worked out once a batch, in
`clustering`.
"""

from typing import assert_never

from services.identity_graph.changes import Delta, Effect, scope_prefix
from services.identity_graph.columns import NOTHING, Entry, merged, of_columns, outer_columns, without
from services.identity_graph.model import Kinds, birth_id, entries_of, text_of
from services.identity_graph.working_set import Row, WorkingSet
from services.kernel.positions import newer
from services.kernel.processor import APPLIED, SUPERSEDED, Decision
from services.kernel.records import OTHER_COLUMNS


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
        return APPLIED if row.carried and _fill_in(state.kinds, row, delta) else SUPERSEDED
    state.sightings.note(delta.tenant, delta.source, delta.occurred_ms, delta.source_position)
    if delta.effect is Effect.REMOVE:
        row.text, row.aside, row.carried = None, None, None
    else:
        _hold(state.kinds, row, delta, fence if fence and newer(fence, row.position) else row.position)
    row.touched, row.cause_ms = True, delta.occurred_ms
    row.partition, row.offset = delta.partition, delta.offset
    row.position = delta.position or row.position
    return APPLIED


def _was_erased(state: WorkingSet, delta: Delta) -> bool:
    fence = state.erased.get(birth_id(delta.key))
    if fence is None:
        return False
    return delta.offset < fence.offset or bool(fence.position and not newer(delta.position, fence.position))


def _hold(kinds: Kinds, row: Row, delta: Delta, known_from: str) -> None:
    if delta.told is None and not delta.unavailable:
        row.carried, row.text, row.aside = None, delta.text, None
        return
    # Columns that the source left out keep what is stored; from which position that is known goes with it.
    stored, before = entries_of(row.text or row.aside), row.carried or {}
    if delta.told is None:
        unnamed_from = before.get(OTHER_COLUMNS, known_from)
        row.carried = {column: before.get(column, unnamed_from) for column in delta.unavailable}
        kept = of_columns(stored, delta.unavailable)
        row.text, row.aside = text_of(merged(without(delta.entries, outer_columns(kept)), kept)), None
        return
    kept = without(stored, delta.told)
    row.carried = {
        **dict.fromkeys(outer_columns(kept), known_from),
        OTHER_COLUMNS: known_from,
        **before,
        **dict.fromkeys(delta.told, delta.position),
    }
    _set(kinds, row, delta, merged(delta.entries, kept))


def _fill_in(kinds: Kinds, row: Row, delta: Delta) -> bool:
    """Take from an older change, which came late, what a newer one left out; tell whether there was anything."""
    if row.carried is None:
        return False
    carried = row.carried
    unnamed_from = carried.get(OTHER_COLUMNS)
    if unnamed_from is not None and newer(delta.position, unnamed_from):
        for column in (*outer_columns(delta.entries), *delta.unavailable, *(delta.told or ())):
            carried.setdefault(column, unnamed_from)
    columns = [
        column
        for column, known_from in carried.items()
        if column not in delta.unavailable
        and (delta.told is None or column in delta.told)
        and newer(delta.position, known_from)
    ]
    if columns:
        carried.update(dict.fromkeys(columns, delta.position))
        stored, filled = entries_of(row.text or row.aside), of_columns(delta.entries, columns)
        if OTHER_COLUMNS in carried:
            _set(kinds, row, delta, merged(without(stored, columns), filled))
        else:  # the newer change told of all columns that there are: what one of them held before is not known again
            emptied = [column for column in columns if column not in outer_columns(filled)]
            nothing = [(entry[0], *NOTHING) for entry in of_columns(stored, emptied) if kinds.make_a_person([entry])]
            row.text = text_of(merged(without(stored, columns), filled, nothing))
        row.touched, row.cause_ms = True, delta.occurred_ms
    return bool(columns)


def _set(kinds: Kinds, row: Row, delta: Delta, entries: tuple[Entry, ...]) -> None:
    """Let a row of which only parts are known hold entries; while they make no person, they are kept aside."""
    text = text_of(entries)
    in_graph = delta.always_person or kinds.make_a_person(entries)
    row.text, row.aside = (text, None) if in_graph else (None, text)


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
        if (row.text or row.aside) is None or row.partition != delta.partition or not row.key.startswith(prefix):
            continue
        if row.position and not newer(delta.position, row.position):  # it came late: this row was written after it
            _fill_in(state.kinds, row, delta)
            continue
        row.text, row.aside, row.carried = None, None, None
        row.touched, row.cause_ms = True, delta.occurred_ms
        row.position = delta.position or row.position
    return APPLIED
