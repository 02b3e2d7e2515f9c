"""The values that identity resolution works on: identifiers, what records hold, and the part of the graph in hand.

The graph's nodes are not records but *contents*: records that hold exactly the same identifiers are always the same
person or each their own, so a traveller with a thousand bookings is one node with a thousand rows. Everything that
decides who is who is a function of the contents that are there now, never of how they came about.
"""

import hashlib
from base64 import b32encode
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import orjson

from services.identity_graph.columns import Entry
from services.identity_graph.settings import Format, Settings, Strength
from services.kernel.freshness import Sightings
from services.kernel.log import SEPARATOR

NEVER_MS = 1 << 62
"""The first sighting of a record that was never seen."""

NO_ROW = (NEVER_MS, "")

OVERGROWN = 0
"""The component of all nodes whose component has grown beyond its bound."""

LINK_SEPARATOR = "\x1e"

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
        max_records, max_rows, max_values: the limits of linking kinds.
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
        self.max_records = {name: rule.max_records for name, rule in linking.items()}
        self.max_rows = {name: rule.max_rows for name, rule in linking.items()}
        self.max_values = {name: rule.max_values for name, rule in linking.items()}
        common = [limit for name, limit in self.max_values.items() if name not in self.unique]
        self.values_always_fine = min(common, default=0)
        self.records_always_fine = min(self.max_records.values(), default=0)
        self.max_cluster = settings.max_cluster
        self.max_component = settings.max_component

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

    def order(self, link: Link) -> tuple[int, str]:
        """Return where a link comes when links are made."""
        kind, value = split_link(link)
        return self.rank[kind], value

    def is_crowded(self, link: Link, records: int, rows: int) -> bool:
        """Tell whether a value is held by so many that it says nothing about any of them."""
        kind, _ = split_link(link)
        return records > self.max_records[kind] or rows > self.max_rows[kind]


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


class StoredNode(NamedTuple):
    """A node as it is in the store; see `Node`.

    Attributes:
        links: those of the content, joined by LINK_SEPARATOR.
        muted: a JSON list, or None.
    """

    id: int
    tenant: str
    text: str
    links: str
    rows: int
    first_seen: int
    first_key: Key
    component: int | None
    profile: str | None
    suspect: int
    muted: str | None


class StoredRow(NamedTuple):
    """A record as it is in the store; see `Row`. `text` is that of its node; `carried` and `buried` are JSON."""

    id: int
    key: Key
    partition: int
    offset: int
    position: str
    first_seen: int
    node_id: int | None
    text: str | None
    carried: str | None
    buried: str | None


class Before(NamedTuple):
    """What the store says of a node."""

    rows: int
    first: tuple[int, Key]
    component: int | None
    standing: Standing


FRESH = Before(0, NO_ROW, None, NOWHERE)


@dataclass(slots=True, eq=False)
class Node:
    """A content and its rows.

    Attributes:
        id: names it in the store.
        content: what each of the rows holds.
        rows: how many there are now; 0: it is about to go.
        first: the oldest of the rows, and of equal ones the least: its first sighting and its key.
        component: names the set of nodes that are joined by links, directly or not; None where nothing links it, and
            OVERGROWN where the set is too large.
        standing: what the graph says now.
        before: what the store says.
        joined, left: rows that came and went in this batch.
        seen: first sightings of rows of this batch.
        members: all rows with their first sightings, where they are needed; see `fill`.
        cause_ms: the event time of the newest change that touched it in this batch; 0 for none.
    """

    id: int
    content: Content
    rows: int = 0
    first: tuple[int, Key] = NO_ROW
    component: int | None = None
    standing: Standing = NOWHERE
    before: Before = FRESH
    joined: AbstractSet[Key] = frozenset()
    left: AbstractSet[Key] = frozenset()
    seen: dict[Key, int] | None = None
    members: dict[Key, int] | None = None
    cause_ms: int = 0

    def add(self, key: Key, first_seen: int, cause_ms: int) -> None:
        """Take a row in."""
        self.rows += 1
        if isinstance(self.joined, set):
            self.joined.add(key)
        else:
            self.joined = {key}
        self.sight(key, first_seen, cause_ms)

    def sight(self, key: Key, first_seen: int, cause_ms: int) -> None:
        """Note the first sighting of one of the rows."""
        if self.seen is None:
            self.seen = {}
        self.seen[key] = first_seen
        self.first = min(self.first, (first_seen, key))
        self.cause_ms = max(self.cause_ms, cause_ms)

    def remove(self, key: Key, cause_ms: int) -> None:
        """Let one of the rows that were there before go."""
        self.rows -= 1
        if isinstance(self.left, set):
            self.left.add(key)
        else:
            self.left = {key}
        self.cause_ms = max(self.cause_ms, cause_ms)

    @property
    def lost_its_first(self) -> bool:
        """Whether its oldest row went, so that all the others are needed to find the next."""
        return self.rows > 0 and self.first[1] in self.left

    def stored_members(self) -> dict[Key, int] | None:
        """Return the rows that it had before, where that is known without asking."""
        if self.before.rows > 1:
            return None
        first_seen, key = self.before.first
        return {key: first_seen} if self.before.rows else {}

    def fill(self, stored: Mapping[Key, int]) -> None:
        """Set its members.

        Args:
            stored: the rows that it had before, with their first sightings.
        """
        self.members = {key: seen for key, seen in stored.items() if key not in self.left} | (self.seen or {})
        self.first = min(((seen, key) for key, seen in self.members.items()), default=NO_ROW)


