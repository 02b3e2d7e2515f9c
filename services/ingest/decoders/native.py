"""Headwater's own form of a change: one JSON object.

    {"source": "crm", "entity": "customers", "op": "update", "key": {"id": 42}, "after": {…}, "before": {…},
     "position": 1017, "time": "2026-11-23T17:00:00Z", "tx": "…", "by": "…"}

`op` is snapshot, insert, update, delete, truncate or heartbeat. Only source, entity, op, key and, but for deletes,
after are required; truncate has no key, a heartbeat no entity either. `position` is a number or a text whose runs of
digits compare as numbers; without one, and between a number and another text, the order of arrival decides. `time` is
RFC 3339 or milliseconds since 1970.
"""

from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import (
    Decoded,
    DecodeError,
    Hints,
    checked_key,
    dump,
    dump_key,
    epoch,
    instant,
    json_type,
    parse_object,
)
from services.kernel.positions import natural, padded
from services.kernel.records import record_key

OPERATIONS = {
    "snapshot": events_pb2.OPERATION_SNAPSHOT,
    "insert": events_pb2.OPERATION_INSERT,
    "update": events_pb2.OPERATION_UPDATE,
    "delete": events_pb2.OPERATION_DELETE,
    "truncate": events_pb2.OPERATION_TRUNCATE,
    "heartbeat": events_pb2.OPERATION_HEARTBEAT,
}
NUMBER_DIGITS_MAX = 20  # of what `padded` keeps in order
_KEYLESS = (events_pb2.OPERATION_TRUNCATE, events_pb2.OPERATION_HEARTBEAT)


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one event."""
    return [to_change(parse_object(record), hints)]


def is_native(event: dict[str, Any]) -> bool:
    """Whether an object is meant as a native event."""
    return type(event.get("op")) is str and ("entity" in event or type(event.get("source")) is str)


def to_change(event: dict[str, Any], hints: Hints) -> events_pb2.Change:
    """The change that a native event means."""
    get = event.get
    op = get("op")
    operation = OPERATIONS.get(op) if type(op) is str else None
    if operation is None:
        raise DecodeError(f'"op" is {op!r:.40}', f"use one of {', '.join(OPERATIONS)}")
    source = hints.source or _text(event, "source")
    position, as_written = position_of(get("position"), source)
    change = events_pb2.Change(
        tenant=hints.tenant,
        source=source,
        operation=operation,
        position=position,
        source_position=as_written,
        transaction=_label(get("tx")),
        initiator=_label(get("by")),
    )
    if operation not in _KEYLESS:
        entity = _text(event, "entity")
        key = checked_key(get("key"), "the event")
        change.entity, change.key_json = entity, dump_key(key)
        change.record = record_key(source, entity, key)
        _add_rows(change, event)
    elif operation == events_pb2.OPERATION_TRUNCATE:
        change.entity = _text(event, "entity")
    if (time := get("time")) is not None:
        at = change.occurred_at
        at.seconds, at.nanos = _time(time)
    return change


def position_of(value: Any, source: str) -> tuple[str, str]:
    """A native position in comparable form, and as it was written."""
    if type(value) is int and value >= 0:
        return f"native:{source}:{padded(value)}", str(value)
    if value is None or value == "":
        return "", ""
    if type(value) is str:
        return text_position(value, source), value
    raise DecodeError(f'"position" is {value!r:.40}', "give a whole number from 0, or a text")


def text_position(text: str, source: str) -> str:
    """A native position that is a text, in comparable form.

    Digits alone are a number. Any other text has a domain of its own: every letter comes after every digit, so that
    one text among a source's numbers would hold up all changes after it as older.
    """
    digits = text.lstrip("0")
    if text.isascii() and text.isdigit() and len(digits) <= NUMBER_DIGITS_MAX:
        return f"native:{source}:{digits.zfill(NUMBER_DIGITS_MAX)}"
    return f"native-text:{source}:{natural(text)}"


def _add_rows(change: events_pb2.Change, event: dict[str, Any]) -> None:
    if change.operation != events_pb2.OPERATION_DELETE:
        after = event.get("after")
        if type(after) is not dict:
            raise DecodeError(f'"after" is {_found(event, "after")}', "give the row after the change as an object")
        change.after_json = dump(after)
    if (before := event.get("before")) is not None:
        if type(before) is not dict:
            raise DecodeError(f'"before" is a {json_type(before)}', "give the row before as an object, or leave it out")
        change.before_json = dump(before)


def _text(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    if type(value) is not str or not value:
        raise DecodeError(f'"{name}" is {_found(event, name)}', "give it as a text")
    return value


def _found(event: dict[str, Any], name: str) -> str:
    if name not in event:
        return "missing"
    return "empty" if event[name] == "" else f"a {json_type(event[name])}"


def _label(value: Any) -> str:
    if value is None:
        return ""
    return value if type(value) is str else dump(value)


def _time(value: Any) -> tuple[int, int]:
    if type(value) is str:
        return instant(value)
    if type(value) is int:
        return epoch(value, 1_000)
    raise DecodeError(f'"time" is {value!r:.40}', "write RFC 3339, or milliseconds since 1970")
