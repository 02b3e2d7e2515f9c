"""What identity resolution needs of a graph store: reads by set, one write a batch. All within one unit of work."""

import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from headwater.common.v1 import common_pb2, events_pb2
from services.identity_graph.clustering import Outcome
from services.identity_graph.explain import Evidence
from services.identity_graph.model import Crowd, Erased, Key, Link, Scope
from services.identity_graph.working_set import Node, Row, StoredNode, StoredRow, WorkingSet
from services.kernel.freshness import Backlog, Groups
from services.kernel.log import Ledger


class Found(NamedTuple):
    """Where an identifier leads.

    Attributes:
        record: a record that holds it.
        node_id: its node.
        profile_id: its profile.
        suspect: whether the profile is suspected of holding more than one person, or several profiles hold it.
    """

    record: str
    node_id: int
    profile_id: str
    suspect: bool


class Subject(NamedTuple):
    """A person: records, and in the same order their own ids and source positions; and what links them."""

    records: tuple[str, ...]
    births: tuple[str, ...]
    positions: tuple[str, ...]
    links: tuple[Link, ...]


class Told(NamedTuple):
    """What the newest assignment of a record tells: its first sighting (None: it was erased), and its generation."""

    key: Key
    first_seen: int | None
    generation: int


class GraphReader(Protocol):
    """Reads for a batch.

    Where several workers share a graph, what a batch decides by must not change until its outcome lasts: so it is
    claimed before it is read. Claims are made in the order `enter`, `claim_links`, `claim`, and end with the unit of
    work. See docs/decisions/0011-identity-in-neo4j.md.
    """

    async def enter(self, partition: int | None) -> int:
        """Begin a batch of a partition of `changes`, or of something that concerns them all (None).

        Nobody else takes in changes of it until the unit of work ends.

        Returns:
            The next free id of a node or component.
        """

    async def claim_links(self, links: Collection[Link], contents: Collection[tuple[str, str]]) -> None:
        """Keep others from anything that follows from who holds the links.

        Args:
            links: whose holders change in this batch, all of them.
            contents: tenant and text of those without links whose rows change.
        """

    async def claim(self, components: Collection[int], node_ids: Collection[int] = ()) -> bool:
        """Keep others from changing components, and nodes that are in none.

        Returns:
            Whether any of them was not claimed yet: then what was read of them must be read again.
        """

    async def generation(self) -> int:
        """Return a number for assignments: higher than all that were told of the records and nodes that were read."""

    async def rows(self, keys: Collection[Key]) -> Sequence[StoredRow]:
        """Return the records that are there."""

    async def rows_of_scope(self, prefix: Key, partition: int) -> Sequence[StoredRow]:
        """Return the records whose keys begin with `prefix`, that hold something, and that came by a partition."""

    async def truncations(self, partition: int) -> dict[Scope, str]:
        """Return the newest truncation of every scope in a partition."""

    async def erased(self, keys: Collection[Key]) -> Mapping[str, Erased]:
        """Return the fences of erased records, by birth id."""

    async def nodes(self, ids: Collection[int]) -> Sequence[StoredNode]:
        """Return nodes by id."""

    async def nodes_of(self, components: Collection[int]) -> Sequence[StoredNode]:
        """Return all nodes of components."""

    async def lone_nodes(self, contents: Collection[tuple[str, str]]) -> Sequence[StoredNode]:
        """Return nodes that nothing links, or that are in overgrown components, by tenant and text."""

    async def holders(self, links: Collection[Link]) -> Sequence[StoredNode]:
        """Return all nodes that hold one of the links."""

    async def components_of(self, links: Collection[Link]) -> Mapping[Link, int]:
        """Return the component of the holders of each link that is held, and that is not quarantined."""

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the links that are quarantined."""

    async def members(self, node_ids: Collection[int]) -> Sequence[tuple[int, Key, int]]:
        """Return node, key and first sighting of all rows of nodes."""


class GraphStore(GraphReader, Protocol):
    """Reads and the write of a batch."""

    async def write(self, state: WorkingSet, outcome: Outcome) -> None:
        """Make a batch's outcome last, and what it tells of its sources, within the open unit of work."""

    async def forget(self, keys: Collection[Key], fences: Mapping[str, Erased]) -> None:
        """Remove what is left of records that are out of the graph, and keep the fences, by birth id."""

    async def remains(self, rows: Collection[Row], nodes: Collection[Node]) -> dict[str, int]:
        """Search for what is left of records and nodes that are gone; return how much there is, by kind."""


