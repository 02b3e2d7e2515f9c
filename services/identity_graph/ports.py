"""What identity resolution needs of a graph store: reads by set, one write a batch. All within one unit of work."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from headwater.common.v1 import events_pb2
from services.identity_graph.clustering import Outcome
from services.identity_graph.explain import Evidence
from services.identity_graph.model import Crowd, Erased, Key, Link, Scope
from services.identity_graph.working_set import Node, Row, StoredNode, StoredRow, WorkingSet
from services.kernel.freshness import FreshnessTable


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


class GraphReader(Protocol):
    """Reads for a batch."""

    async def counters(self) -> tuple[int, int]:
        """Return the next generation of assignments and the next free id of a node."""

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
        """Make a batch's outcome last, within the open unit of work."""

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


class IdentityStores(NamedTuple):
    """What the API answers from."""

    queries: GraphQueries
    erasures: ErasureReader
    freshness: FreshnessTable
