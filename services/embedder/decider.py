"""What a change of a document or row leads to: work to be done, or an update at once, or nothing. Pure.

Only what is embedded makes work: a document's content, or the columns that a row's template names. Everything else
(metadata, access, live columns) is shown at once. What is gone is gone at once. A document's older version can be
found until the newer one is whole, but never by a reader whom either version excludes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from headwater.embedder.v1 import events_pb2 as embedder_pb2
from headwater.ingest.v1 import events_pb2
from services.embedder import results
from services.embedder.events import indexed_event, job_event
from services.embedder.rows import NOBODY, RowTemplate
from services.embedder.state import Document, Entity, Key, Work, WorkingSet, narrower
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.jobs import Job, JobState, Lane
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Message, Record, key_of
from services.kernel.positions import newer
from services.kernel.processor import APPLIED, SUPERSEDED, Decision, Outcome
from services.kernel.records import record_key

_CHANGE = events_pb2.Change.DESCRIPTOR.full_name
_DOCUMENT = events_pb2.DocumentChange.DESCRIPTOR.full_name
_JOB = embedder_pb2.EmbeddingJob.DESCRIPTOR.full_name
_DELETE, _TRUNCATE = events_pb2.OPERATION_DELETE, events_pb2.OPERATION_TRUNCATE
_HEARTBEAT, _SNAPSHOT = events_pb2.OPERATION_HEARTBEAT, events_pb2.OPERATION_SNAPSHOT


def version_of(*parts: bytes) -> str:
    """Return what names a version: a hash of all that is embedded of it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def document_key(record: Record) -> Key:
    """Return the document that a record is about, by its key."""
    tenant, _, document_id = (record.key or b"").decode().partition(SEPARATOR)
    return Key(tenant, document_id)


