"""Rows and live columns as lines that people read, `name: value`, and what a value is: a time, money, a place. Pure."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::\d{2}(?:\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?", re.ASCII)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_MONEY_NAMES = frozenset("price cost fare amount fee total balance rate charge deposit refund".split())  # noqa: SIM905
_PLACE_NAMES = frozenset(
    "city town country address place origin destination airport street region location".split()  # noqa: SIM905
)
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_ZONES = {None: "", "Z": " UTC"}
_CURRENCY_NAMES = frozenset({"currency", "currency code"})


class Kind(Enum):
    """What a value is, as far as a question can ask for it."""

    TIME = auto()
    MONEY = auto()
    NUMBER = auto()
    PLACE = auto()
    OTHER = auto()


class Field(NamedTuple):
    """One value of a row.

    Attributes:
        name: its column, readable: `check in`; columns within a column are joined: `preferences seat`.
        shown: the value as it stands in the context.
        kind: what it is.
    """

    name: str
    shown: str
    kind: Kind

    @property
    def line(self) -> str:
        """The field as it stands in the context."""
        return f"{self.name}: {self.shown}"


def fields_of(row: Mapping[str, Any], prefix: str = "") -> list[Field]:
    """The fields of a row that hold something, in the row's order; objects within it are flattened."""
    found: list[Field] = []
    for column, held in row.items():
        value = (decoded(held) or held) if isinstance(held, str) and held.startswith("{") else held  # JSON as text
        name = f"{prefix} {readable(column)}".strip()
        if isinstance(value, dict):
            found.extend(fields_of(value, name))
        elif (shown := _shown(value)) != "":
            found.append(Field(name, shown, _kind(name, shown)))
    return found


def decoded(row_json: str | bytes) -> dict[str, Any]:
    """A row's JSON object; empty when it is none, because a context must come out whatever a store holds."""
    try:
        row = orjson.loads(row_json) if row_json else {}
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}


def decoded_value(value_json: str) -> Any:
    """A profile field's JSON value; the text itself when it is not JSON."""
    try:
        return orjson.loads(value_json)
    except orjson.JSONDecodeError:
        return value_json


def readable(name: str) -> str:
    """A column's or entity's name as words: `check_in` and `checkIn` become `check in`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").replace("-", " ").lower().strip()


def singular(name: str) -> str:
    """One of what an entity's name means, for English names: `bookings` are made of each `booking`."""
    if name.endswith("ies"):
        return f"{name[:-3]}y"
    if name.endswith(("sses", "xes", "ches", "shes")):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name


def displayed(field: Field, row: list[Field]) -> str:
    """The value as an answer tells it: money with the row's currency, a time without its seconds."""
    if field.kind is Kind.MONEY:
        currency = next((other.shown for other in row if other.name in _CURRENCY_NAMES), "")
        return f"{field.shown} {currency}".rstrip()
    if field.kind is Kind.TIME and (found := _TIME.fullmatch(field.shown)):
        day, time, zone = found.groups()
        return f"{day} {time}{_ZONES.get(zone, f' {zone}')}" if time else str(day)
    return field.shown


def month_of(field: Field) -> str:
    """The month's name of a time, so that `my trip in March` finds it; empty for other values."""
    month = field.shown[5:7] if field.kind is Kind.TIME else ""
    return MONTHS[int(month) - 1] if month.isdigit() and 1 <= int(month) <= 12 else ""


def is_currency(field: Field) -> bool:
    """Whether the field only says what another one is counted in."""
    return field.name in _CURRENCY_NAMES


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(_plain(value))
    return " ".join(str(value).split())


def _plain(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, dict):
            yield " ".join(field.line for field in fields_of(value))
        elif shown := _shown(value):
            yield shown


def _kind(name: str, shown: str) -> Kind:
    last_words = frozenset(name.split())
    if _TIME.fullmatch(shown):
        return Kind.TIME
    if _NUMBER.fullmatch(shown):
        return Kind.MONEY if last_words & _MONEY_NAMES else Kind.NUMBER
    return Kind.PLACE if last_words & _PLACE_NAMES else Kind.OTHER
