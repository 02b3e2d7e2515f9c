"""AWS DMS's records for Kinesis and Kafka, as JSON: `{"data": {…}, "metadata": {…}}`.

The source is `dms` unless it is named; entity is the table, with its schema before it unless that is `public`. A record
does not name its key: it is the column `id`, or the columns of [ingest.keys]. With `BeforeImageSettings` an update
that changes the key is a delete of the old record and an insert of the new one.

Control records (create-table, drop-table, add-column, …) mean nothing here, but for truncate-table: DMS writes them to
another shard than the rows, so that nothing tells which rows came before a drop-table and which after it.

The order is that of the database's log (`stream-position`) and within it of the transaction, with
`IncludeTransactionDetails`; rows of the full load, and records without it, count in the order of their arrival.
"""

import re
from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import (
    Decoded,
    DecodeError,
    Hints,
    checked_key,
    dump,
    dump_key,
    instant,
    json_type,
    parse_object,
)
from services.kernel.positions import padded
from services.kernel.records import record_key

OPERATIONS = {
    "load": events_pb2.OPERATION_SNAPSHOT,
    "insert": events_pb2.OPERATION_INSERT,
    "update": events_pb2.OPERATION_UPDATE,
    "delete": events_pb2.OPERATION_DELETE,
}
DEFAULT_SOURCE = "dms"
_BEFORE_IMAGES = ("before-image", "before")  # the name is the user's choice; these are the documentation's
# PostgreSQL: two log sequence numbers, of eight hexadecimal digits a half, with a counter between them.
_LOG_SEQUENCE = re.compile(r"([0-9A-F]{8})/([0-9A-F]{8})\.(\d+)\.([0-9A-F]{8})/([0-9A-F]{8})")


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one record."""
    return list(from_object(parse_object(record), hints))


def is_dms(event: dict[str, Any]) -> bool:
    """Whether an object is one of DMS's records."""
    metadata = event.get("metadata")
    return type(metadata) is dict and "record-type" in metadata and "operation" in metadata


def from_object(event: dict[str, Any], hints: Hints) -> list[events_pb2.Change]:
    """The changes that a record means."""
    if not is_dms(event):
        raise DecodeError('there is no "metadata" with record-type and operation', "send the records that DMS writes")
    metadata = event["metadata"]
    kind, operation = metadata["record-type"], metadata["operation"]
    if kind == "control":
        return [_begun(metadata, events_pb2.OPERATION_TRUNCATE, hints)] if operation == "truncate-table" else []
    if kind != "data" or type(operation) is not str or operation not in OPERATIONS:
        raise DecodeError(
            f"the record is {kind!r:.30} {operation!r:.30}",
            f"DMS writes data records that {', '.join(OPERATIONS)}, and control records",
        )
    change = _begun(metadata, OPERATIONS[operation], hints)
    row = event.get("data")
    if type(row) is not dict:
        raise DecodeError(f'"data" is a {json_type(row)}', "let DMS send the row as an object")
    before = _before(event)
    key = _key(row, change, hints)
    old_key = {**key, **{column: before[column] for column in key if before.get(column) is not None}}
    _add_record(change, key)
    if change.operation == events_pb2.OPERATION_DELETE:
        change.before_json = dump({**row, **before})
        return [change]
    change.after_json = dump(row)
    if before:
        change.before_json = dump(before)
    if old_key == key:
        return [change]
    gone = events_pb2.Change()
    gone.CopyFrom(change)
    gone.operation, gone.after_json, gone.before_json = events_pb2.OPERATION_DELETE, "", dump({**before, **old_key})
    _add_record(gone, old_key)
    change.operation = events_pb2.OPERATION_INSERT
    return [gone, change]


def _begun(metadata: dict[str, Any], operation: events_pb2.Operation.ValueType, hints: Hints) -> events_pb2.Change:
    table, schema = metadata.get("table-name"), metadata.get("schema-name")
    if type(table) is not str or not table:
        raise DecodeError("the record does not name its table", "let DMS write the metadata: table-name")
    source = hints.source or DEFAULT_SOURCE
    position, as_written = _position(metadata, source)
    change = events_pb2.Change(
        tenant=hints.tenant,
        source=source,
        entity=f"{schema}.{table}" if type(schema) is str and schema not in ("", "public") else table,
        operation=operation,
        position=position,
        source_position=as_written,
        transaction=_number_text(metadata.get("transaction-id")),
    )
    for name in ("commit-timestamp", "timestamp"):
        time = metadata.get(name)
        if type(time) is str and time:
            at = change.occurred_at
            at.seconds, at.nanos = instant(time)
            break
    return change


def _position(metadata: dict[str, Any], source: str) -> tuple[str, str]:
    place, order = metadata.get("stream-position"), metadata.get("transaction-record-id")
    if type(place) is not str or not place:
        return "", ""
    order = order if type(order) is int and order >= 0 else 0
    if found := _LOG_SEQUENCE.fullmatch(place):
        change, counter, commit = found[1] + found[2], int(found[3]), found[4] + found[5]
        return f"dms:{source}:{change}.{padded(counter)}.{commit}.{padded(order)}", place
    # The form of other databases' positions is not published: what cannot be compared for sure is not compared.
    return "", place


def _before(event: dict[str, Any]) -> dict[str, Any]:
    for name in _BEFORE_IMAGES:
        value = event.get(name)
        if value is None:
            continue
        if type(value) is not dict:
            raise DecodeError(f'"{name}" is a {json_type(value)}', "let DMS send the row before as an object")
        return value
    return {}


def _key(row: dict[str, Any], change: events_pb2.Change, hints: Hints) -> dict[str, Any]:
    where = f"the record of {change.source}/{change.entity}"
    columns = hints.key_columns(change.source, change.entity)
    if missing := [column for column in columns if column not in row]:
        raise DecodeError(
            f"{where} has no column {', '.join(missing)}",
            f'name its key: [ingest.keys] "{change.source}/{change.entity}" = ["…"]',
        )
    return checked_key({column: row[column] for column in columns}, where)


def _add_record(change: events_pb2.Change, key: dict[str, Any]) -> None:
    change.key_json = dump_key(key)
    change.record = record_key(change.source, change.entity, key)


def _number_text(value: Any) -> str:
    return str(value) if type(value) in (int, str) else ""