class Decider:
    """Decides on the records of `documents` and `changes`."""

    def __init__(self, tables: Mapping[tuple[str, str], RowTemplate], model_id: str) -> None:
        self._model_id = model_id
        self._tables = tables
        # Most rows become no documents: their keys tell, without decoding what they hold.
        self._prefixes = {
            tuple(record_key(source, entity, {}).split("/")[:2]): template
            for (source, entity), template in tables.items()
        }

    def concerns(self, record: Record) -> bool:
        """Whether a record may change a document: whole tables of `changes` do not."""
        if record.topic != topics.CHANGES:
            return True
        return self._is_of_all_rows(record) or self._template(record) is not None

    def truncated(self, record: Record) -> Entity | None:
        """Return the entity of which a record takes away all rows."""
        if record.topic == topics.CHANGES and record.value is not None and self._is_of_all_rows(record):
            change = events_pb2.Change.FromString(record.value)
            if change.operation == _TRUNCATE:
                return Entity(change.tenant or DEFAULT_TENANT, change.source, change.entity)
        return None

    def decide(self, state: WorkingSet, record: Record) -> Decision:
        """Return what a record leads to, and change the working set accordingly."""
        if not self.concerns(record):
            return APPLIED
        if record.value is None:  # what compaction leaves of a deletion
            return self._remove(state, document_key(record), None, "", record.timestamp_ms)
        match record.type:
            case t if t == _DOCUMENT:
                return self._document(state, record, events_pb2.DocumentChange.FromString(record.value))
            case t if t == _CHANGE:
                return self._change(state, record, events_pb2.Change.FromString(record.value))
            case t if t == results.RESULT:
                result = embedder_pb2.EmbeddingResult.FromString(record.value)
                return results.decide(state, result, record.timestamp_ms)
            case other:
                raise InvalidInputError(f"{record.topic}: {other!r} is no event that makes documents")

    def _is_of_all_rows(self, record: Record) -> bool:
        """Whether a record of `changes` is a truncation or heartbeat: their keys have no primary key."""
        return len((record.key or b"").decode().partition(SEPARATOR)[2].split("/", 2)) < 3

    def _template(self, record: Record) -> RowTemplate | None:
        parts = (record.key or b"").decode().partition(SEPARATOR)[2].split("/", 2)
        return self._prefixes.get(tuple(parts[:2]))

    # Documents --------------------------------------------------------------------------------------------------

    def _document(self, state: WorkingSet, record: Record, change: events_pb2.DocumentChange) -> Decision:
        key = Key(change.tenant or DEFAULT_TENANT, change.document_id)
        occurred_ms = change.occurred_at.ToMilliseconds()
        state.sightings.note(key.tenant, change.source, occurred_ms, change.position)
        if change.operation == events_pb2.DOCUMENT_OPERATION_DELETE:
            return self._remove(state, key, None, change.position, occurred_ms)
        if change.operation != events_pb2.DOCUMENT_OPERATION_PUT:
            raise InvalidInputError(f"document {key.document_id}: unknown operation {change.operation}")
        if state.is_stale(key, None, change.position, occurred_ms):
            return SUPERSEDED
        accepted = Document(
            key,
            change.source,
            position=change.position,
            occurred_ms=occurred_ms,
            wanted=version_of(change.media_type.encode(), change.name.encode(), change.content),
            name=change.name,
            uri=change.uri,
            metadata=orjson.dumps(dict(change.metadata), option=orjson.OPT_SORT_KEYS).decode(),
            access=tuple(sorted(set(change.access))),
        )
        work = Work(
            None, change.media_type, len(change.content), state.lane, record.topic, record.partition, record.offset
        )
        return self._accept(state, accepted, work)

    # Rows -------------------------------------------------------------------------------------------------------

    def _change(self, state: WorkingSet, record: Record, change: events_pb2.Change) -> Decision:
        tenant, occurred_ms = change.tenant or DEFAULT_TENANT, change.occurred_at.ToMilliseconds()
        if change.operation == _HEARTBEAT:
            state.sightings.note_heartbeat(tenant, change.source, occurred_ms)
            return APPLIED
        template = self._tables.get((change.source, change.entity))
        if template is None:
            return APPLIED
        state.sightings.note(tenant, change.source, occurred_ms, change.source_position)
        entity = Entity(tenant, change.source, change.entity)
        if change.operation == _TRUNCATE:
            return self._truncate(state, entity, record.partition, change.position, occurred_ms)
        key = Key(tenant, change.record)
        if change.operation == _DELETE:
            return self._remove(state, key, entity, change.position, occurred_ms)
        row = orjson.loads(change.after_json)
        values = {column: row[column] for column in template.columns if column in row}
        if state.is_stale(key, entity, change.position, occurred_ms):
            return self._fill(state, record, key, values, change.position)
        known_at: dict[str, str] = {}
        left_out: Iterable[str] = change.unavailable
        if change.partial:
            left_out = {*left_out, *template.columns} - row.keys()
        if left_out:
            values, known_at = _kept(state.documents.get(key), template, values, left_out)
        accepted = Document(
            key, change.source, change.entity, record.partition, position=change.position, occurred_ms=occurred_ms
        )
        lane = Lane.BACKFILL if change.operation == _SNAPSHOT else state.lane
        return self._accept_row(state, record, accepted, values, known_at=known_at, lane=lane)

    def _accept_row(
        self,
        state: WorkingSet,
        record: Record,
        accepted: Document,
        values: dict[str, Any],
        *,
        known_at: dict[str, str],
        lane: Lane,
    ) -> Decision:
        template = self._tables[accepted.source, accepted.entity]
        title, text = template.title_of(values), template.text_of(values).encode()
        accepted = replace(
            accepted,
            wanted=version_of(b"text/plain", title.encode(), text),
            name=title,
            metadata=orjson.dumps(template.metadata_of(values), option=orjson.OPT_SORT_KEYS).decode(),
            live=template.live_of(values),
            access=template.access_of(values),
            row=orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode(),
            known_at=orjson.dumps(known_at, option=orjson.OPT_SORT_KEYS).decode() if known_at else "",
        )
        work = Work(text, "text/plain", len(text), lane, record.topic, record.partition, record.offset)
        return self._accept(state, accepted, work)

    def _fill(self, state: WorkingSet, record: Record, key: Key, values: dict[str, Any], position: str) -> Decision:
        """Take from a late change what newer ones left out: the row is then as if all had come in order."""
        document = state.documents.get(key)
        if document is None or not document.known_at:
            return SUPERSEDED
        known_at: dict[str, str] = orjson.loads(document.known_at)
        news = [c for c, at in known_at.items() if c in values and position > at and newer(position, at)]
        if not news:
            return SUPERSEDED
        stored = orjson.loads(document.row) | {column: values[column] for column in news}
        known_at.update(dict.fromkeys(news, position))
        return self._accept_row(state, record, document, stored, known_at=known_at, lane=state.lane)

    def _truncate(self, state: WorkingSet, entity: Entity, partition: int, position: str, occurred_ms: int) -> Decision:
        if not newer(position, state.truncated.get(entity, "")):
            return SUPERSEDED
        if position:
            state.truncated[entity] = position
            state.truncated_now[entity] = partition
        outputs: list[Message] = []
        for document in list(state.documents.values()):
            place = Entity(document.key.tenant, document.source, document.entity)
            if place == entity and document.partition == partition and newer(position, document.position):
                outputs += self._taken_away(state, document, occurred_ms)
        return Decision(Outcome.APPLIED, outputs)

    # Both -------------------------------------------------------------------------------------------------------

    def _accept(self, state: WorkingSet, accepted: Document, work: Work) -> Decision:
        key, stored = accepted.key, state.documents.get(accepted.key)
        if stored is None:
            state.put(replace(accepted, shown_to=accepted.access, waits=True), work)
            return Decision(Outcome.APPLIED, [self._pending(accepted, work)])
        accepted = replace(
            accepted, version=stored.version, chunks=stored.chunks, shown_ms=stored.shown_ms, row_id=stored.row_id,
            title=stored.title,
        )  # fmt: skip
        if accepted.wanted == stored.wanted:
            return self._shown_at_once(state, replace(accepted, waits=stored.waits), stored, work)
        if accepted.wanted == stored.version:  # back to what can be found already
            decision = self._shown_at_once(state, replace(accepted, waits=False), stored, work)
            return Decision(Outcome.APPLIED, [*decision.outputs, _job_gone(key, accepted.occurred_ms)])
        shown_to = narrower(stored.shown_to, accepted.access, NOBODY) if stored.version else accepted.access
        state.put(replace(accepted, shown_to=shown_to, waits=True), work)
        return Decision(Outcome.APPLIED, [self._pending(accepted, work)])

    def _shown_at_once(self, state: WorkingSet, accepted: Document, stored: Document, work: Work) -> Decision:
        """Apply what costs no embedding."""
        if accepted.waits and accepted.version:
            accepted = replace(accepted, shown_to=narrower(stored.shown_to, accepted.access, NOBODY))
        else:
            accepted = replace(accepted, shown_to=accepted.access, shown_ms=accepted.occurred_ms)
        if accepted == stored:
            return SUPERSEDED
        state.put(accepted, work)
        same = replace(accepted, position=stored.position, occurred_ms=stored.occurred_ms, shown_ms=stored.shown_ms)
        if not accepted.version or same == stored:
            return APPLIED  # nothing that a reader could see
        event = indexed_event(
            *accepted.key,
            accepted.version,
            chunks=accepted.chunks,
            embedded=0,
            model_id=self._model_id,
            occurred_ms=accepted.occurred_ms,
        )
        return Decision(Outcome.APPLIED, [event])

    def _remove(self, state: WorkingSet, key: Key, entity: Entity | None, position: str, occurred_ms: int) -> Decision:
        if state.is_stale(key, entity, position, occurred_ms):
            return SUPERSEDED
        document = state.documents.get(key)
        outputs = self._taken_away(state, document, occurred_ms) if document is not None else []
        fenced = state.fence(key, position)
        return Decision(Outcome.APPLIED, outputs) if outputs or fenced else SUPERSEDED

    def _taken_away(self, state: WorkingSet, document: Document, occurred_ms: int) -> list[Message]:
        state.remove(document)
        gone = indexed_event(*document.key, "", chunks=0, embedded=0, model_id=self._model_id, occurred_ms=occurred_ms)
        return [gone, _job_gone(document.key, occurred_ms)] if document.waits else [gone]

    def _pending(self, document: Document, work: Work) -> Message:
        job = Job(document.key, document.wanted, self._model_id, work.lane, work.size, JobState.PENDING)
        return job_event(*document.key, job, document.occurred_ms)


def _kept(
    stored: Document | None, template: RowTemplate, values: dict[str, Any], unavailable: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Complete a row with the stored values of columns that its change left out, and tell from when these are."""
    columns = [column for column in unavailable if column in template.columns]
    if stored is None:
        return values, dict.fromkeys(columns, "")
    row = orjson.loads(stored.row)
    before: dict[str, str] = orjson.loads(stored.known_at) if stored.known_at else {}
    kept = {column: row[column] for column in columns if column in row}
    return values | kept, {column: before.get(column, stored.position) for column in columns}


def _job_gone(key: Key, at_ms: int) -> Message:
    return Message(topics.JOBS, key_of(*key), None, _JOB, at_ms)
