"""The part of the graph that a batch has in hand: records and nodes as they are stored, and as they are becoming."""

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from services.identity_graph.model import (
    NEVER_MS,
    NO_ROW,
    NOWHERE,
    Content,
    Crowd,
    Erased,
    Key,
    Kinds,
    Link,
    Scope,
    Standing,
)
from services.kernel.freshness import Sightings

LINK_SEPARATOR = "\x1e"


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
    aside: str | None


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
        aside: the text of what is known of it while that makes no person, where the source tells rows in parts.
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
    aside: str | None = None
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


@dataclass(slots=True, eq=False)
class WorkingSet:
    """The part of the graph that a batch needs: the records that it is about, and the components that they change.

    Attributes:
        kinds: the kinds of identifiers.
        next_id: the next free id of a node or component.
        generation: the number of this batch's assignments, once everything is worked out.
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
    next_id: int
    generation: int = 0
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
