"""What the knowledge base needs from outside."""

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from headwater.common.v1 import common_pb2, operations_pb2
from headwater.embedder.v1 import events_pb2
from services.embedder.chunking import Chunk
from services.embedder.state import Key, WorkingSet
from services.kernel import topics
from services.kernel.enrichment import JobStore
from services.kernel.jobs import Job, JobState, Lane
from services.kernel.log import Ledger, Offsets
from services.kernel.processor import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from services.embedder.erasure import Erased
    from services.embedder.index import ChunkSearch, ShownDocuments

    Vector = npt.NDArray[np.float32]
else:  # numpy takes a while to import, and not every process that names the type needs it
    Vector = Any


class Embedder(Protocol):
    """An embedding model, wherever it runs.

    Attributes:
        model_id: names the model and everything that its vectors depend on: vectors of two ids never meet.
        dimensions: the length of its vectors; 0 while only the model's first answer can tell.
        tokens_max: how many tokens of a text it takes into account.
        texts_at_once: how many texts of a document it is best given together. Their vectors become lasting
            together, so it is also the most that a crash takes away.
        documents_at_once: how many documents are worked on at a time to keep it busy.
        live_documents: of these, how many backfill leaves to what changes just now.
    """

    model_id: str
    dimensions: int
    tokens_max: int
    texts_at_once: int
    documents_at_once: int
    live_documents: int

    async def embed(self, texts: Sequence[str], lane: Lane, *, alone: bool = False) -> Sequence[Vector]:
        """Return the vectors of texts of one document, each of length 1: `(dimensions,) float32`.

        A result depends on its text alone.

        Args:
            texts: at most `texts_at_once`.
            lane: live texts go ahead of those of the backfill.
            alone: nothing of other documents may share a call with these: the document has failed before.

        Raises:
            EnrichmentError: it cannot, by its kind; none of the texts has a vector then.
        """

    async def embed_query(self, text: str) -> Vector:
        """Return the vector of a query at once, ahead of everything else, or raise a HeadwaterError."""

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters, without the marks at its ends; may block."""

    async def warm_up(self) -> None:
        """Load what takes long to load."""

    async def close(self) -> None:
        """Let go of threads and connections."""


class Model(Protocol):
    """An embedding model that runs in this process. Methods block and are called in threads, several at once.

    Attributes:
        model_id, dimensions, tokens_max: as of an `Embedder`.
    """

    model_id: str
    dimensions: int
    tokens_max: int

    def embed(self, text: str) -> Vector:
        """Return the vector of a text, of length 1: `(dimensions,) float32`.

        The result depends on the text alone. Raises an `EnrichmentError` when it cannot, by its kind.
        """

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters, without the marks at its ends."""

    def load(self) -> None:
        """Load the model now rather than at the first text."""


class Assignment(NamedTuple):
    """What a job is to make searchable.

    Attributes:
        key: names the document.
        version: its version that is wanted.
        name, media_type: how its content is to be read.
        content: the content; None when it is in the log, at this place.
        topic, partition, offset: a place of the log.
    """

    key: Key
    version: str
    name: str
    media_type: str
    content: bytes | None
    topic: str
    partition: int
    offset: int


class Cut(NamedTuple):
    """A document as it is to be found: what it is called, its whole normalised text, and the chunks of that text."""

    title: str
    text: str
    chunks: Sequence[Chunk]


class Making(NamedTuple):
    """A version of a document on its way to be searchable."""

    job: Job
    assignment: Assignment
    cut: Cut


class VectorsMissingError(Exception):
    """Vectors that were stored have gone meanwhile, with another document: embed them anew."""


