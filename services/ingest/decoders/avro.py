"""Avro in Confluent's wire format: a zero byte, the schema's number in four bytes, then the value.

The value is one of Debezium's, with its key where it comes in a Kafka record (see `kcat`). The schema comes from the
hints: whoever calls has fetched it from the schema registry. Values become what Debezium's JSON with its schema
becomes: dates and times ISO 8601 text, decimals decimal text, bytes base64.
"""

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from services.ingest.decoders import debezium
from services.ingest.decoders.common import Decoded, DecodeError, Hints, UnknownSchemaError
from services.ingest.decoders.debezium_types import readable

MAGIC = b"\0"
HEADER_BYTES = 5
_CURE = "send Avro in Confluent's wire format, as its AvroConverter writes it"
# Avro's own logical types as the types of Kafka Connect or Debezium that mean the same.
_LOGICAL = {
    "date": "io.debezium.time.Date",
    "time-millis": "io.debezium.time.Time",
    "time-micros": "io.debezium.time.MicroTime",
    "timestamp-millis": "io.debezium.time.Timestamp",
    "timestamp-micros": "io.debezium.time.MicroTimestamp",
    "timestamp-nanos": "io.debezium.time.NanoTimestamp",
    "local-timestamp-millis": "io.debezium.time.Timestamp",
    "local-timestamp-micros": "io.debezium.time.MicroTimestamp",
    "local-timestamp-nanos": "io.debezium.time.NanoTimestamp",
    "decimal": "org.apache.kafka.connect.data.Decimal",
}

_COMPLEX = ("record", "array", "map", "bytes", "fixed", "int", "long", "string")  # those that may have a meaning

_Convert = Callable[[Any], Any]


class Schema(NamedTuple):
    """A schema, ready for use: how to read a value, and how to make it plain."""

    parsed: Any
    plain: _Convert


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one value, given without its key and topic."""
    return list(debezium.from_value(value_of(record, hints), hints))


def is_base64(text: str) -> bool:
    """Whether a text can be base64 of Avro in this format: no JSON begins like that."""
    return text.startswith("AA")


def from_base64(text: str) -> bytes:
    """The bytes of base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DecodeError(f"the value is neither JSON nor base64 ({error})", _CURE) from error


def to_base64(content: bytes) -> str:
    """Bytes as base64 text."""
    return _base64(content)


def value_of(record: bytes, hints: Hints) -> Any:
    """A record's value as plain JSON.

    Raises:
        DecodeError: it is not Avro in this format, or not of the schema that it names.
        UnknownSchemaError: the schema is not among the hints.
    """
    if record[:1] != MAGIC or len(record) < HEADER_BYTES:
        raise DecodeError("the record does not begin with a zero byte and a schema's number", _CURE)
    if hints.schemas is None:
        raise DecodeError("the record is Avro, and no schema registry is set", "set url in [ingest.schema_registry]")
    number = int.from_bytes(record[1:HEADER_BYTES], "big")
    schema = hints.schemas.get(number)
    if schema is None:
        raise UnknownSchemaError(number)
    if isinstance(schema, DecodeError):
        raise DecodeError(schema.what, schema.cure)
    from fastavro import schemaless_reader  # of the extra `avro`

    body = io.BytesIO(record)
    body.seek(HEADER_BYTES)
    try:
        value = schema.plain(schemaless_reader(body, schema.parsed, None))
    except Exception as error:  # the reader raises whatever the bytes lead it to
        raise DecodeError(f"the record is not of its schema {number} ({error!r:.80})", _CURE) from error
    if body.tell() != len(record):
        raise DecodeError(f"the record is longer than its schema {number} says", _CURE)
    return value


def compiled(text: str) -> Schema:
    """Make a schema ready for use.

    Args:
        text: the schema as JSON text.

    Raises:
        DecodeError: it is no Avro schema.
        ImportError: the extra `avro` is not installed.
    """
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException, UnknownType

    try:
        schema = orjson.loads(text)
        named: dict[str, _Convert] = {}
        plain = _plain(schema, named, "")
        # Without logical types the values stay what Debezium's own types count in.
        return Schema(parse_schema(_bare(schema)), plain)
    except (orjson.JSONDecodeError, SchemaParseException, UnknownType, TypeError, ValueError, KeyError,
            AttributeError, RecursionError) as error:  # fmt: skip
        raise DecodeError(f"the schema cannot be read ({error!r:.80})", "register an Avro schema") from error


def _bare(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _bare(value) for name, value in schema.items() if name not in ("logicalType", "default")}
    return [_bare(part) for part in schema] if isinstance(schema, list) else schema


def _plain(schema: Any, named: dict[str, _Convert], space: str) -> _Convert:
    """How values of a schema become plain; `named` are the types met so far, by their full names."""
    if isinstance(schema, list):
        return _plain_union([_plain(part, named, space) for part in schema if part != "null"])
    if isinstance(schema, str):
        name = _full_name(schema, space) if _full_name(schema, space) in named else schema
        if name in named:
            return named[name]
        return _base64 if schema == "bytes" else _same
    kind = schema["type"]
    if isinstance(kind, dict | list) or kind not in _COMPLEX:
        return _plain(kind, named, space)
    inner: _Convert
    if kind == "record":
        return _plain_record(schema, named, space)
    if kind == "array":
        item = _plain(schema["items"], named, space)
        inner = lambda value: [item(each) for each in value]  # noqa: E731 - one of several forms
    elif kind == "map":
        item = _plain(schema["values"], named, space)
        inner = lambda value: {name: item(each) for name, each in value.items()}  # noqa: E731
    else:
        inner = _base64 if kind in ("bytes", "fixed") else _same
    plain = _typed(schema, inner)
    if kind == "fixed":
        named[_full_name(schema["name"], schema.get("namespace", space))] = plain
    return plain


def _full_name(name: str, space: str) -> str:
    return name if "." in name or not space else f"{space}.{name}"


def _plain_record(schema: Mapping[str, Any], named: dict[str, _Convert], space: str) -> _Convert:
    full = _full_name(schema["name"], schema.get("namespace", space))
    space = full.rpartition(".")[0]
    fields: dict[str, _Convert] = {}

    def record(value: dict[str, Any]) -> dict[str, Any]:
        return {field: fields[field](item) for field, item in value.items()}

    plain = named[full] = _typed(schema, record)
    fields.update({field["name"]: _plain(field["type"], named, space) for field in schema["fields"]})
    return plain


def _plain_union(branches: list[_Convert]) -> _Convert:
    if len(branches) == 1:
        (branch,) = branches
        return lambda value: None if value is None else branch(value)
    return _generic  # nothing tells which branch a value is of


def _typed(schema: Mapping[str, Any], inner: _Convert) -> _Convert:
    """Values of a type that Connect, Debezium or Avro itself gives a meaning."""
    name = schema.get("connect.name") or _LOGICAL.get(schema.get("logicalType", ""))
    if not isinstance(name, str):
        return inner
    scale = schema.get("scale", 0)
    parameters = schema.get("connect.parameters") or {"scale": scale}
    connect = {"name": name, "parameters": parameters}
    return lambda value: readable(inner(value), connect)


def _generic(value: Any) -> Any:
    if isinstance(value, bytes):
        return _base64(value)
    if isinstance(value, dict):
        return {name: _generic(item) for name, item in value.items()}
    return [_generic(item) for item in value] if isinstance(value, list) else value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _same(value: Any) -> Any:
    return value
