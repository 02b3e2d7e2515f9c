"""The formats by name, and `auto`: each record is recognised by the names that it has at its top."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from services.ingest.decoders import avro, aws, debezium, documents, kcat, native
from services.ingest.decoders.common import Decoded, DecodeError, Decoder, Hints, json_type, parse


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one record of whatever format it is."""
    if record[:1] == avro.MAGIC:
        return avro.decode(record, hints)
    event = parse(record)
    if event is None:  # the value of a tombstone
        return []
    if type(event) is not dict:
        raise DecodeError(f"a JSON {json_type(event)} is not an event", "write one JSON object a line")
    return _recognised(event, hints)


def _recognised(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    if native.is_native(event):
        return [native.to_change(event, hints)]
    if kcat.is_envelope(event):
        return kcat.from_object(event, hints)
    if debezium.is_debezium(event) or event.keys() == {"ts_ms"}:
        return list(debezium.from_value(event, hints))
    if aws.is_aws(event):
        return aws.from_object(event, hints)
    if documents.is_document(event):
        return [documents.to_document(event, hints)]
    raise DecodeError(
        f"the format is not recognised (names: {', '.join(event)[:80] or 'none'})",
        f"name it with --format: {', '.join(FORMATS)}",
    )


def _debezium(record: bytes, hints: Hints) -> list[Decoded]:
    """Debezium's events, with the Kafka record around them or without."""
    event = parse(record)
    if type(event) is dict and kcat.is_envelope(event):
        return kcat.from_object(event, hints)
    return list(debezium.from_value(event, hints))


def _avro(record: bytes, hints: Hints) -> list[Decoded]:
    """Avro, with the Kafka record around it or without."""
    return avro.decode(record, hints) if record[:1] == avro.MAGIC else kcat.decode(record, hints)


FORMATS: Mapping[str, Decoder] = MappingProxyType(
    {
        "auto": decode,
        "native": native.decode,
        "debezium": _debezium,
        "kcat": kcat.decode,
        "documents": documents.decode,
        "avro": _avro,
        "dms": aws.decode,
        "dynamodb": aws.decode,
        "s3": aws.decode,
    }
)
