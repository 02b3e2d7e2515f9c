"""The settings of identity resolution: the table [identity_graph] of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from services.kernel.errors import InvalidInputError
from services.kernel.settings import Section

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
        records_max: a value that more records than this hold links nobody. Records that hold exactly the same
            identifiers count once: the hundred bookings of one traveller are one, the hundred users of a kiosk are not.
        rows_max: the same, for all records whatever else they hold.
        values_max: a profile with more different values than this is suspect.
        casts_doubt: whether a profile is suspect when nothing else joins records of it that have an e-mail address or a
            telephone number each: a device may be a family's.
    """

    strength: Strength = Strength.STRONG
    format: Format = Format.CODE
    records_max: int = 30
    rows_max: int = 5_000
    values_max: int = 10
    casts_doubt: bool = False


# In the order in which their links are made: where two links exclude one another, the earlier stays.
KINDS: Mapping[str, KindRule] = MappingProxyType(
    {
        "national": KindRule(Strength.UNIQUE, Format.NUMBER, values_max=1),
        "tax": KindRule(Strength.UNIQUE, Format.NUMBER, values_max=1),
        "passport": KindRule(format=Format.NUMBER, values_max=4),
        "loyalty": KindRule(values_max=4),
        "account": KindRule(records_max=100, rows_max=100_000, values_max=20),
        "email": KindRule(format=Format.EMAIL, values_max=6),
        "phone": KindRule(format=Format.PHONE, values_max=6),
        "device": KindRule(records_max=10, values_max=30, casts_doubt=True),
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
        cluster_records_max: a profile has at most this many records that differ in their identifiers.
        component_records_max: where more such records than this are joined, by whatever chain of links, nothing can be
            told of any of them: each stands alone, and is suspect. It bounds the work that a change can cause.
        erasure_services: whose acknowledgements an erasure waits for.
    """

    kinds: Mapping[str, KindRule] = field(default_factory=lambda: KINDS)
    entities: Mapping[tuple[str, str], EntityRule] = field(default_factory=dict)
    default_region: str = "US"
    email_tags_ignored: frozenset[str] = frozenset()
    junk: frozenset[str] = frozenset()
    cluster_records_max: int = 200
    component_records_max: int = 2_000
    erasure_services: tuple[str, ...] = ERASURE_SERVICES

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [identity_graph]; raises InvalidInputError that names the setting which is wrong."""
        read = Section("identity_graph", table, cls())
        kinds = _kinds(read.section("kinds"))
        entities = read.section("entities")
        return cls(
            kinds=kinds,
            entities={
                _entity_name(name): _entity(entities.section(name, EntityRule()), kinds) for name in entities.values
            },
            default_region=_region(read),
            email_tags_ignored=_lower(read, "email_tags_ignored"),
            junk=_lower(read, "junk"),
            cluster_records_max=read.whole("cluster_records_max"),
            component_records_max=read.whole("component_records_max"),
            erasure_services=tuple(sorted(_lower(read, "erasure_services")))
            if "erasure_services" in table
            else ERASURE_SERVICES,
        )

    def fingerprint(self) -> str:
        """Return what is different when the same records may come out as other persons."""
        kinds = {name: [rule.strength.value, rule.format.value, *rule[2:]] for name, rule in self.kinds.items()}
        entities = sorted(
            [*name, rule.person, sorted([column, *held] for column, held in rule.columns.items()), rule.defaults]
            for name, rule in self.entities.items()
        )
        limits = [self.default_region, self.cluster_records_max, self.component_records_max]
        words = [sorted(self.email_tags_ignored), sorted(self.junk)]
        return orjson.dumps([RULES_VERSION, list(kinds.items()), entities, limits, words]).decode()


def _kinds(read: Section) -> Mapping[str, KindRule]:
    kinds = dict(KINDS)
    for name in read.values:
        if name in RESERVED_KINDS or not name.isidentifier():
            raise read.refusal(name, "cannot be the name of a kind: use a word")
        kinds[name] = _kind(read.section(name, kinds.get(name, KindRule())))
    return kinds


def _kind(read: Section) -> KindRule:
    return KindRule(
        strength=Strength(read.choice("strength", Strength)),
        format=Format(read.choice("format", Format)),
        records_max=read.whole("records_max"),
        rows_max=read.whole("rows_max"),
        values_max=read.whole("values_max"),
        casts_doubt=read.flag("casts_doubt"),
    )


def _region(read: Section) -> str:
    region = read.text("default_region").upper()
    if region and region != Settings().default_region:
        from phonenumbers import SUPPORTED_REGIONS  # only where it is needed

        if region not in SUPPORTED_REGIONS:
            raise read.refusal(
                "default_region", f"must be a country's two letters, such as SE, or empty for none, not {region!r}"
            )
    return region


def _entity_name(name: str) -> tuple[str, str]:
    source, _, entity = name.partition("/")
    if not source or not entity:
        raise InvalidInputError(f"[identity_graph.entities] {name!r} is not source/entity, for example crm/customers")
    return source, entity


def _entity(read: Section, kinds: Mapping[str, KindRule]) -> EntityRule:
    columns = read.section("columns")
    return EntityRule(
        person=read.flag("person") if "person" in read.values else None,
        columns={name: _column(columns, name, kinds) for name in columns.values},
        defaults=read.flag("defaults"),
    )


def _column(columns: Section, name: str, kinds: Mapping[str, KindRule]) -> ColumnRule:
    if isinstance(columns.values[name], str):
        read, setting, kind, scope = columns, name, columns.text(name), ""
    else:
        read, setting = columns.section(name, ColumnRule(""), names=("kind", "scope")), "kind"
        if setting not in read.values:
            raise read.refusal(setting, 'is missing: name the kind, or "" for no identifier')
        kind, scope = read.text(setting), read.text("scope")
    if kind and kind not in kinds:
        raise read.refusal(setting, f"names no kind, {kind!r}; there are {', '.join(kinds)}, and those declared")
    return ColumnRule(kind, scope)


def _lower(read: Section, name: str) -> frozenset[str]:
    return frozenset(text.lower() for text in read.texts(name))
