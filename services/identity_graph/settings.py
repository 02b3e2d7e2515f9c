"""The settings of identity resolution: the table [identity_graph] of the configuration."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import orjson

from services.kernel.errors import InvalidInputError

E = TypeVar("E", bound=Enum)

RULES_VERSION = 1
"""Goes up whenever the code reads rows differently than before: then everything is worked out anew from the log."""

RESERVED_KINDS = ("record", "profile")
"""Kinds that name a record or a profile in a request; no column can have them."""

ERASURE_SERVICES = ("identity_graph", "profile", "embedder", "rag_gateway", "feedback", "log")


class Strength(Enum):
    """What it means when two records share a value of a kind."""

    UNIQUE = "unique"  # they are one person, and two different values are two persons
    STRONG = "strong"  # they are one person
    WEAK = "weak"  # nothing by itself: it only tells records apart that share a strong value


class Format(Enum):
    """How the values of a kind are normalised."""

    EMAIL = "email"
    PHONE = "phone"
    CODE = "code"  # case and spaces do not count
    NUMBER = "number"  # case, spaces and punctuation do not count
    TEXT = "text"  # case and repeated spaces do not count


class KindRule(NamedTuple):
    """A kind of identifier.

    Attributes:
        strength: what sharing a value means.
        format: how values are normalised.
        max_records: a value that more records than this hold links nobody. Records that hold exactly the same
            identifiers count once: the hundred bookings of one traveller are one, the hundred users of a kiosk are not.
        max_rows: the same, for all records whatever else they hold.
        max_values: a profile with more different values than this is suspect.
        casts_doubt: whether a profile is suspect when nothing else joins records of it that have an e-mail address or a
            telephone number each: a device may be a family's.
    """

    strength: Strength = Strength.STRONG
    format: Format = Format.CODE
    max_records: int = 30
    max_rows: int = 5_000
    max_values: int = 10
    casts_doubt: bool = False


# In the order in which their links are made: where two links exclude one another, the earlier stays.
KINDS: Mapping[str, KindRule] = MappingProxyType(
    {
        "national": KindRule(Strength.UNIQUE, Format.NUMBER, max_values=1),
        "tax": KindRule(Strength.UNIQUE, Format.NUMBER, max_values=1),
        "passport": KindRule(format=Format.NUMBER, max_values=4),
        "loyalty": KindRule(max_values=4),
        "account": KindRule(max_records=100, max_rows=100_000, max_values=20),
        "email": KindRule(format=Format.EMAIL, max_values=6),
        "phone": KindRule(format=Format.PHONE, max_values=6),
        "device": KindRule(max_records=10, max_values=30, casts_doubt=True),
        "name": KindRule(Strength.WEAK, Format.TEXT),
        "birth_date": KindRule(Strength.WEAK, Format.TEXT),
    }
)


class ColumnRule(NamedTuple):
    """What a column holds.

    Attributes:
        kind: the kind of identifier; empty for none.
        scope: where values are unique, for example the source whose customer numbers they are; empty for everywhere.
        scope_of_numbers: the same, for values that are bare numbers only: another source counts from 1 too.
        digits_min: bare numbers of at least this many digits are unique everywhere nevertheless; 0 for none.
    """

    kind: str
    scope: str = ""
    scope_of_numbers: str = ""
    digits_min: int = 0


class EntityRule(NamedTuple):
    """What the rows of an entity are.

    Attributes:
        person: whether each row belongs to a person; None: when it has a column that says so.
        columns: what columns hold, by name (`outer.inner` within an object); others go by their names.
        defaults: whether columns that are not named go by their names at all.
    """

    person: bool | None = None
    columns: Mapping[str, ColumnRule] = MappingProxyType({})
    defaults: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        kinds: the kinds of identifiers, strongest first.
        entities: rules for entities, by (source, entity).
        default_region: the country (two letters) of telephone numbers that do not name theirs, in rows that do not name
            one (in a column `country` or `country_code`) either; empty for none.
        email_tags_ignored: domains at which dots and anything after a plus sign do not count.
        junk: values, beside the built-in ones, that never link.
        max_cluster: a profile has at most this many records that differ in their identifiers.
        max_component: where more such records than this are joined, by whatever chain of links, nothing can be told of
            any of them: each stands alone, and is suspect. It bounds the work that a change can cause.
        erasure_services: whose acknowledgements an erasure waits for.
    """

    kinds: Mapping[str, KindRule] = field(default_factory=lambda: KINDS)
    entities: Mapping[tuple[str, str], EntityRule] = field(default_factory=dict)
    default_region: str = "US"
    email_tags_ignored: frozenset[str] = frozenset()
    junk: frozenset[str] = frozenset()
    max_cluster: int = 200
    max_component: int = 2_000
    erasure_services: tuple[str, ...] = ERASURE_SERVICES

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [identity_graph]; raises InvalidInputError that names the setting which is wrong."""
        _known("identity_graph", table, cls.__slots__)
        kinds = dict(KINDS)
        for name, value in _table("identity_graph.kinds", table.get("kinds", {})).items():
            if name in RESERVED_KINDS or not name.isidentifier():
                raise InvalidInputError(f"identity_graph.kinds: {name!r} cannot be the name of a kind; use a word")
            kinds[name] = _kind(f"identity_graph.kinds.{name}", kinds.get(name, KindRule()), value)
        entities = _table("identity_graph.entities", table.get("entities", {}))
        return cls(
            kinds=kinds,
            entities={
                _entity_name(name): _entity(f"identity_graph.entities.{name}", rule, kinds)
                for name, rule in entities.items()
            },
            default_region=_typed("identity_graph.default_region", table.get("default_region", "US"), str).upper(),
            email_tags_ignored=_texts("identity_graph.email_tags_ignored", table.get("email_tags_ignored", ())),
            junk=_texts("identity_graph.junk", table.get("junk", ())),
            max_cluster=_positive("identity_graph.max_cluster", table.get("max_cluster", 200)),
            max_component=_positive("identity_graph.max_component", table.get("max_component", 2_000)),
            erasure_services=tuple(
                sorted(_texts("identity_graph.erasure_services", table["erasure_services"]))
                if "erasure_services" in table
                else ERASURE_SERVICES
            ),
        )

    def fingerprint(self) -> str:
        """Return what is different when the same records may come out as other persons."""
        kinds = {name: [rule.strength.value, rule.format.value, *rule[2:]] for name, rule in self.kinds.items()}
        entities = sorted(
            [*name, rule.person, sorted([column, *held] for column, held in rule.columns.items()), rule.defaults]
            for name, rule in self.entities.items()
        )
        limits = [self.default_region, self.max_cluster, self.max_component]
        words = [sorted(self.email_tags_ignored), sorted(self.junk)]
        return orjson.dumps([RULES_VERSION, list(kinds.items()), entities, limits, words]).decode()


def _kind(where: str, rule: KindRule, value: Any) -> KindRule:
    table = dict(_table(where, value))
    _known(where, table, KindRule._fields)
    for name in ("max_records", "max_rows", "max_values"):
        if name in table:
            _positive(f"{where}.{name}", table[name])
    if "casts_doubt" in table:
        _typed(f"{where}.casts_doubt", table["casts_doubt"], bool)
    if "strength" in table:
        table["strength"] = _choice(f"{where}.strength", table["strength"], Strength)
    if "format" in table:
        table["format"] = _choice(f"{where}.format", table["format"], Format)
    return rule._replace(**table)


def _entity_name(name: str) -> tuple[str, str]:
    source, _, entity = name.partition("/")
    if not source or not entity:
        raise InvalidInputError(f"identity_graph.entities: {name!r} is not source/entity, for example crm/customers")
    return source, entity


def _entity(where: str, value: Any, kinds: Mapping[str, KindRule]) -> EntityRule:
    table = _table(where, value)
    _known(where, table, EntityRule._fields)
    columns = _table(f"{where}.columns", table.get("columns", {}))
    person = table.get("person")
    return EntityRule(
        person=None if person is None else _typed(f"{where}.person", person, bool),
        columns={name: _column(f"{where}.columns.{name}", rule, kinds) for name, rule in columns.items()},
        defaults=_typed(f"{where}.defaults", table.get("defaults", True), bool),
    )


def _column(where: str, value: Any, kinds: Mapping[str, KindRule]) -> ColumnRule:
    table = {"kind": value} if isinstance(value, str) else _table(where, value)
    _known(where, table, ("kind", "scope"))
    kind = _typed(f"{where}.kind", table.get("kind"), str)
    if kind and kind not in kinds:
        raise InvalidInputError(f"{where}: there is no kind {kind!r}; there are {', '.join(kinds)}, and those declared")
    return ColumnRule(kind, _typed(f"{where}.scope", table.get("scope", ""), str))


def _known(where: str, table: Mapping[str, Any], names: Collection[str]) -> None:
    if unknown := sorted(set(table) - set(names)):
        raise InvalidInputError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{where} must be a table, not {value!r}")
    return value


def _typed(where: str, value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise InvalidInputError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _positive(where: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise InvalidInputError(f"{where} must be a whole number from 1, not {value!r}")
    return value


def _choice(where: str, value: Any, choices: type[E]) -> E:
    try:
        return choices(value)
    except ValueError:
        raise InvalidInputError(f"{where}: {value!r} is none of {', '.join(c.value for c in choices)}") from None


def _texts(where: str, value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise InvalidInputError(f"{where} must be a list of texts, not {value!r}")
    return frozenset(item.lower() for item in value)
