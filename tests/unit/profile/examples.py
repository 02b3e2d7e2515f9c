"""Changes, assignments and rows for the tests of the profile service."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headwater.common.v1 import common_pb2
from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.kernel import topics
from services.kernel.log import Message, Record, key_of, message_of, partition_of
from services.kernel.positions import padded
from services.kernel.records import record_key
from services.profile.projection import SourceRow
from services.profile.settings import Settings

OPERATIONS = {
    "snapshot": ingest_pb2.OPERATION_SNAPSHOT,
    "insert": ingest_pb2.OPERATION_INSERT,
    "update": ingest_pb2.OPERATION_UPDATE,
    "delete": ingest_pb2.OPERATION_DELETE,
    "truncate": ingest_pb2.OPERATION_TRUNCATE,
    "heartbeat": ingest_pb2.OPERATION_HEARTBEAT,
}
T0_MS = 1_764_000_000_000
PARTITIONS = 4


def change(
    op: str,
    key: str | int = "",
    after: Mapping[str, Any] | None = None,
    *,
    at: int | None = None,
    source: str = "crm",
    entity: str = "customers",
    tenant: str = "default",
    unavailable: Sequence[str] = (),
    partial: bool = False,
    partition: int | None = None,
    time_ms: int | None = None,
) -> Message:
    """A change whose source position and time are both `at`; None is a source without positions, at `time_ms`."""
    happened_ms = T0_MS + (at or 0) * 1000 if time_ms is None else time_ms
    whole = op in {"truncate", "heartbeat"}
    record = "" if whole else record_key(source, entity, {"id": key})
    event = ingest_pb2.Change(
        tenant=tenant, source=source, entity=entity, record=record, operation=OPERATIONS[op],
        after_json="" if after is None else orjson.dumps(after).decode(), unavailable=unavailable,
        partial=partial,
        position="" if at is None else f"test:{source}:{padded(at)}", source_position="" if at is None else str(at),
    )  # fmt: skip
    event.occurred_at.FromMilliseconds(happened_ms)
    topic_key = key_of(tenant, source, entity) if whole else key_of(tenant, record)
    return message_of(topics.CHANGES, topic_key, event, happened_ms, partition)


def assigned(
    record: str,
    profile_id: str,
    generation: int = 1,
    *,
    tenant: str = "default",
    identifiers: Sequence[tuple[str, str]] = (),
    suspect: bool = False,
    time_ms: int = T0_MS,
) -> Message:
    """An assignment of a record to a profile; an empty profile takes it away."""
    event = identity_pb2.RecordAssigned(
        tenant=tenant, record=record, profile_id=profile_id, generation=generation, suspect=suspect,
        identifiers=[common_pb2.Identifier(kind=kind, value=value) for kind, value in identifiers],
    )  # fmt: skip
    return message_of(topics.ASSIGNMENTS, key_of(tenant, record), event, time_ms)


def delivered(messages: Sequence[Message], start: int = 0) -> list[Record]:
    """Messages as a consumer reads them."""
    return [
        Record(
            m.topic, partition_of(m.key or b"", PARTITIONS) if m.partition is None else m.partition, start + offset,
            m.key, m.value, m.type, f"e{start + offset}", m.timestamp_ms,
        )
        for offset, m in enumerate(messages)
    ]  # fmt: skip


def row(
    record: str, values: Mapping[str, Any], at: int = 0, *, suspect: bool = False, identifiers: str = "[]"
) -> SourceRow:
    """A current row; the record key begins with source and entity."""
    source, entity, _ = record.split("/", 2)
    return SourceRow(
        record, source, entity, (T0_MS + at * 1000) * 1000, orjson.dumps(values).decode(), identifiers, int(suspect)
    )


def settings(**table: Any) -> Settings:
    """Settings from the table [profile]."""
    return Settings.from_config(table)
