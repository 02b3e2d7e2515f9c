"""MongoDB's extended JSON, canonical or relaxed, turned into what a person would write."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from services.ingest.decoders.common import DecodeError, parse

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,19}", re.ASCII)


def plain_text(text: Any) -> Any:
    """The value in a text of extended JSON; a text that is none means itself."""
    if type(text) is not str:
        return plain(text)
    try:
        return plain(parse(text))
    except DecodeError:
        return text


def plain(value: Any) -> Any:
    """A value of extended JSON, canonical or relaxed, as a person would write it."""
    if type(value) is list:
        return [plain(item) for item in value]
    if type(value) is not dict:
        return value
    for name in value:
        convert = _TYPES.get(name)
        if convert is not None and len(value) <= 2:
            try:
                return convert(value[name])
            except (TypeError, ValueError, OverflowError, KeyError):
                return value  # not what the type says: it stays as it came
        break
    return {name: plain(item) for name, item in value.items()}


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if not _WHOLE_NUMBER.fullmatch(_text(value)):
        raise ValueError("not a whole number")
    return int(value)


def _double(value: Any) -> Any:
    number = float(value)
    return number if number - number == 0 else _text(value)  # JSON knows no infinity


def _date(value: Any) -> str:
    if type(value) is str:
        moment = datetime.fromisoformat(value)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    else:
        milliseconds = _whole(value["$numberLong"] if type(value) is dict else value)
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return f"{text}.{moment.microsecond // 1_000:03d}Z" if moment.microsecond else f"{text}Z"


def _binary(value: Any) -> str:
    return _text(value["base64"] if type(value) is dict else value)


def _timestamp(value: Any) -> dict[str, int]:
    return {"t": _whole(value["t"]), "i": _whole(value["i"])}


def _nothing(_value: Any) -> None:
    return None


_TYPES: dict[str, Callable[[Any], Any]] = {
    "$oid": _text,
    "$date": _date,
    "$numberLong": _whole,
    "$numberInt": _whole,
    "$numberDouble": _double,
    "$numberDecimal": _text,
    "$binary": _binary,
    "$uuid": _text,
    "$timestamp": _timestamp,
    "$symbol": _text,
    "$code": _text,
    "$undefined": _nothing,
}
