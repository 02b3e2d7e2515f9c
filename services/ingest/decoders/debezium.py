"""Debezium's events (PostgreSQL, MySQL, MariaDB, MongoDB), as JSON: with the schema wrapper, without it, or flattened.

Source is the connector's `topic.prefix`. Entity is the table; a PostgreSQL schema other than `public` comes before it
(`crm.customers`), a MySQL database does not. Changes that Debezium sends in pairs stay pairs: a new primary key is a
delete of the old record and an insert of the new one. Heartbeats are kept, tombstones, transaction markers, schema
changes and messages mean nothing here.

Under PostgreSQL's usual replica identity the `before` of a delete is the key and, for the other columns, fillers that
look real. Since nothing in the event tells them from values, only the key of it is believed. (The flattened form can
not tell the database; it is treated like PostgreSQL.)
"""

import re
from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import debezium_mongodb
from services.ingest.decoders.common import (
    Decoded,
    DecodeError,
    Hints,
    checked_key,
    dump,
    dump_key,
    epoch,
    json_type,
    parse,
)
from services.ingest.decoders.debezium_positions import position_of
from services.ingest.decoders.debezium_types import field_schema, is_unavailable, readable_row
from services.kernel.records import record_key

OPERATIONS = {
    "r": events_pb2.OPERATION_SNAPSHOT,
    "c": events_pb2.OPERATION_INSERT,
    "u": events_pb2.OPERATION_UPDATE,
    "d": events_pb2.OPERATION_DELETE,
    "t": events_pb2.OPERATION_TRUNCATE,
}
HEARTBEAT_TOPIC = "__debezium-heartbeat."
_MESSAGE = "m"  # written by pg_logical_emit_message: not about a row
# What ExtractNewRecordState adds with `add.fields`: all columns that begin like this are its own.
_ADDED = re.compile(
    r"__source_(.+)|__(op|deleted|connector|name|db|schema|table|collection|snapshot|sequence|lsn|txId|file|pos|row|gtid"
    r"|ts_[mun]s|transaction_id|transaction_total_order)"
)
_UNWRAPPED_CURE = "let the unwrap transform add them: add.fields=op,name,schema,table,sequence,source.ts_ms"


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode the value of one Kafka record, given without its key and topic."""
    return list(from_value(parse(record), hints))


def is_debezium(event: dict[str, Any]) -> bool:
    """Whether an object is surely one of Debezium's."""
    if "payload" in event and "schema" in event:
        return True
    if type(event.get("source")) is dict:
        return True
    return any(name in ("__op", "__deleted") or name.startswith("__source_") for name in event)


def from_value(value: Any, hints: Hints, key: Any = None, topic: str = "") -> list[events_pb2.Change]:
    """The changes that a Kafka record means.

    Args:
        value: The record's value, parsed; None is a tombstone.
        hints: The source's name and key columns, where the event leaves them out.
        key: The record's key, parsed, where it came with one.
        topic: The record's topic, where it is known.
    """
    payload, schema = _without_wrapper(value)
    if payload is None:
        return []
    if type(payload) is not dict:
        raise DecodeError(f"the value is a {json_type(payload)}", "send Debezium's JSON: an object")
    if topic.startswith(HEARTBEAT_TOPIC) or payload.keys() == {"ts_ms"}:
        return [_heartbeat(payload, hints, key, topic)]
    source, op = payload.get("source"), payload.get("op")
    if type(source) is dict and "op" in payload:
        return [] if op == _MESSAGE else [_enveloped(payload, schema, source, hints, key)]
    if "ddl" in payload or payload.get("status") in ("BEGIN", "END"):
        return []
    return [_flattened(payload, schema, hints, key, topic)]


def _without_wrapper(value: Any) -> tuple[Any, Any]:
    if type(value) is dict and value.keys() == {"schema", "payload"}:
        return value["payload"], value["schema"]
    return value, None


def _heartbeat(payload: dict[str, Any], hints: Hints, key: Any, topic: str) -> events_pb2.Change:
    payload_of_key, _ = _without_wrapper(key)
    named = payload_of_key.get("serverName") if type(payload_of_key) is dict else None
    source = hints.source or topic.removeprefix(HEARTBEAT_TOPIC) or (named if type(named) is str else "")
    if not source:
        raise DecodeError("a heartbeat does not name its source", "give the source's name, or keep the record's key")
    change = events_pb2.Change(tenant=hints.tenant, source=source, operation=events_pb2.OPERATION_HEARTBEAT)
    _set_time(change, payload)
    return change


def _enveloped(
    payload: dict[str, Any], schema: Any, source: dict[str, Any], hints: Hints, key: Any
) -> events_pb2.Change:
    if debezium_mongodb.is_mongodb(source):
        change = _begun(payload["op"], source, hints, _collection(source), payload.get("transaction"))
        _set_time(change, source)
        debezium_mongodb.add_document(change, payload, _without_wrapper(key)[0])
        return change
    change = _begun(payload["op"], source, hints, _table(source), payload.get("transaction"))
    _set_time(change, source)
    before = _row(payload, "before", schema)
    if change.operation == events_pb2.OPERATION_DELETE:
        # PostgreSQL fills what it does not know of a deleted row; the others tell all of it.
        believed = None if source.get("connector") in (None, "postgresql") else before
        _add_rows(change, before or {}, believed, hints, key)
    elif change.operation != events_pb2.OPERATION_TRUNCATE:
        after = _row(payload, "after", schema)
        if after is None:
            raise DecodeError('"after" is missing', "let Debezium send the row as an object")
        _add_rows(change, after, before, hints, key)
    return change


