"""DynamoDB's changes: records of DynamoDB Streams, and of Kinesis Data Streams for DynamoDB.

The source is `dynamodb` unless it is named; entity is the table. A stream must carry the new images
(`NEW_IMAGE` or `NEW_AND_OLD_IMAGES`). An item that its time to live has ended is deleted by DynamoDB itself, and
says so: the initiator is then `dynamodb.amazonaws.com`.

The order is the stream's sequence number. Kinesis gives none, repeats records and mixes their order; there the time of
the change is the order, as the documentation says to, if it is told in microseconds. In milliseconds two changes of
one item can have one time, so that the order of arrival decides.
"""

import re
from decimal import Decimal, InvalidOperation
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
    json_type,
    parse_object,
)
from services.kernel.positions import padded
from services.kernel.records import record_key

OPERATIONS = {
    "INSERT": events_pb2.OPERATION_INSERT,
    "MODIFY": events_pb2.OPERATION_UPDATE,
    "REMOVE": events_pb2.OPERATION_DELETE,
}
DEFAULT_SOURCE = "dynamodb"
SEQUENCE_DIGITS = 40  # the longest that the API allows
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_TICKS = {"MICROSECOND": 1_000_000, "MILLISECOND": 1_000, "SECOND": 1}
# What cannot be a time in seconds (beyond the year 5000), nor one in milliseconds.
_SECONDS_MAX, _MILLISECONDS_MAX = 100_000_000_000, 100_000_000_000_000
_TABLE_CURE = "send the record with its eventSourceARN, or its tableName"


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one record."""
    return [to_change(parse_object(record), hints)]


def is_dynamodb(event: dict[str, Any]) -> bool:
    """Whether an object is a change of DynamoDB."""
    return type(event.get("dynamodb")) is dict and "eventName" in event


def to_change(event: dict[str, Any], hints: Hints) -> events_pb2.Change:
    """The change that a record means."""
    if not is_dynamodb(event):
        raise DecodeError('there is no "dynamodb" and "eventName"', "send the records of DynamoDB's streams")
    name, body = event["eventName"], event["dynamodb"]
    operation = OPERATIONS.get(name) if type(name) is str else None
    if operation is None:
        raise DecodeError(f'"eventName" is {name!r:.40}', f"DynamoDB's are {', '.join(OPERATIONS)}")
    source, entity = hints.source or DEFAULT_SOURCE, _table(event)
    where = f"the record of {source}/{entity}"
    key = checked_key(_item(body, "Keys"), where)
    change = events_pb2.Change(
        tenant=hints.tenant,
        source=source,
        entity=entity,
        record=record_key(source, entity, key),
        key_json=dump_key(key),
        operation=operation,
        initiator=_initiator(event.get("userIdentity")),
    )
    _add_time_and_position(change, body)
    before = _item(body, "OldImage")
    if operation != events_pb2.OPERATION_DELETE:
        after = _item(body, "NewImage")
        if after is None:
            raise DecodeError(f'{where} has no "NewImage"', "set StreamViewType to NEW_AND_OLD_IMAGES or NEW_IMAGE")
        change.after_json = dump({**key, **after})
    if before or operation == events_pb2.OPERATION_DELETE:
        change.before_json = dump(before or key)
    return change


def _table(event: dict[str, Any]) -> str:
    table, arn = event.get("tableName"), event.get("eventSourceARN")
    if type(table) is str and table:
        return table
    if type(arn) is str:  # arn:aws:dynamodb:eu-west-1:123456789012:table/Music/stream/2026-11-23T17:00:00.000
        kind, _, rest = arn.split(":", 5)[-1].partition("/")
        if kind == "table" and (name := rest.partition("/")[0]):
            return name
    raise DecodeError("the record does not name its table", _TABLE_CURE)


def _initiator(identity: Any) -> str:
    principal = identity.get("principalId", identity.get("PrincipalId")) if type(identity) is dict else None
    return principal if type(principal) is str else ""


def _add_time_and_position(change: events_pb2.Change, body: dict[str, Any]) -> None:
    number, time = body.get("SequenceNumber"), body.get("ApproximateCreationDateTime")
    ticks = 0
    if isinstance(time, int | float) and time > 0:
        precision = body.get("ApproximateCreationDateTimePrecision")
        ticks = _TICKS.get(precision, 0) if type(precision) is str else 0
        if not ticks:
            ticks = 1 if time < _SECONDS_MAX else 1_000 if time < _MILLISECONDS_MAX else 1_000_000
        at = change.occurred_at
        whole = type(time) is int
        at.seconds, at.nanos = epoch(int(time), ticks) if whole else epoch(_micros(time * 1e6 / ticks), 1_000_000)
    domain = f"{change.source}/{change.entity}"
    if type(number) is str and number.isascii() and number.isdecimal() and len(number) <= SEQUENCE_DIGITS:
        change.position, change.source_position = f"dynamodb:{domain}:{number.zfill(SEQUENCE_DIGITS)}", number
    elif ticks == _TICKS["MICROSECOND"] and type(time) is int:
        change.position, change.source_position = f"dynamodb-time:{domain}:{padded(time)}", str(time)


def _micros(value: float) -> int:
    return int(value) if value < 1e18 else 10**18  # refused by `epoch`


def _item(body: dict[str, Any], name: str) -> dict[str, Any] | None:
    attributes = body.get(name)
    if attributes is None:
        return None
    if type(attributes) is not dict:
        raise DecodeError(f'"{name}" is a {json_type(attributes)}', "send the item's attributes as an object")
    return {attribute: plain(value) for attribute, value in attributes.items()}


def plain(value: Any) -> Any:
    """A typed attribute, such as `{"N": "42"}`, as plain JSON; binary values stay base64, sets become lists."""
    if type(value) is not dict or len(value) != 1:
        raise DecodeError(f"an attribute is a {json_type(value)}", 'send typed attributes, such as {"S": "text"}')
    ((kind, content),) = value.items()
    if kind in ("S", "B") and type(content) is str:
        return content
    if kind == "N":
        return number_of(content)
    if kind == "BOOL" and type(content) is bool:
        return content
    if kind == "NULL":
        return None
    if kind == "M" and type(content) is dict:
        return {name: plain(item) for name, item in content.items()}
    if kind == "L" and type(content) is list:
        return [plain(item) for item in content]
    if kind in ("SS", "BS") and type(content) is list and all(type(item) is str for item in content):
        return content
    if kind == "NS" and type(content) is list:
        return [number_of(item) for item in content]
    raise DecodeError(f"an attribute has the type {kind!r:.20} and a {json_type(content)}", "send DynamoDB's own types")


def number_of(text: Any) -> int | float | str:
    """A number of up to 38 digits: as a number where JSON's are as exact, else as it came."""
    if type(text) in (int, float):
        return text  # type: ignore[no-any-return]  # as just seen
    if type(text) is not str:
        raise DecodeError(f"a number is a {json_type(text)}", 'write numbers as text, such as {"N": "42"}')
    if _WHOLE_NUMBER.fullmatch(text):
        return int(text)
    try:
        exact = Decimal(text)
        value = float(exact)
        return value if exact.is_finite() and Decimal(repr(value)) == exact else text
    except (InvalidOperation, OverflowError, ValueError):
        return text
