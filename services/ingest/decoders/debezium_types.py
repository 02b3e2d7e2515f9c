"""Values as Kafka Connect's schema describes them, turned into what a person would write.

Only the schema wrapper tells that 5822 is a date and `Aeh6` a decimal number; without it values stay as they came.
Times become ISO 8601 text, decimals decimal text. A value that its type cannot hold stays as it came, too.
"""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCALE_MAX = 1_000

_Convert = Callable[[Any, dict[str, Any]], Any]

UNAVAILABLE = "__debezium_unavailable_value"
_UNAVAILABLE_TEXTS = frozenset(
    (UNAVAILABLE, base64.b64encode(UNAVAILABLE.encode()).decode(), f'{{"{UNAVAILABLE}":"{UNAVAILABLE}"}}')
)
_UNAVAILABLE_OTHERS = ([UNAVAILABLE], list(UNAVAILABLE.encode()), {UNAVAILABLE: UNAVAILABLE})


def is_unavailable(value: Any) -> bool:
    """Whether a value is Debezium's placeholder for one that did not change and was not sent."""
    if type(value) is str:
        return value in _UNAVAILABLE_TEXTS
    return type(value) in (list, dict) and value in _UNAVAILABLE_OTHERS


def field_schema(schema: Any, name: str) -> Any:
    """The schema of a struct's field, or None."""
    fields = schema.get("fields") if type(schema) is dict else None
    for entry in fields if type(fields) is list else ():
        if type(entry) is dict and entry.get("field") == name:
            return entry
    return None


def readable_row(row: dict[str, Any], schema: Any) -> dict[str, Any]:
    """A row with its dates, times and decimals readable; columns that the schema does not name are kept."""
    fields = schema.get("fields") if type(schema) is dict else None
    if type(fields) is not list:
        return row
    result = dict(row)
    for entry in fields:
        name = entry.get("field") if type(entry) is dict else None
        if type(name) is str and name in row:
            result[name] = readable(row[name], entry)
    return result


def readable(value: Any, schema: Any) -> Any:
    """One value, readable."""
    if value is None or type(schema) is not dict:
        return value
    if type(value) is list:
        return [readable(item, schema.get("items")) for item in value]
    name = schema.get("name")
    convert = _CONVERTERS.get(name) if type(name) is str else None
    if convert is None:
        return value
    try:
        return convert(value, schema)
    except (LookupError, TypeError, ValueError, ArithmeticError, binascii.Error):
        return value  # beyond the calendar, as PostgreSQL's infinity is, or not what the schema says


def _date(value: Any, _schema: dict[str, Any]) -> str:
    return (_EPOCH + timedelta(days=_whole(value))).date().isoformat()


def _timestamp(per_second: int) -> _Convert:
    def convert(value: Any, _schema: dict[str, Any]) -> str:
        seconds, ticks = divmod(_whole(value), per_second)
        text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
        return text + _fraction(ticks, per_second)

    return convert


def _time(per_second: int) -> _Convert:
    def convert(value: Any, _schema: dict[str, Any]) -> str:
        seconds, ticks = divmod(_whole(value), per_second)
        if not 0 <= seconds <= 86_400:  # PostgreSQL knows 24:00:00
            raise ValueError("not a time of day")
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}" + _fraction(ticks, per_second)

    return convert


def _fraction(ticks: int, per_second: int) -> str:
    return f".{ticks:0{len(str(per_second)) - 1}d}".rstrip("0") if ticks else ""


def _decimal(value: Any, schema: dict[str, Any]) -> str:
    return _scaled(value, int(schema["parameters"]["scale"]))


def _variable_decimal(value: Any, _schema: dict[str, Any]) -> str:
    return _scaled(value["value"], _whole(value["scale"]))


def _scaled(value: Any, scale: int) -> str:
    if abs(scale) > _SCALE_MAX:
        raise ValueError("no database has such a scale")
    unscaled = int.from_bytes(base64.b64decode(value, validate=True), "big", signed=True)
    digits = tuple(int(digit) for digit in str(abs(unscaled)))
    return f"{Decimal((int(unscaled < 0), digits, -scale)):f}"


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


_CONVERTERS: dict[str, _Convert] = {
    "io.debezium.time.Date": _date,
    "io.debezium.time.Time": _time(1_000),
    "io.debezium.time.MicroTime": _time(1_000_000),
    "io.debezium.time.NanoTime": _time(1_000_000_000),
    "io.debezium.time.Timestamp": _timestamp(1_000),
    "io.debezium.time.MicroTimestamp": _timestamp(1_000_000),
    "io.debezium.time.NanoTimestamp": _timestamp(1_000_000_000),
    "io.debezium.data.VariableScaleDecimal": _variable_decimal,
    "org.apache.kafka.connect.data.Date": _date,
    "org.apache.kafka.connect.data.Time": _time(1_000),
    "org.apache.kafka.connect.data.Timestamp": _timestamp(1_000),
    "org.apache.kafka.connect.data.Decimal": _decimal,
}