@dataclass(slots=True, eq=False)
class Row:
    """What is known of a record, whether its row is in the graph or not.

    Attributes:
        key: the record.
        stored: what the store says; None when it is not there yet.
        partition, offset: the place in the topic `changes` of the newest change that took effect.
        position: the source's own position of it; empty where the source tells none.
        first_seen: the earliest event time that was ever delivered for it.
        text: the text of the content that it holds; None when it is not in the graph.
        carried: columns whose value an update left out, and the position from which it is known.
        buried: what is kept of its links when it is gone.
        touched: whether anything of it changed in this batch.
        cause_ms: the event time of the newest change of the batch that took effect.
        node, node_before: its node now and before, where the graph changes for it.
    """

    key: Key
    stored: StoredRow | None = None
    partition: int = 0
    offset: int = -1
    position: str = ""
    first_seen: int = NEVER_MS
    text: str | None = None
    carried: dict[str, str] | None = None
    buried: tuple[str, ...] = ()
    touched: bool = False
    cause_ms: int = 0
    node: Node | None = None
    node_before: Node | None = None

    @property
    def moves(self) -> bool:
        """Whether it holds something else than before."""
        return self.text != (None if self.stored is None else self.stored.text)

    @property
    def sighted(self) -> bool:
        """Whether it is known to have been there before, and an earlier sighting came."""
        return self.stored is not None and self.first_seen != self.stored.first_seen


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


@dataclass(slots=True, eq=False)
class WorkingSet:
    """The part of the graph that a batch needs: the records that it is about, and the components that they change.

    Attributes:
        kinds: the kinds of identifiers.
        generation: the number of this batch's assignments.
        next_id: the next free id of a node or component.
        rows: the records, by key.
        truncated: the newest truncation of each scope in the batch's partition.
        truncations: the scopes that the batch truncates, and the partition.
        erased: the fences of erased records of the batch, by birth id.
        sightings: what the batch tells of its sources.
        newest_ms: the newest event time of the batch.
        contents: what the rows that move hold now, by tenant and text.
        nodes: the nodes of components that change, by id.
        by_content: the same, by tenant and text.
        crowds: identifiers that were quarantined before, as far as nodes here hold them.
        crowded: identifiers that too many hold now, as counted in the store.
        outside: links that join what holds them with an overgrown component.
        still_overgrown: nodes, by id, that stay in one.
    """

    kinds: Kinds
    generation: int
    next_id: int
    rows: dict[Key, Row] = field(default_factory=dict)
    truncated: dict[Scope, str] = field(default_factory=dict)
    truncations: dict[Scope, int] = field(default_factory=dict)
    erased: Mapping[str, Erased] = field(default_factory=dict)
    sightings: Sightings = field(default_factory=Sightings)
    newest_ms: int = 0
    contents: dict[tuple[str, str], Content] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    by_content: dict[tuple[str, str], Node] = field(default_factory=dict)
    crowds: dict[Link, Crowd] = field(default_factory=dict)
    crowded: dict[Link, Crowd] = field(default_factory=dict)
    outside: set[Link] = field(default_factory=set)
    still_overgrown: set[int] = field(default_factory=set)

    def add_node(self, node: Node) -> None:
        """Take a node in."""
        self.nodes[node.id] = self.by_content[node.content.tenant, node.content.text] = node

    def node_of(self, tenant: str, text: str) -> Node:
        """Return the node of one of the contents, a new one where there is none."""
        node = self.by_content.get((tenant, text))
        if node is None:
            node = Node(self.next_id, self.contents[tenant, text])
            self.next_id += 1
            self.add_node(node)
        return node
