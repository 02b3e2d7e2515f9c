r"""Kafka records as JSON objects with their key: what `kcat -J` prints, or `{"key": …, "value": …}`.

    {"topic": "cdc.crm.customers", "partition": 0, "offset": 7, "ts": 1795456758594, "headers": ["name", "text"],
     "key": "{\"id\":3}", "payload": "{…}"}

Key and value may be JSON text or plain JSON, or base64 of Avro in Confluent's wire format, as Kafka's REST proxy gives
binary records. The value is Debezium's, native, of AWS DMS or a notification of an object store; where it has no
position of its own, the record's place in its partition is taken.
"""

from typing import Any, NamedTuple

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import avro, aws, debezium, native
from services.ingest.decoders.common import Decoded, DecodeError, Hints, epoch, json_type, parse, parse_object
from services.kernel.positions import padded


class Envelope(NamedTuple):
    """A Kafka record; what was not given is None or empty."""

    key: Any
    value: Any
    topic: str
    position: str
    timestamp_ms: int | None


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
    envelope = opened(event, hints)
    value = envelope.value
    if value is None:
        return []
    if type(value) is not dict:
        raise DecodeError(f"the value is a {json_type(value)}", "send values that are JSON objects")
    changes: list[Decoded]
    if native.is_native(value):
        changes = [native.to_change(value, hints)]
    elif not debezium.is_debezium(value) and aws.is_aws(value):
        changes = aws.from_object(value, hints)
    else:
        changes = list(debezium.from_value(value, hints, envelope.key, envelope.topic))
    for change in changes:
        if isinstance(change, events_pb2.Change):
            _complete(change, envelope)
    return changes


def opened(event: dict[str, Any], hints: Hints) -> Envelope:
    """The parts of an envelope, with JSON text parsed and Avro decoded."""
    key, value = event.get("key"), event["value"] if "value" in event else event.get("payload")
    topic, partition, offset = event.get("topic"), event.get("partition"), event.get("offset")
    position = ""
    if type(topic) is str and type(partition) is int and type(offset) is int and offset >= 0:
        position = f"kafka:{topic}/{partition}:{padded(offset)}"
    timestamp = event.get("timestamp", event.get("ts"))
    return Envelope(
        key=_parsed_key(key, hints),
        value=_parsed_value(value, hints) if type(value) is str else value,
        topic=topic if type(topic) is str else "",
        position=position,
        timestamp_ms=timestamp if type(timestamp) is int and timestamp > 0 else None,
    )


def _parsed_value(text: str, hints: Hints) -> Any:
    return avro.value_of(avro.from_base64(text), hints) if avro.is_base64(text) else parse(text)


def _parsed_key(key: Any, hints: Hints) -> Any:
    if type(key) is not str:
        return key
    if avro.is_base64(key):
        return avro.value_of(avro.from_base64(key), hints)
    try:
        return parse(key)
    except DecodeError:  # a key need not be JSON: plain text is the key's one value
        return key or None


def _complete(change: events_pb2.Change, envelope: Envelope) -> None:
    if not change.position and change.operation != events_pb2.OPERATION_HEARTBEAT:
        change.position = envelope.position
    if envelope.timestamp_ms is not None and not change.HasField("occurred_at"):
        at = change.occurred_at
        at.seconds, at.nanos = epoch(envelope.timestamp_ms, 1_000)
