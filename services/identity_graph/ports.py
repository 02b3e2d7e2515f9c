"""What identity resolution needs of a graph store: reads by set, one write a batch. All within one unit of work."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from services.identity_graph.clustering import Outcome
from services.identity_graph.model import Crowd, Erased, Key, Link, Scope, WorkingSet

LINK_SEPARATOR = "\x1e"


class StoredRow(NamedTuple):
    """A record as it is stored; see `model.Row`. `text` is that of its node."""

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


class StoredNode(NamedTuple):
    """A node as it is stored; see `model.Node`.

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


class GraphReader(Protocol):
    """Reads for a batch."""

    async def counters(self) -> tuple[int, int]:
        """Return the next generation of assignments and the next free id of a node."""

    async def rows(self, keys: Collection[Key]) -> Sequence[StoredRow]:
        """Return the records that are there."""

    async def rows_of_scope(self, prefix: Key, partition: int) -> Sequence[StoredRow]:
        """Return the records in the graph whose keys begin with `prefix` and which came by a partition."""

    async def truncations(self, partition: int) -> dict[Scope, str]:
        """Return the newest truncation of every scope in a partition."""

    async def erased(self, keys: Collection[Key]) -> Mapping[str, Erased]:
        """Return the fences of erased records, by birth id."""

    async def nodes(self, ids: Collection[int]) -> Sequence[StoredNode]:
        """Return nodes by id."""

    async def nodes_of(self, components: Collection[int]) -> Sequence[StoredNode]:
        """Return all nodes of components."""

    async def lone_nodes(self, contents: Collection[tuple[str, str]]) -> Sequence[StoredNode]:
        """Return nodes that nothing links, by tenant and text."""

    async def holders(self, links: Collection[Link]) -> Sequence[StoredNode]:
        """Return all nodes that hold one of the links."""

    async def components_of(self, links: Collection[Link]) -> Collection[int]:
        """Return the components of the holders of links that are not quarantined."""

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the links that are quarantined."""

    async def members(self, node_ids: Collection[int]) -> Sequence[tuple[int, Key, int]]:
        """Return node, key and first sighting of all rows of nodes."""


class GraphStore(GraphReader, Protocol):
    """Reads and the write of a batch."""

    async def write(self, state: WorkingSet, outcome: Outcome) -> None:
        """Make a batch's outcome last, within the open unit of work."""