class GraphQueries(Protocol):
    """What the API asks, of committed data."""

    async def by_record(self, tenant: str, record: str) -> Found | None:
        """Return where a record is."""

    async def by_profile(self, tenant: str, profile_id: str) -> Found | None:
        """Return where the record is whose own id a profile has, or had."""

    async def by_link(self, link: Link) -> Found | None:
        """Return a record that holds an identifier: of the largest profile where several do, and then suspect."""

    async def crowds(self, links: Collection[Link]) -> dict[Link, Crowd]:
        """Return those of the identifiers that are quarantined."""

    async def evidence(self, node_ids: Collection[int]) -> Sequence[Evidence]:
        """Return nodes, with everything that links join with them."""

    async def subject(self, found: Found, limit: int = -1) -> Subject:
        """Return the records of a person, in order, with their own ids, and the identifiers that link them.

        Args:
            found: where the person is.
            limit: at most this many records; -1 for all.
        """

    async def buried(self, links: Collection[Link]) -> Sequence[tuple[Key, str, str]]:
        """Return key, own id and position of records that are gone and held one of the identifiers."""

    def assignments(self, tenant: str) -> AsyncIterator[Sequence[tuple[str, str]]]:
        """Return pages of record and profile of a tenant, in the order of records, all as of one instant."""


class ErasureState(NamedTuple):
    """What is known of an erasure: when it was asked for, and who has acknowledged it."""

    requested_ms: int
    answers: tuple[events_pb2.ErasureDone, ...]


class ErasureStore(Protocol):
    """Keeps the state of erasures."""

    async def note_request(self, request: events_pb2.ErasureRequested) -> None:
        """Keep that an erasure was asked for, within the open unit of work."""

    async def note_answer(self, answer: events_pb2.ErasureDone) -> None:
        """Keep an acknowledgement, within the open unit of work; the newest of a service stands."""


class ErasureReader(Protocol):
    """Tells the state of erasures."""

    async def state(self, erasure_id: str) -> ErasureState | None:
        """Return what is known of an erasure."""


class FreshnessReader(Protocol):
    """Tells what the graph is current to."""

    async def report(self, tenant: str, backlog: Backlog, groups: Groups) -> common_pb2.StoreFreshness:
        """Return what the graph is current to, for a tenant; see `services.kernel.freshness.report`."""


class GraphLife(Protocol):
    """What happens to the graph as a whole."""

    async def start(self) -> None:
        """Make the store ready, before anything else; raises UnavailableError when it is not there."""

    async def is_whole(self) -> bool:
        """Tell whether there is a graph, or somebody in this process makes it again; else no batch begins."""

    async def close(self) -> None:
        """Leave the store."""

    async def reset(self) -> None:
        """Forget everything but the fences of erasures and the numbers that must go on growing."""

    async def seed(self, rows: Iterable[Told]) -> None:
        """Take first sightings over from the service's own events, before a rebuild."""

    async def fingerprint(self) -> str | None:
        """Return the fingerprint of the settings that the graph was worked out by; None when it never was."""

    async def renew(self, fingerprint: str, told: AsyncIterator[Sequence[Told]]) -> None:
        """Keep the settings' fingerprint; where the graph is not made by them, empty it, and remember who was somebody.

        Where there was another fingerprint, the group must be back at the beginning of its topics.

        Args:
            fingerprint: of the settings.
            told: what the service's own events tell, where the store itself has it no more.
        """

    async def ghosts(self) -> tuple[int, Sequence[tuple[Key, int]]]:
        """Return a generation, and key and first sighting of those who have not come back since it was emptied."""

    async def lay_ghosts(self) -> None:
        """Forget the ghosts: they have been told of."""

    async def hash(self, snapshot: sqlite3.Connection) -> str:
        """Return the hash of the graph: who is who, by what evidence, and what is quarantined.

        It is a function of the records that are there now, whatever came and went before: positions, generations, names
        of nodes and what is kept of records that are gone do not count.

        Args:
            snapshot: of the local database.
        """


class IdentityStores(NamedTuple):
    """What the API answers from."""

    queries: GraphQueries
    erasures: ErasureReader
    freshness: FreshnessReader


class Adapters(NamedTuple):
    """All of a graph, in one store.

    Attributes:
        stores: what the API answers from.
        life: the graph as a whole.
        changes, subjects: the graph for the group that takes changes in, and for the one that takes subjects out.
        erasures: for the latter.
        ledgers: of the two groups, in this order; None where the store is the log's own database.
    """

    stores: IdentityStores
    life: GraphLife
    changes: GraphStore
    subjects: GraphStore
    erasures: ErasureStore
    ledgers: tuple[Ledger | None, Ledger | None]
