"""The settings of the profile service: the table [profile] of the configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from services.kernel.errors import InvalidInputError

T = TypeVar("T")

EXCLUDED_BY_DEFAULT = (
    "*password*", "*passwd*", "pwd", "*secret*", "*api_key*", "*private_key*", "*access_token*", "*refresh_token*",
    "cvv", "cvc",
)  # fmt: skip


class Rule(Enum):
    """How one value is chosen among those that the rows offer. Nulls and empty texts are no values."""

    LATEST = "latest"  # the one that changed last at its source
    MOST_TRUSTED = "most_trusted"  # the latest of the first column of `from` that has any
    MOST_FREQUENT = "most_frequent"  # the one that most rows agree on
    UNION = "union"  # all of them, as a list without repetitions; lists are taken apart
    LONGEST = "longest"  # the longest text


class ColumnName(NamedTuple):
    """A column of a source's entity; the column's name is in lower case."""

    source: str
    entity: str
    column: str


class FieldRule(NamedTuple):
    """How a declared field is made: from which columns, the most trusted first, and by which rule."""

    columns: tuple[ColumnName, ...]
    rule: Rule


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        fields: declared fields, by name. Every other column is a field of its own (lower-case) name, by the rule
            `latest`, unless a declared field has that name or takes that column.
        only_declared: whether columns that no declared field takes are left out of the fields.
        exclude: patterns (`*` and `?`) of lower-case column names that are secrets: never in a document.
        consent: purpose -> the field that must be true for a reader with that purpose to see any field.
        policies: field -> the purposes for which it may be read. A field that is not named is for everyone.
        records_max: how many rows, the latest, a document lists; its fields are made of all.
    """

    fields: Mapping[str, FieldRule] = field(default_factory=dict)
    only_declared: bool = False
    exclude: tuple[str, ...] = EXCLUDED_BY_DEFAULT
    consent: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, frozenset[str]] = field(default_factory=dict)
    records_max: int = 200

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [profile]; raises InvalidInputError that names the setting which is wrong."""
        _known("profile", table, ("fields", "only_declared", "exclude", "consent", "policies", "records_max"))
        defaults = cls()
        return cls(
            fields={
                name.lower(): _field_rule(f"profile.fields.{name}", rule)
                for name, rule in _table("profile.fields", table.get("fields", {})).items()
            },
            only_declared=_typed("profile.only_declared", table.get("only_declared", False), bool),
            exclude=tuple(p.lower() for p in _texts("profile.exclude", table.get("exclude", defaults.exclude))),
            consent={
                purpose: _typed(f"profile.consent.{purpose}", name, str).lower()
                for purpose, name in _table("profile.consent", table.get("consent", {})).items()
            },
            policies={
                name.lower(): frozenset(_texts(f"profile.policies.{name}", purposes))
                for name, purposes in _table("profile.policies", table.get("policies", {})).items()
            },
            records_max=_positive("profile.records_max", table.get("records_max", defaults.records_max)),
        )


def _field_rule(where: str, value: Any) -> FieldRule:
    table = _table(where, value)
    _known(where, table, ("from", "rule"))
    columns = tuple(_column(f"{where}.from", text) for text in _texts(f"{where}.from", table.get("from", ())))
    if not columns:
        raise InvalidInputError(f"{where}.from is missing: list its columns, for example crm.customers.full_name")
    name = table.get("rule", Rule.LATEST.value)
    try:
        return FieldRule(columns, Rule(name))
    except ValueError:
        rules = ", ".join(rule.value for rule in Rule)
        raise InvalidInputError(f"{where}.rule: there is no rule {name!r}; there are {rules}") from None


def _column(where: str, text: str) -> ColumnName:
    """Read source.entity.column; an entity may itself hold dots, as public.customers does."""
    source, _, rest = text.partition(".")
    entity, _, column = rest.rpartition(".")
    if not (source and entity and column):
        raise InvalidInputError(f"{where}: {text!r} is not source.entity.column, for example crm.customers.full_name")
    return ColumnName(source, entity, column.lower())


def _known(where: str, table: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := sorted(set(table) - set(names)):
        raise InvalidInputError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{where} must be a table, not {value!r}")
    return value


def _texts(where: str, value: Any) -> Sequence[str]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise InvalidInputError(f"{where} must be a list of texts, not {value!r}")
    return value


def _typed(where: str, value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise InvalidInputError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _positive(where: str, value: Any) -> int:
    number = _typed(where, value, int)
    if number < 1:
        raise InvalidInputError(f"{where} must be 1 or more, not {number}")
    return number