class Jobs(JobStore, Protocol):
    """The documents that are not searchable yet, or were given up, with their durable retry state."""

    async def assignment(self, job: Job) -> Assignment | None:
        """Return what a job is to do; None when it is not wanted any more, or somebody else does it."""

    async def listed(self, tenant: str, states: Collection[JobState], limit: int) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs of a tenant in any of the states, those due first first."""

    async def counts(self, tenant: str) -> dict[JobState, int]:
        """Return how many documents of a tenant are in each state."""

    async def retry(self, tenant: str, document_ids: Collection[str]) -> int:
        """Make parked and waiting jobs pending again: the named documents', or all; return how many."""

    async def open_count(self) -> int:
        """Return how many documents cannot be found yet, or were given up."""

    async def all_finished(self) -> None:
        """Wait until no job waits to be done; those that were given up do not count."""

    async def finished_before(self, before: Offsets, timeout_s: float) -> bool:
        """Wait until no job waits of a record below an offset of a (topic, partition); False after `timeout_s`."""

    async def parked(self, before: Offsets) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs that were given up, of records below the offsets."""

    async def unfinished_count(self) -> int:
        """Return how many jobs wait to be done."""

    async def first_unfinished(self, topic: str, partition: int) -> int | None:
        """Return the offset of the oldest record of a partition whose document cannot be found yet."""

    async def unfinished_since_ms(self, tenant: str, source: str) -> int | None:
        """Return the event time of the oldest change of a source that cannot be found yet."""


class Chunks(Protocol):
    """What can be found. A version takes the place of the one before as a whole: until then, that can be found."""

    async def stored(self, job: Job) -> Cut | None:
        """Return a document as it can be found, where only vectors are missing of the version that is wanted."""

    async def known(self, making: Making, hashes: Collection[bytes]) -> Collection[bytes]:
        """Return those that have been embedded with the model already, by the hash of a chunk."""

    async def keep(self, making: Making, vectors: Mapping[bytes, bytes]) -> bool:
        """Store vectors by hash of a version that is not finished, for after a crash; False when nobody wants it."""

    async def finish(self, making: Making, vectors: Mapping[bytes, bytes], embedded: int) -> bool:
        """Make a version searchable in place of the one before, and its job done.

        Args:
            making: the version.
            vectors: by hash, those that are not stored yet, as float32 bytes.
            embedded: how many chunks had to be embedded for it.

        Returns:
            False when the version is not wanted any more: what can be found is as it was.

        Raises:
            VectorsMissingError: a chunk has no vector; nothing was changed.
        """


class Whole(NamedTuple):
    """A document's text, and who may see it; the version is empty when none can be found yet."""

    version: str
    title: str
    text: str
    uri: str
    access: Sequence[str]


class KnowledgeStore(Protocol):
    """The knowledge base as a whole."""

    async def whole(self, key: Key) -> Whole | None:
        """Return a document; None when there is none."""

    async def report(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what has been taken in; documents whose work is not done count as if it was."""

    async def reset(self) -> None:
        """Forget everything that the log tells again; vectors stay, they are named by what they are of."""

    async def reload(self) -> None:
        """Clear up after a rebuild: vectors of what the log does not hold any more go."""

    async def state_hash(self, snapshot: object) -> str:
        """Return the hash of all documents, and of their chunks; not of when or how often they were embedded."""

    async def checks(self) -> list[operations_pb2.Check]:
        """Check that every document has the chunks that its census says, each with words and a vector."""


class Documents(Store[WorkingSet], Protocol):
    """The state of the group `embedder`.

    Attributes:
        on_work: is called when there is new work.
    """

    on_work: Callable[[], None]


class Erasures(Store[dict[int, "Erased"]], Protocol):
    """The state of the group `embedder-erasure`; loading a batch is what erases.

    Attributes:
        forget_queries: is called when something was erased: past queries may name it.
    """

    forget_queries: Callable[[], None]


def nothing() -> None:
    """Do nothing."""


async def nothing_to_do() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Where the knowledge base is.

    Attributes:
        documents, erasures: the states of the two groups.
        jobs, chunks, knowledge: the work, what comes of it, and both as a whole.
        search, shown: what is found, and how it stands now.
        inputs: what the group `embedder` consumes.
        ledgers: those of the two groups, where their states are not in the local database.
        background: long-running work.
        start, stop: connect, and disconnect.
    """

    documents: Documents
    erasures: Erasures
    jobs: Jobs
    chunks: Chunks
    knowledge: KnowledgeStore
    search: "ChunkSearch"
    shown: "ShownDocuments"
    inputs: tuple[str, ...] = (topics.DOCUMENTS, topics.CHANGES)
    ledgers: tuple[Ledger | None, Ledger | None] = (None, None)
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    start: Callable[[], Awaitable[None]] = nothing_to_do
    stop: Callable[[], Awaitable[None]] = nothing_to_do