def _flattened(payload: dict[str, Any], schema: Any, hints: Hints, key: Any, topic: str) -> events_pb2.Change:
    row, added = dict(payload), {}
    for column in payload:
        if name := _added(column):
            added[name] = row.pop(column)
    gone = str(added.get("deleted")).lower() == "true"
    prefix, _, path = topic.partition(".")
    transaction = {"id": added.get("transaction_id"), "total_order": added.get("transaction_total_order")}
    op = "d" if gone else added.get("op") or "u"
    entity = _table(added, path)
    if "collection" in added:
        entity, key = _collection(added), debezium_mongodb.flattened_key(_without_wrapper(key)[0], row)
    change = _begun(op, {"name": prefix, **added}, hints, entity, transaction)
    _set_time(change, added)
    if change.operation != events_pb2.OPERATION_TRUNCATE:
        _add_rows(change, readable_row(row, schema), None, hints, key)
    return change


def _added(column: str) -> str:
    """The name of the metadata in a column of a flattened event, or nothing for a column of the row."""
    found = _ADDED.fullmatch(column) if column.startswith("__") else None
    return found[1] or found[2] if found else ""


def _begun(op: Any, source: dict[str, Any], hints: Hints, entity: str, transaction: Any) -> events_pb2.Change:
    """A change with all but its rows and time."""
    operation = OPERATIONS.get(op) if type(op) is str else None
    if operation is None:
        raise DecodeError(f'"op" is {op!r:.40}', f"Debezium's operations are {', '.join(OPERATIONS)}")
    name = hints.source or source.get("name")
    if type(name) is not str or not name or not entity:
        raise DecodeError(
            "the event does not name its source and table", f"give the source's name, or {_UNWRAPPED_CURE}"
        )
    transaction = transaction if type(transaction) is dict else {}
    snapshot = operation == events_pb2.OPERATION_SNAPSHOT
    position, as_written = position_of(source, name, snapshot=snapshot, order=transaction.get("total_order"))
    number = transaction.get("id") or source.get("gtid") or source.get("txId") or ""
    return events_pb2.Change(
        tenant=hints.tenant,
        source=name,
        entity=entity,
        operation=operation,
        position=position,
        source_position=as_written,
        transaction=str(number) if type(number) in (str, int) else "",
    )


def _add_rows(
    change: events_pb2.Change, row: dict[str, Any], before: dict[str, Any] | None, hints: Hints, key: Any
) -> None:
    columns = _key(key, row, change, hints)
    change.key_json = dump_key(columns)
    change.record = record_key(change.source, change.entity, columns)
    if change.operation == events_pb2.OPERATION_DELETE:
        before = before or columns
    else:
        unavailable = [name for name, value in row.items() if is_unavailable(value)]
        change.unavailable.extend(unavailable)
        change.after_json = dump(_without(row, unavailable))
    if before:
        change.before_json = dump(_without(before, [name for name, value in before.items() if is_unavailable(value)]))


def _without(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in columns} if columns else row


def _key(key: Any, row: dict[str, Any], change: events_pb2.Change, hints: Hints) -> dict[str, Any]:
    where = f"the event of {change.source}/{change.entity}"
    key, schema = _without_wrapper(key)
    columns = hints.key_columns(change.source, change.entity)
    if type(key) is dict:
        return checked_key(readable_row(key, schema), where)
    if key is not None and len(columns) == 1:  # a key that a transform has reduced to its value
        return {columns[0]: key}
    if any(column not in row for column in columns):
        raise DecodeError(
            f"{where} comes without its key, and has no column {', '.join(columns)}",
            f'send it with its key (kcat -J), or name the key: [ingest.keys] "{change.source}/{change.entity}" = ["…"]',
        )
    return checked_key({column: row[column] for column in columns}, where)


def _row(payload: dict[str, Any], name: str, schema: Any) -> dict[str, Any] | None:
    row = payload.get(name)
    if row is not None and type(row) is not dict:
        raise DecodeError(f'"{name}" is a {json_type(row)}', "only connectors that send rows as objects are understood")
    return readable_row(row, field_schema(schema, name)) if row is not None and schema is not None else row


def _collection(source: dict[str, Any]) -> str:
    name = source.get("collection")
    return name if type(name) is str else ""


def _table(source: dict[str, Any], path: str = "") -> str:
    """The entity, by the source block, or else by the rest of the topic's name behind the prefix."""
    table, schema = source.get("table"), source.get("schema")
    if type(table) is not str or not table:
        return path.removeprefix("public.")
    return f"{schema}.{table}" if type(schema) is str and schema not in ("", "public") else table


def _set_time(change: events_pb2.Change, block: dict[str, Any]) -> None:
    for name, per_second in (("ts_ns", 1_000_000_000), ("ts_us", 1_000_000), ("ts_ms", 1_000)):
        value = block.get(name)
        if type(value) is int and value > 0:
            at = change.occurred_at
            at.seconds, at.nanos = epoch(value, per_second)
            return
