"""The port to what can be found: chunks with their words and vectors, of every version that is, or may become, current.

What is found is decided in two places. The index knows of a chunk what it says and who may find it; which version of a
document is current, and what a reader is shown beside the text (title, live columns, metadata), is known to the store
of documents alone, and asked of it for every hit. So a change of a price costs no write to the index, a version becomes
visible and the one before invisible at one instant, wherever the index is, and a document that was closed to a reader
a moment ago is not shown though the index still finds it.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from services.embedder.ports import Vector
from services.embedder.query import WordQuery
from services.embedder.state import Key
from services.kernel.jobs import PermanentError


class Reader(NamedTuple):
    """Who searches, and where.

    Attributes:
        tenant: whose documents.
        access: the labels that the reader holds.
        sources: only documents of these; none means all.
    """

    tenant: str
    access: frozenset[str]
    sources: frozenset[str] = frozenset()

    def may_see(self, source: str, labels: Collection[str]) -> bool:
        """Whether the reader may find what is of a source and has some labels."""
        return (not self.sources or source in self.sources) and may_see(labels, self.access)


class Visibility(NamedTuple):
    """Who may find a document: copied to its chunks, so that the index can filter by it.

    Attributes:
        source: where the document is from.
        access: the labels of which a reader needs one, sorted; none means everyone.
    """

    source: str
    access: tuple[str, ...] = ()


class IndexedChunk(NamedTuple):
    """A chunk as the index keeps it.

    Attributes:
        ordinal, start, end, text, context, headings, label, hash: as of `chunking.Chunk`.
        vector: of length 1, as float32 bytes.
    """

    ordinal: int
    start: int
    end: int
    text: str
    context: str
    headings: tuple[str, ...]
    label: str
    hash: bytes
    vector: bytes


class Candidate(NamedTuple):
    """A chunk that was found.

    Attributes:
        key, version: the document.
        ordinal, start, end, text, headings, label: as of `chunking.Chunk`.
        cosine: to the query's vector; 0 where there is none.
        bm25: the score of its words; 0 when it has none of the query's.
        vector: its own, where the model has made one.
    """

    key: Key
    version: str
    ordinal: int
    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    label: str
    cosine: float
    bm25: float
    vector: Vector | None


class Candidates(NamedTuple):
    """What was found by both ways. Each candidate has the true score of both, whichever way it was found.

    Attributes:
        chunks: in no particular order; of all versions that are stored.
        cosine_rest: no other chunk that the reader may find has a greater cosine; -1 when there is no other.
        bm25_rest: no other one has a greater score of its words; 0 when no other has any of them.
        total: how many chunks the index holds.
        missing: the parts of the search that failed, in plain words.
        by_vectors: whether the cosines count.
    """

    chunks: list[Candidate]
    cosine_rest: float
    bm25_rest: float
    total: int
    missing: list[str]
    by_vectors: bool


class Shown(NamedTuple):
    """What a reader is shown of a document, and whether.

    Attributes:
        version: the one that can be found; empty until there is one.
        source, access: who may see it now; access labels as in `Visibility`.
        title, uri: of the document.
        metadata, live: JSON objects; `live` is empty for documents that are no rows.
        shown_ms: the event time of what is shown.
    """

    version: str
    source: str
    access: tuple[str, ...]
    title: str
    uri: str
    metadata: str
    live: str
    shown_ms: int


class ShownDocuments(Protocol):
    """The store of documents, as search sees it."""

    async def shown(self, keys: Collection[Key]) -> Mapping[Key, Shown]:
        """Return what is known of documents now; those that are not there are left out. Raises UnavailableError."""


class ChunkSearch(Protocol):
    """The side of the index that answers."""

    async def search(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        """Return the best chunks that a reader may find: `count` by meaning and `count` by words.

        Tenant, access and sources are conditions of the engine's own query, so that what others own takes no place.

        Args:
            words: what is looked for.
            vector: the same as a vector of length 1; without one, chunks are found by words alone.
            reader: who looks.
            count: at most so many of each way.

        Raises:
            UnavailableError: the engine cannot be reached.
        """

    async def openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        """Return the first chunk of documents, each of a version, without scores; those that have none are left out."""


class ChunkIndex(ChunkSearch, Protocol):
    """An index of chunks outside the local database, of one embedding model; `engines.remote_index` makes one.

    Every write is idempotent and lasting when it returns. Several versions of a document may be there at a time, whole
    or in part: which one counts is the business of the store of documents. What has no current version is clutter, and
    taken away by `remove`. All methods raise UnavailableError when the engine cannot be reached or refuses for the
    moment: nothing is known then of how much of a write was done, and doing it again is right.

    Attributes:
        dimensions: the length of the vectors; 0 while neither the model nor what is stored tells.
    """

    dimensions: int

    async def start(self) -> None:
        """Make what is missing of index and tables. May be called again.

        Raises:
            InvalidInputError: what is there was made by another model, or the engine refuses the settings.
        """

    async def put(self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]) -> None:
        """Store chunks of a version, all or a slice of them; searchable when it returns. Other versions stay.

        Raises:
            PermanentError: the engine refuses a chunk, and why: its vector has another length, is zero or not finite.
        """

    async def show(self, key: Key, version: str, visibility: Visibility) -> None:
        """Change who may find the chunks of a version; in effect when it returns. Nothing is embedded for it."""

    async def remove(self, key: Key, *, but: str = "") -> int:
        """Take the chunks of a document away, of all versions but one; return how many there were.

        Without one that stays, nothing of the document is left, in the indexes of former models neither; an erasure
        has `expunge` clear the files, too.
        """

    async def remains(self, key: Key) -> int:
        """Return how many chunks of a document are stored, of any version and model: what an erasure is probed by."""

    async def expunge(self) -> int:
        """Rewrite the files in which removed chunks still are, after an erasure; return how many these hold yet.

        May take a while. Another try later finds fewer, unless others remove chunks all the time.
        """

    async def vectors(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the vectors that this model has made already, as float32 bytes by hash; others are left out."""

    async def stored(self, key: Key, version: str) -> list[IndexedChunk]:
        """Return the chunks of a version in order, as they can be found."""

    def everything(self) -> AsyncIterator[tuple[Key, str, IndexedChunk]]:
        """Go through all chunks, by document, version and ordinal: for hashes, checks and clearing up."""

    async def count(self) -> int:
        """Return how many chunks are stored, of all documents and versions."""

    async def close(self) -> None:
        """Let go of connections."""


def refusal(chunk: IndexedChunk, dimensions: int) -> str:
    """Return why a chunk must not be indexed, in plain words; empty when it may."""
    import numpy as np

    vector = np.frombuffer(chunk.vector, np.float32)
    if len(vector) != dimensions:
        return f"its vector has {len(vector)} numbers, those of this index have {dimensions}: another model made it"
    if not np.isfinite(vector).all():
        return "its vector holds what is no number: check the embedding model"
    return "" if vector.any() else "its vector is zero, which is near to nothing: check the embedding model"


def checked(key: Key, chunks: Sequence[IndexedChunk], dimensions: int) -> None:
    """Raise a PermanentError that names the first chunk which must not be indexed."""
    for chunk in chunks:
        if reason := refusal(chunk, dimensions):
            raise PermanentError(f"{key.document_id}, chunk {chunk.ordinal}: {reason}")


def may_see(labels: Collection[str], held: Collection[str]) -> bool:
    """Whether a reader who holds some labels may see what has these."""
    return not labels or any(label in held for label in labels)
