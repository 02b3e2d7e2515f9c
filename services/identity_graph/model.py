"""The values that identity resolution works on: identifiers, what records hold, and the part of the graph in hand.

The graph's nodes are not records but *contents*: records that hold exactly the same identifiers are always the same
person or each their own, so a traveller with a thousand bookings is one node with a thousand rows. Everything that
decides who is who is a function of the contents that are there now, never of how they came about.
"""

import hashlib
from base64 import b32encode
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import orjson

from services.identity_graph.columns import JUNK, Entry
from services.identity_graph.settings import Format, Settings, Strength
from services.kernel.log import SEPARATOR

NEVER_MS = 1 << 62
"""The first sighting of a record that was never seen."""

NO_ROW = (NEVER_MS, "")

OVERGROWN = 0
"""The component of all nodes whose component has grown beyond its bound."""


Link = str
"""An identifier of a linking kind as one text: tenant, kind and value."""

Key = str
"""A record as one text: tenant and record key, as in the keys of topics."""


@lru_cache(1 << 15)
def birth_id(key: Key) -> str:
    """Return the profile id that a record gives to a profile whose oldest record it is: 80 bits of a hash."""
    return "p_" + b32encode(hashlib.sha256(key.encode()).digest()[:10]).decode().lower()


def key_text(tenant: str, record: str) -> Key:
    """Return the key of a record."""
    return f"{tenant}{SEPARATOR}{record}"


def split_key(key: Key) -> tuple[str, str]:
    """Return tenant and record of a key."""
    tenant, _, record = key.partition(SEPARATOR)
    return tenant, record


def tenant_of(key: Key) -> str:
    """Return the tenant of a key."""
    return key[: key.index(SEPARATOR)]


def split_link(link: Link) -> tuple[str, str]:
    """Return kind and value of a link."""
    _, kind, value = link.split(SEPARATOR, 2)
    return kind, value


def buried(link: Link) -> str:
    """Return what is kept of a link of a record that is gone: a digest, by which an erasure still finds the record."""
    tenant, _, _ = link.partition(SEPARATOR)
    return f"{tenant}{SEPARATOR}#{hashlib.sha256(link.encode()).hexdigest()[:24]}"


def text_of(entries: Iterable[Entry]) -> str:
    """Return the text of a content; the entries are in their canonical order."""
    return orjson.dumps(entries).decode()


def entries_of(text: str | None) -> list[Entry]:
    """Return the identifiers of the text of a content."""
    return [(column, kind, value) for column, kind, value in orjson.loads(text)] if text else []


class Content(NamedTuple):
    """What a record holds.

    Attributes:
        tenant: whose it is.
        text: the identifiers, weak ones and junk too, as JSON in a canonical order; equal contents have equal texts.
        links: those that can link, in the order of their texts.
        unique: those of a kind of which a person has one.
        doubtful: those of a kind that casts doubt.
    """

    tenant: str
    text: str
    links: tuple[Link, ...]
    unique: tuple[Link, ...] = ()
    doubtful: tuple[Link, ...] = ()


class Kinds:
    """The kinds of identifiers, made ready for use.

    Attributes:
        unique: kinds of which a person has one value.
        doubtful: kinds that cast doubt when nothing else joins records that can each be reached.
        reachable: kinds by which a person can be reached.
        rank: linking kind -> its place in the order in which links are made: unique ones first, then as configured.
        records_max, rows_max, values_max: the limits of linking kinds.
        values_always_fine: a profile with at most this many identifiers in all breaks no kind's limit of values.
    """

    def __init__(self, settings: Settings) -> None:
        linking = {name: rule for name, rule in settings.kinds.items() if rule.strength is not Strength.WEAK}
        self.unique = {name for name, rule in linking.items() if rule.strength is Strength.UNIQUE}
        self.doubtful = {name for name, rule in linking.items() if rule.casts_doubt}
        self.reachable = {name for name, rule in linking.items() if rule.format in {Format.EMAIL, Format.PHONE}}
        self._special_words = [f'"{name}"' for name in self.unique | self.doubtful]
        self.rank = {
            name: place for place, name in enumerate(sorted(linking, key=lambda name: name not in self.unique))
        }
        self.records_max = {name: rule.records_max for name, rule in linking.items()}
        self.rows_max = {name: rule.rows_max for name, rule in linking.items()}
        self.values_max = {name: rule.values_max for name, rule in linking.items()}
        common = [limit for name, limit in self.values_max.items() if name not in self.unique]
        self.values_always_fine = min(common, default=0)
        self.records_always_fine = min(self.records_max.values(), default=0)
        self.cluster_records_max = settings.cluster_records_max
        self.component_records_max = settings.component_records_max

    def content(self, tenant: str, text: str) -> Content:
        """Return the content that a text stands for."""
        rank, prefix = self.rank, tenant + SEPARATOR
        links = [f"{prefix}{kind}{SEPARATOR}{value}" for _, kind, value in orjson.loads(text) if kind in rank]
        return self.content_of_links(tenant, text, sorted(set(links)) if len(links) > 1 else links)

    def content_of_links(self, tenant: str, text: str, links: Sequence[Link]) -> Content:
        """Return the content of a text whose links are known."""
        for word in self._special_words:
            if word in text:  # most contents have nothing special
                unique = tuple(link for link in links if split_link(link)[0] in self.unique)
                doubtful = tuple(link for link in links if split_link(link)[0] in self.doubtful)
                return Content(tenant, text, tuple(links), unique, doubtful)
        return Content(tenant, text, tuple(links))

    def make_a_person(self, entries: Iterable[Entry]) -> bool:
        """Tell whether entries are of a person's row: one of them is of a column that can link."""
        return any(not kind or kind.removeprefix(JUNK) in self.rank for _, kind, _ in entries)

    def order(self, link: Link) -> tuple[int, str]:
        """Return where a link comes when links are made."""
        kind, value = split_link(link)
        return self.rank[kind], value

    def is_crowded(self, link: Link, records: int, rows: int) -> bool:
        """Tell whether a value is held by so many that it says nothing about any of them."""
        kind, _ = split_link(link)
        return records > self.records_max[kind] or rows > self.rows_max[kind]


class Standing(NamedTuple):
    """What the graph says of the rows of a node.

    Attributes:
        profile: their profile; None where each row is a profile of its own, for nothing links it.
        suspect: whether the profile is suspected of holding more than one person.
        muted: the links of the node that are quarantined.
    """

    profile: str | None
    suspect: bool
    muted: tuple[Link, ...]


NOWHERE = Standing(None, suspect=False, muted=())


class Crowd(NamedTuple):
    """How many nodes and rows hold a quarantined identifier."""

    records: int
    rows: int


class Erased(NamedTuple):
    """The fence that an erasure leaves: changes before the offset or at an old source position bring nothing back."""

    offset: int
    position: str


Scope = tuple[str, str, str]
"""Tenant, source and entity."""
