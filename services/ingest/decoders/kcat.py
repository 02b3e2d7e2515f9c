r"""Kafka records as JSON objects with their key: what `kcat -J` prints, or `{"key": …, "value": …}`.

    {"topic": "cdc.crm.customers", "partition": 0, "offset": 7, "ts": 1795456758594, "headers": ["name", "text"],
     "key": "{\"id\":3}", "payload": "{…}"}

Key and value may be JSON text or plain JSON. The value is one of Debezium's or native; where it has no position of its
own, the record's place in its partition is taken.
"""

from typing import Any, NamedTuple

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import debezium, native
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
    return list(from_object(parse_object(record), hints))


def is_envelope(event: dict[str, Any]) -> bool:
    """Whether an object is a Kafka record in an envelope."""
    return ("payload" in event and "topic" in event) or ("value" in event and ("key" in event or "topic" in event))


def from_object(event: dict[str, Any], hints: Hints) -> list[events_pb2.Change]:
    """The changes that a Kafka record in an envelope means."""
    if not is_envelope(event):
        raise DecodeError("there is no key and value", 'send {"key": …, "value": …}, or what kcat -J prints')
    envelope = opened(event)
    value = envelope.value
    if value is None:
        return []
    if type(value) is dict and native.is_native(value):
        changes = [native.to_change(value, hints)]
    elif type(value) is dict:
        changes = debezium.from_value(value, hints, envelope.key, envelope.topic)
    else:
        raise DecodeError(f"the value is a {json_type(value)}", "send values that are JSON objects")
    for change in changes:
        _complete(change, envelope)
    return changes


def opened(event: dict[str, Any]) -> Envelope:
    """The parts of an envelope, with JSON text parsed."""
    key, value = event.get("key"), event["value"] if "value" in event else event.get("payload")
    topic, partition, offset = event.get("topic"), event.get("partition"), event.get("offset")
    position = ""
    if type(topic) is str and type(partition) is int and type(offset) is int and offset >= 0:
        position = f"kafka:{topic}/{partition}:{padded(offset)}"
    timestamp = event.get("timestamp", event.get("ts"))
    return Envelope(
        key=_parsed_key(key),
        value=parse(value) if type(value) is str else value,
        topic=topic if type(topic) is str else "",
        position=position,
        timestamp_ms=timestamp if type(timestamp) is int and timestamp > 0 else None,
    )


def _parsed_key(key: Any) -> Any:
    if type(key) is not str:
        return key
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
