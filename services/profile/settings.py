"""The settings of the profile service: the table [profile] of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from services.kernel.settings import Section

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
        read = Section("profile", table, cls())
        fields, consent, policies = read.section("fields"), read.section("consent"), read.section("policies")
        return cls(
            fields={name.lower(): _field_rule(fields, name) for name in fields.values},
            only_declared=read.flag("only_declared"),
            exclude=tuple(pattern.lower() for pattern in read.texts("exclude")),
            consent={purpose: consent.text(purpose).lower() for purpose in consent.values},
            policies={name.lower(): frozenset(policies.texts(name)) for name in policies.values},
            records_max=read.whole("records_max"),
        )


def _field_rule(fields: Section, name: str) -> FieldRule:
    read = fields.section(name, FieldRule((), Rule.LATEST), names=("from", "rule"))
    columns = tuple(_column(read, text) for text in read.texts("from", least=1))
    return FieldRule(columns, Rule(read.choice("rule", Rule)))


def _column(read: Section, text: str) -> ColumnName:
    """Read source.entity.column; an entity may itself hold dots, as public.customers does."""
    source, _, rest = text.partition(".")
    entity, _, column = rest.rpartition(".")
    if not (source and entity and column):
        raise read.refusal("from", f"holds {text!r}: write source.entity.column, for example crm.customers.full_name")
    return ColumnName(source, entity, column.lower())
