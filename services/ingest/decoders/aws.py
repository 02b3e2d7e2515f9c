"""What AWS wraps around its records: lists for Lambda, messages of SNS and SQS, records of Kinesis.

    {"Records": [{"eventSource": "aws:dynamodb", …}, …]}                 a batch for Lambda; MinIO's notifications
    {"Records": [{"eventSource": "aws:sqs", "body": "{…}"}, …]}          with JSON text inside
    {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "base64", "sequenceNumber": "…"}}, …]}
    {"Type": "Notification", "TopicArn": "…", "Message": "{…}"}                         SNS, over HTTP and in SQS

A record of Kinesis whose content tells no position has its place in the shard.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import dms, dynamodb, s3
from services.ingest.decoders.common import Decoded, DecodeError, Hints, json_type, parse, parse_object

DEPTH_MAX = 4  # SNS in SQS in a list is three
KINESIS_DIGITS = 56  # of its sequence numbers
_SNS_TYPES = ("Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation")
_CURE = "send the records of AWS DMS, DynamoDB, or of an object store, as they were written"


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one record, or an envelope of several."""
    return from_object(parse_object(record), hints)


def is_aws(event: dict[str, Any]) -> bool:
    """Whether an object is a record of AWS that is understood, or an envelope of some."""
    return _is_envelope(event) or dms.is_dms(event) or dynamodb.is_dynamodb(event) or s3.is_s3(event)


def from_object(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    """The changes that a record or an envelope means."""
    found: list[Decoded] = []
    for inner, place in _opened(event, DEPTH_MAX):
        changes = _changes(inner, hints)
        for change in changes:
            if place and isinstance(change, events_pb2.Change) and not change.position:
                change.position = place
        found.extend(changes)
    return found


def _is_envelope(event: dict[str, Any]) -> bool:
    return type(event.get("Records")) is list or _is_sns(event)


def _is_sns(event: dict[str, Any]) -> bool:
    return "TopicArn" in event and "Message" in event and event.get("Type") in _SNS_TYPES


def _changes(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    if dms.is_dms(event):
        return list(dms.from_object(event, hints))
    if dynamodb.is_dynamodb(event):
        return [dynamodb.to_change(event, hints)]
    if s3.is_s3(event):
        return s3.from_object(event, hints)
    raise DecodeError(f"the record is not recognised (names: {', '.join(event)[:80] or 'none'})", _CURE)


def _opened(event: Any, depth: int) -> Iterator[tuple[dict[str, Any], str]]:
    """What an envelope holds, each with its place in a shard where it has one."""
    if type(event) is not dict:
        raise DecodeError(f"a JSON {json_type(event)} is not a record", _CURE)
    if depth == 0:
        raise DecodeError("there are too many envelopes in one another", _CURE)
    if type(event.get("Records")) is list:
        for record in event["Records"]:
            yield from _unpacked(record, depth)
    elif _is_sns(event):
        yield from _from_sns(event, depth)
    else:
        yield event, ""


def _unpacked(record: Any, depth: int) -> Iterator[tuple[dict[str, Any], str]]:
    if type(record) is not dict:
        raise DecodeError(f"a JSON {json_type(record)} is not a record", _CURE)
    if type(record.get("body")) is str:
        yield from _opened(parse(record["body"]), depth - 1)
    elif type(record.get("Sns")) is dict:
        yield from _from_sns(record["Sns"], depth)
    elif type(record.get("kinesis")) is dict:
        place = _place(record)
        for inner, _ in _opened(parse(_data(record["kinesis"])), depth - 1):
            yield inner, place
    else:
        yield record, ""


def _from_sns(message: dict[str, Any], depth: int) -> Iterator[tuple[dict[str, Any], str]]:
    if message.get("Type") in _SNS_TYPES[1:]:
        raise DecodeError("SNS asks to confirm a subscription", "open the SubscribeURL of this message")
    text = message.get("Message")
    if type(text) is not str:
        raise DecodeError(f'"Message" is a {json_type(text)}', _CURE)
    yield from _opened(parse(text), depth - 1)


def _data(kinesis: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(kinesis["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise DecodeError(f'"data" is not base64 ({error})', _CURE) from error


def _place(record: dict[str, Any]) -> str:
    number, stream = record["kinesis"].get("sequenceNumber"), record.get("eventSourceARN")
    if type(number) is not str or not (number.isascii() and number.isdecimal()) or len(number) > KINESIS_DIGITS:
        return ""
    return f"kinesis:{stream if type(stream) is str else ''}:{number.zfill(KINESIS_DIGITS)}"
