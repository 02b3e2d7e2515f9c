"""From answers to windows and KPIs: touches in, corrections out. Pure.

A touch only says that something has changed. What counts is what is known of the answer now, so a repeated or a stale
touch changes nothing; the observation that it makes replaces the one that it made before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from headwater.feedback.v1 import events_pb2
from services.feedback.answers import Answer, Key, answer_key, conversation_key
from services.feedback.kpis import Computed, Kpi, corrected, observation_of, parts_of
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import SEPARATOR, Message, Record, key_of, message_of
from services.kernel.processor import APPLIED, SUPERSEDED, Decision
from services.kernel.window_table import CellKey, Change, Entry, WindowTable


class KpiRow(NamedTuple):
    """A KPI of a window, as it is told and kept."""

    key: CellKey
    computed: Computed
    revision: int


@dataclass(slots=True)
class Clock:
    """How far a tenant's time has come.

    Attributes:
        told_ms: the watermark up to which closed windows have been told; None before the first.
        watermark_ms: the watermark now; None before the first turn.
        closing: KPIs of windows that end in between, oldest first, as far as they fit into one batch.
        reached_ms: the watermark up to which these are all.
        more: whether there are others, for the next batch.
    """

    told_ms: int | None = None
    watermark_ms: int | None = None
    closing: list[KpiRow] = field(default_factory=list)
    reached_ms: int | None = None
    more: bool = False


@dataclass(slots=True)
class Observations:
    """The working set of a batch.

    Attributes:
        kpis: what is computed.
        dimensions: the sets of dimensions that KPIs are kept by.
        table: the observations of the touched answers, and the windows that they were and will be in.
        known: all that is known of the touched answers.
        clocks: by tenant.
        put: the observations that have changed.
        changes: the windows that have changed, once `finish` was called.
        rows: their KPIs that have changed.
        newest_ms: when the newest of the causes happened.
    """

    kpis: Sequence[Kpi]
    dimensions: Sequence[Sequence[str]]
    table: WindowTable
    known: dict[Key, Answer] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    put: dict[Key, Sequence[Entry]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    rows: list[KpiRow] = field(default_factory=list)
    newest_ms: int = 0


def name_of(key: Key) -> str:
    """The name of an answer's observation in a table of windows."""
    return key.tenant + SEPARATOR + key.subject


def touch_of(record: Record) -> events_pb2.AnswerTouched:
    """Decode a touch; raises InvalidInputError when it is none."""
    try:
        if record.type == events_pb2.AnswerTouched.DESCRIPTOR.full_name and record.value is not None:
            return events_pb2.AnswerTouched.FromString(record.value)
    except DecodeError:
        pass
    raise InvalidInputError(f"{record.topic}/{record.partition}/{record.offset} is not an AnswerTouched")


def key_of_touch(touch: events_pb2.AnswerTouched) -> Key | None:
    """What was touched; None when only time has moved on."""
    if touch.answer_id:
        return answer_key(touch.tenant, touch.answer_id)
    return conversation_key(touch.tenant, touch.conversation_id) if touch.conversation_id else None


def decide(state: Observations, record: Record) -> Decision:
    """Observe a touched answer anew."""
    state.newest_ms = max(state.newest_ms, record.timestamp_ms)
    if record.value is None:
        return APPLIED  # the log has forgotten whom it was about
    key = key_of_touch(touch_of(record))
    if key is None:
        return APPLIED
    entries = observation_of(key.tenant, state.known.get(key, Answer()), state.dimensions)
    if not state.table.put(name_of(key), entries):
        return SUPERSEDED
    state.put[key] = entries
    return APPLIED


def finish(state: Observations) -> Sequence[Message]:
    """Tell every KPI that has changed, and once that a window is closed."""
    state.changes = state.table.settle()
    state.rows = [
        KpiRow(change.key, computed, change.cell.revision)
        for change in state.changes
        for computed in corrected(state.kpis, change)
    ]
    told = {(row.key, row.computed.kpi) for row in state.rows}
    closing = [row for clock in state.clocks.values() for row in clock.closing]
    rows = [*state.rows, *(row for row in closing if (row.key, row.computed.kpi) not in told)]
    return [*(_message(state, row) for row in rows), *_continuations(state)]


def _continuations(state: Observations) -> Iterator[Message]:
    for tenant, clock in state.clocks.items():
        if clock.more:
            touch = events_pb2.AnswerTouched(tenant=tenant)
            yield message_of(topics.ANSWERS_TOUCHED, key_of(tenant), touch, state.newest_ms)


def _message(state: Observations, row: KpiRow) -> Message:
    tenant, _, dimensions = row.key.group.partition(SEPARATOR)
    event = kpi_event(row, state.clocks.get(tenant, Clock()).watermark_ms)
    key = key_of(tenant, row.computed.kpi, row.key.spec, str(row.key.start_ms), str(row.key.end_ms), dimensions)
    return message_of(topics.KPIS, key, event, state.newest_ms)


def kpi_event(row: KpiRow, watermark_ms: int | None) -> events_pb2.KpiComputed:
    """A KPI as the event that tells of it."""
    tenant, dimensions = parts_of(row.key.group)
    event = events_pb2.KpiComputed(
        tenant=tenant,
        kpi=row.computed.kpi,
        dimensions=dimensions,
        value=row.computed.value,
        count=row.computed.size,
        revision=row.revision,
        closed=watermark_ms is not None and row.key.end_ms <= watermark_ms,
        window=row.key.spec,
    )
    event.window_start.FromMilliseconds(row.key.start_ms)
    event.window_end.FromMilliseconds(row.key.end_ms)
    return event
