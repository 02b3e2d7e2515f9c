r"""Kafka records as JSON objects with their key: what `kcat -J` prints, or `{"key": …, "value": …}`.

    {"topic": "cdc.crm.customers", "partition": 0, "offset": 7, "ts": 1795456758594, "headers": ["name", "text"],
     "key": "{\"id\":3}", "payload": "{…}"}

Key and value may be JSON text or plain JSON, or base64 of Avro in Confluent's wire format, as Kafka's REST proxy gives
binary records. The value is Debezium's, native, of AWS DMS or a notification of an object store; where it has no
position of its own, the record's place in its partition is taken. A `format` beside them, as `kept` writes it, says
which it is.

The same for records as they come from Kafka itself: their key and value are bytes then.
"""

from typing import Any, NamedTuple

import orjson

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import avro, aws, debezium, documents, native
from services.ingest.decoders.common import Decoded, DecodeError, Hints, epoch, json_type, parse, parse_object
from services.kernel.positions import padded


class Envelope(NamedTuple):
    """A Kafka record; what was not given is None or empty.

    Attributes:
        key, value: bytes as Kafka has them, text, or plain JSON.
        topic: where it was.
        position: its place in its partition, comparable.
        timestamp_ms: its time in Kafka.
        format_: the format of the value; empty recognises it.
    """

    key: Any
    value: Any
    topic: str
    position: str
    timestamp_ms: int | None
    format_: str = ""


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one Kafka record."""
    return from_object(parse_object(record), hints)


def is_envelope(event: dict[str, Any]) -> bool:
    """Whether an object is a Kafka record in an envelope."""
    return ("payload" in event and "topic" in event) or ("value" in event and ("key" in event or "topic" in event))


def from_object(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    """The changes that a Kafka record in an envelope means."""
    if not is_envelope(event):
        raise DecodeError("there is no key and value", 'send {"key": …, "value": …}, or what kcat -J prints')
    return from_envelope(opened(event), hints)


def from_envelope(envelope: Envelope, hints: Hints) -> list[Decoded]:
    """The changes that a Kafka record means."""
    if envelope.value is None:
        return []
    value = _parsed_value(envelope.value, hints)
    if value is None:
        return []
    if type(value) is not dict:
        raise DecodeError(f"the value is a {json_type(value)}", "send values that are JSON objects")
    changes = _changes(value, envelope, hints)
    for change in changes:
        if isinstance(change, events_pb2.Change):
            _complete(change, envelope)
    return changes


def opened(event: dict[str, Any]) -> Envelope:
    """The parts of an envelope."""
    topic, partition, offset = event.get("topic"), event.get("partition"), event.get("offset")
    position = ""
    if type(topic) is str and type(partition) is int and type(offset) is int and offset >= 0:
        position = place(topic, partition, offset)
    timestamp, format_ = event.get("timestamp", event.get("ts")), event.get("format")
    return Envelope(
        key=event.get("key"),
        value=event["value"] if "value" in event else event.get("payload"),
        topic=topic if type(topic) is str else "",
        position=position,
        timestamp_ms=timestamp if type(timestamp) is int and timestamp > 0 else None,
        format_=format_ if type(format_) is str else "",
    )


def place(topic: str, partition: int, offset: int) -> str:
    """A record's place in its partition as a position."""
    return f"kafka:{topic}/{partition}:{padded(offset)}"


def kept(raw: Any, format_: str, *, whole: bool = True) -> bytes:
    """A record of Kafka, as aiokafka gives it, as the envelope that means the same.

    Args:
        raw: the record.
        format_: the format that its value was taken for.
        whole: whether its key and value are kept, too.
    """
    event = {"topic": raw.topic, "partition": raw.partition, "offset": raw.offset, "ts": raw.timestamp}
    if format_ != "auto":
        event["format"] = format_
    if whole:
        event |= {"key": _as_text(raw.key), "payload": _as_text(raw.value)}
    return orjson.dumps(event)


def _as_text(content: bytes | None) -> str | None:
    """Bytes as text: what is none, or what could be taken for base64, as base64."""
    if content is None:
        return None
    try:
        if content[:1] != avro.MAGIC:
            return content.decode()
    except UnicodeDecodeError:
        pass
    return avro.to_base64(content)


def _changes(value: dict[str, Any], envelope: Envelope, hints: Hints) -> list[Decoded]:
    match envelope.format_:
        case "native":
            return [native.to_change(value, hints)]
        case "documents":
            return [documents.to_document(value, hints)]
        case "dms" | "dynamodb" | "s3":
            return aws.from_object(value, hints)
        case "debezium" | "avro":
            return _debezium(value, envelope, hints)
    if native.is_native(value):
        return [native.to_change(value, hints)]
    if not debezium.is_debezium(value) and aws.is_aws(value):
        return aws.from_object(value, hints)
    return _debezium(value, envelope, hints)


def _debezium(value: dict[str, Any], envelope: Envelope, hints: Hints) -> list[Decoded]:
    return list(debezium.from_value(value, hints, _parsed_key(envelope.key, hints), envelope.topic))


def _parsed_value(value: Any, hints: Hints) -> Any:
    if isinstance(value, bytes):
        return avro.value_of(value, hints) if value[:1] == avro.MAGIC else parse(value)
    if type(value) is not str:
        return value
    return avro.value_of(avro.from_base64(value), hints) if avro.is_base64(value) else parse(value)


def _parsed_key(key: Any, hints: Hints) -> Any:
    if isinstance(key, bytes):
        if key[:1] == avro.MAGIC:
            return avro.value_of(key, hints)
        key = key.decode(errors="backslashreplace")
    elif type(key) is not str:
        return key
    elif content := _avro_of(key):
        return avro.value_of(content, hints)
    try:
        return parse(key)
    except DecodeError:  # a key need not be JSON: plain text is the key's one value
        return key or None


def _avro_of(key: str) -> bytes | None:
    """The Avro that a key's text is base64 of; plain text may begin like it."""
    if not avro.is_base64(key):
        return None
    try:
        content = avro.from_base64(key)
    except DecodeError:
        return None
    return content if len(content) >= avro.HEADER_BYTES else None


def _complete(change: events_pb2.Change, envelope: Envelope) -> None:
    if not change.position and change.operation != events_pb2.OPERATION_HEARTBEAT:
        change.position = envelope.position
    if envelope.timestamp_ms is not None and not change.HasField("occurred_at"):
        at = change.occurred_at
        at.seconds, at.nanos = epoch(envelope.timestamp_ms, 1_000)
