"""What all decoders share: their error, what they must be told beside the bytes, JSON and times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from headwater.ingest.v1 import events_pb2

Decoded = events_pb2.Change | events_pb2.DocumentChange

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999, as the protobuf timestamp allows
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DecodeError(ValueError):
    """A record that cannot be decoded: what is wrong with it, and what to do."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}: {cure}")
        self.what = what
        self.cure = cure


class UnknownSchemaError(Exception):
    """A record needs a schema that is not known yet. It is no fault of the record: fetch the schema, and try again."""

    def __init__(self, schema_id: int) -> None:
        super().__init__(f"schema {schema_id}")
        self.schema_id = schema_id


@dataclass(frozen=True, slots=True)
class Hints:
    """What the bytes may not tell.

    Attributes:
        source: The source's name; it outranks the name in the event. Empty takes the event's.
        tenant: The tenant that every change gets.
        keys: Key columns by `source/entity` or `entity`, for events that come without their key.
        schemas: What is known of the schema registry; None where there is none.
    """

    source: str = ""
    tenant: str = ""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    schemas: Mapping[int, Any] | None = None

    def key_columns(self, source: str, entity: str) -> tuple[str, ...]:
        """The columns that are an entity's key: as configured, else `id`."""
        return self.keys.get(f"{source}/{entity}") or self.keys.get(entity) or ("id",)


Decoder = Callable[[bytes, Hints], list[Decoded]]
"""Decodes one record. It returns nothing for a record that means nothing by design, such as a tombstone.

Raises DecodeError for any bytes that it cannot decode, UnknownSchemaError for those that need a schema which is not
among the hints, and nothing else.
"""


def parse(record: bytes | str) -> Any:
    """Parse JSON; a byte order mark before it is forgiven."""
    if isinstance(record, bytes) and record.startswith(_BYTE_ORDER_MARK):
        record = record[len(_BYTE_ORDER_MARK) :]
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"not valid JSON ({error})", "write one JSON object a line, in UTF-8") from error


def parse_object(record: bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    value = parse(record)
    if type(value) is not dict:
        raise DecodeError(f"a JSON {json_type(value)} is not an event", "write one JSON object a line")
    return value


def dump(value: Any) -> str:
    """A decoded JSON value as compact JSON text."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:  # deeper than it reads: 254 levels
        raise DecodeError(f"a value cannot be written as JSON ({error})", "nest less deeply") from error


def dump_key(key: Mapping[str, Any]) -> str:
    """A key as canonical JSON text: equal keys have equal texts, whatever the order of their columns."""
    try:
        return orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError as error:
        raise DecodeError(f"a key cannot be written as JSON ({error})", "nest less deeply") from error


def checked_key(key: Any, where: str) -> dict[str, Any]:
    """A primary key as it must be: an object with a value for every column."""
    if type(key) is not dict or not key:
        raise DecodeError(f'{where} has no "key"', 'give the primary key as an object, such as {"id": 42}')
    if None in key.values():
        column = next(column for column, value in key.items() if value is None)
        raise DecodeError(f"{where}: the key column {column!r} is null", "give every key column a value")
    return key


def json_type(value: Any) -> str:
    """What a JSON reader calls the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def instant(text: str) -> tuple[int, int]:
    """Seconds since the epoch, and nanoseconds, of an RFC 3339 time; without an offset it means UTC."""
    try:
        moment = datetime.fromisoformat(text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"{text!r:.60} is not a time", "write RFC 3339, such as 2026-11-23T17:00:00Z") from error
    return _in_range(since.days * 86_400 + since.seconds), since.microseconds * 1_000


def epoch(value: int, per_second: int) -> tuple[int, int]:
    """Seconds since the epoch, and nanoseconds, of a number of ticks since the epoch."""
    seconds, ticks = divmod(value, per_second)
    return _in_range(seconds), ticks * (1_000_000_000 // per_second)


def _in_range(seconds: int) -> int:
    if seconds not in _SECONDS:
        raise DecodeError("a time is outside the years 1 to 9999", "check its unit")
    return seconds
