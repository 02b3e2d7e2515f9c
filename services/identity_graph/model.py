"""The values that identity resolution works on: identifiers, what records hold, and the part of the graph in hand.

The graph's nodes are not records but *contents*: records that hold exactly the same identifiers are always the same
person or each their own, so a traveller with a thousand bookings is one node with a thousand rows. Everything that
decides who is who is a function of the contents that are there now, never of how they came about.
"""

import hashlib
from base64 import b32encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import orjson

from services.identity_graph.columns import Entry
from services.identity_graph.settings import Settings, Strength
from services.kernel.freshness import Sightings
from services.kernel.log import SEPARATOR

NEVER_MS = 1 << 62
"""The first sighting of a record that was never seen."""

NO_ROW = (NEVER_MS, "")

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


class Content(NamedTuple):
    """What a record holds.

    Attributes:
        tenant: whose it is.
        text: the identifiers, weak ones and junk too, as JSON in a canonical order; equal contents have equal texts.
        links: those that can link, in the order of their text.
        unique: those of a kind of which a person has one.
    """

    tenant: str
    text: str
    links: tuple[Link, ...]
    unique: tuple[Link, ...]

    def entries(self) -> list[Entry]:
        """Return the identifiers."""
        return [(column, kind, value) for column, kind, value in orjson.loads(self.text)]


class Kinds:
    """The kinds of identifiers, made ready for use.

    Attributes:
        rank: linking kind -> its place in the order in which links are made: unique ones first, then as configured.
        max_records, max_rows, max_values: the limits of linking kinds.
        values_always_fine: a profile with at most this many identifiers in all breaks no kind's limit of values.
    """

    def __init__(self, settings: Settings) -> None:
        linking = {name: rule for name, rule in settings.kinds.items() if rule.strength is not Strength.WEAK}
        self.unique = {name for name, rule in linking.items() if rule.strength is Strength.UNIQUE}
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

    def content(self, tenant: str, entries: Sequence[Entry], text: str) -> Content:
        """Return the content that entries make; `text` is theirs."""
        rank, prefix = self.rank, tenant + SEPARATOR
        links = [f"{prefix}{kind}{SEPARATOR}{value}" for _, kind, value in entries if kind in rank]
        if len(links) > 1:
            links = sorted(set(links))
        unique = [f"{prefix}{kind}{SEPARATOR}{value}" for _, kind, value in entries if kind in self.unique]
        return Content(tenant, text, tuple(links), tuple(unique))

    def parse(self, tenant: str, text: str) -> Content:
        """Return the content that a text stands for."""
        return self.content(tenant, orjson.loads(text), text)

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


@dataclass(slots=True, eq=False)
class Node:
    """A content and its rows.

    Attributes:
        id: names it in the store.
        content: what each of the rows holds.
        rows: how many there are now; 0: it is about to go.
        first: the oldest of the rows, and of equal ones the least: its first sighting and its key.
        component: names the set of nodes that are joined by links, directly or not; None where nothing links it.
        standing: what the graph says now.
        members: the rows, with their first sightings; None where they were not needed.
        rows_before, component_before, standing_before, first_before: as in the store.
        joined: rows that came to it in this batch.
        cause_ms: the event time of the newest change that touched it in this batch; 0 for none.
    """

    id: int
    content: Content
    rows: int = 0
    first: tuple[int, Key] = NO_ROW
    component: int | None = None
    standing: Standing = NOWHERE
    members: dict[Key, int] | None = None
    rows_before: int = 0
    component_before: int | None = None
    standing_before: Standing = NOWHERE
    first_before: tuple[int, Key] = NO_ROW
    joined: set[Key] = field(default_factory=set)
    cause_ms: int = 0

    def add(self, key: Key, first_seen: int) -> None:
        """Take a row in."""
        if self.members is not None:
            self.members[key] = first_seen
        self.rows += 1
        self.joined.add(key)
        self.first = min(self.first, (first_seen, key))

    def remove(self, key: Key) -> None:
        """Let a row go."""
        self.rows -= 1
        self.joined.discard(key)
        if self.members is not None:
            del self.members[key]
        if key == self.first[1]:
            self._find_first()

    def sight(self, key: Key, first_seen: int) -> None:
        """Note an earlier sighting of one of the rows."""
        if self.members is not None:
            self.members[key] = first_seen
        self.first = min(self.first, (first_seen, key))

    def _find_first(self) -> None:
        if self.members is None:
            raise RuntimeError(f"the rows of node {self.id} were not loaded, and its first one goes")
        pairs = ((seen, key) for key, seen in self.members.items())
        self.first = min(pairs, default=NO_ROW)


@dataclass(slots=True, eq=False)
class Row:
    """What is known of a record, whether its row is in the graph or not.

    Attributes:
        key: the record.
        id: names it in the store; None when it is not there yet.
        partition, offset: the place in the topic `changes` of the newest change that took effect.
        position: the source's own position of it; empty where the source tells none.
        first_seen: the earliest event time that was ever delivered for it.
        node: what it holds; None when it is not in the graph.
        carried: columns whose value an update left out, and the position from which it is known.
        buried: what is kept of its links when it is gone.
        node_before, first_seen_before: as in the store.
        touched: whether anything of it changed in this batch.
    """

    key: Key
    id: int | None = None
    partition: int = 0
    offset: int = -1
    position: str = ""
    first_seen: int = NEVER_MS
    node: Node | None = None
    carried: dict[str, str] | None = None
    buried: tuple[str, ...] = ()
    node_before: Node | None = None
    first_seen_before: int = NEVER_MS
    touched: bool = False


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


@dataclass(slots=True)
class WorkingSet:
    """The part of the graph that a batch needs: whole components, and the records that the batch is about.

    Attributes:
        kinds: the kinds of identifiers.
        rows: the records, by key.
        nodes: the nodes, by id.
        by_content: the same, by tenant and text.
        crowds: identifiers that were quarantined before, as far as nodes here hold them.
        complete: those of them all of whose holders are here, so that they can be released.
        truncated: the newest truncation of each scope in the batch's partition.
        erased: the fences of erased records of the batch, by birth id.
        generation: the number of this batch's assignments.
        next_id: the next free id of a node.
        sightings: what the batch tells of its sources.
        quarantined, released: what changed of `crowds`; counted anew: crowds whose numbers changed.
    """

    kinds: Kinds
    generation: int
    next_id: int
    rows: dict[Key, Row] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    by_content: dict[tuple[str, str], Node] = field(default_factory=dict)
    crowds: dict[Link, Crowd] = field(default_factory=dict)
    complete: Collection[Link] = ()
    truncated: dict[Scope, str] = field(default_factory=dict)
    truncations: set[Scope] = field(default_factory=set)
    erased: Mapping[str, Erased] = field(default_factory=dict)
    sightings: Sightings = field(default_factory=Sightings)
    newest_ms: int = 0

    def node_of(self, tenant: str, entries: Sequence[Entry], text: str) -> Node:
        """Return the node of a content, a new one where there is none."""
        node = self.by_content.get((tenant, text))
        if node is None:
            node = Node(self.next_id, self.kinds.content(tenant, entries, text), members={})
            self.next_id += 1
            self.nodes[node.id] = self.by_content[tenant, text] = node
        return node
