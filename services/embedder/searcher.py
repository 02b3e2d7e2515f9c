"""Search: by meaning and by words at once, within what the reader may see, whatever index answers."""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import orjson
import structlog

from headwater.embedder.v1 import service_pb2 as pb
from services.embedder.fusion import Scored, fused, is_repetition, scale
from services.embedder.index import Candidate, Candidates, ChunkSearch, Reader, Shown, ShownDocuments
from services.embedder.ports import Embedder, Vector
from services.embedder.query import WordQuery, word_query
from services.embedder.state import Key
from services.embedder.vectors import cosines
from services.kernel.errors import HeadwaterError

CANDIDATES_MIN = 50  # of each kind, to begin with
CANDIDATES_PER_HIT = 3
WIDER = 4  # so many times as many are looked at when they may not be enough
CANDIDATES_MAX = 800  # a candidate is about 5 KB, and more hardly ever change what is found
# Engines compute in 32 bits what the best chunks are; how far they can be wrong is less than this.
_TOLERANCE = 1e-5
REMEMBERED = 256  # queries whose vectors are kept

log = structlog.get_logger(__name__)


class Found(NamedTuple):
    """Hits, best first, and the parts of the search that failed, in plain words."""

    hits: list[pb.Hit]
    missing: list[str]


class Ranking(NamedTuple):
    """The best of what was found.

    Attributes:
        chunks: best first, with their scores.
        is_settled: whether no chunk that was not found can be among them.
    """

    chunks: list[tuple[Candidate, Scored[tuple[str, int]]]]
    is_settled: bool


class Searcher:
    """Ranks what the index finds, and shows it as the store of documents has it now."""

    def __init__(self, chunks: ChunkSearch, documents: ShownDocuments, embedder: Embedder, weight: float) -> None:
        """Wire the searcher.

        Args:
            chunks: the index.
            documents: knows which version of a document counts, and what a reader is shown of it.
            embedder: the model that made the vectors.
            weight: the share of the vectors in the fused score.
        """
        self._chunks, self._documents, self._embedder, self._weight = chunks, documents, embedder, weight
        self._vectors: OrderedDict[str, Vector] = OrderedDict()

    def forget(self) -> None:
        """Forget past queries, which may name an erased person."""
        self._vectors = OrderedDict()  # a query that is just being embedded remembers it in the old one

    async def search(self, query: str, reader: Reader, top_k: int) -> Found:
        """Return the best chunks for a query; what fails is done without, and named."""
        missing, vector = list[str](), None
        try:
            vector = await self.vector(query)
        except HeadwaterError as error:
            missing.append(f"search by meaning: {error}")
        except Exception as error:  # whatever the model's runtime raises: words still find something
            log.exception("search.vectors_failed")
            missing.append(f"search by meaning: {type(error).__name__}: {error}")
        words, count = word_query(query), max(CANDIDATES_MIN, CANDIDATES_PER_HIT * top_k)
        while True:
            found = await self._chunks.search(words, vector, reader, count)
            shown = await self._documents.shown({chunk.key for chunk in found.chunks})
            ranking = ranked(found, shown, words, reader, weight=self._weight, top_k=top_k)
            if ranking.is_settled or count >= CANDIDATES_MAX:
                break
            count = min(WIDER * count, CANDIDATES_MAX)
        hits = [_hit(chunk, scored, shown[chunk.key]) for chunk, scored in ranking.chunks]
        return Found(hits, [*missing, *found.missing])

    async def vector(self, query: str) -> Vector:
        """Return the vector of a query, embedded now or remembered; raises what the model raises."""
        vectors = self._vectors
        vector = vectors.get(query)
        if vector is None:
            vector = vectors[query] = await self._embedder.embed_query(query)
            if len(vectors) > REMEMBERED:
                vectors.popitem(last=False)
        vectors.move_to_end(query)
        return vector

    async def rows(self, document_ids: Collection[str], reader: Reader) -> list[pb.Hit]:
        """Return the first chunk of each of some documents that the reader may see, by document."""
        shown = await self._documents.shown({Key(reader.tenant, document_id) for document_id in document_ids})
        visible = {key: document for key, document in shown.items() if reader.may_see(document.source, document.access)}
        chunks = await self._chunks.openings({key: document.version for key, document in visible.items()})
        nothing = Scored(("", 0), 0.0, 0.0, 0.0)
        return [_hit(chunk, nothing, visible[key]) for key, chunk in sorted(chunks.items())]


def ranked(
    found: Candidates, shown: Mapping[Key, Shown], words: WordQuery, reader: Reader, *, weight: float, top_k: int
) -> Ranking:
    """Return the best of what was found that the reader may see, best first. Pure.

    Engines differ in which chunks they find; all of these have their true scores. A chunk that was not found scores no
    more than the worst that was found by each way, put together: once `top_k` score more than that, nothing is missing,
    and every engine gives the same.

    Args:
        found: the candidates.
        shown: the documents that they are of, as they are now.
        words: what was looked for.
        reader: who looks.
        weight: the share of the vectors in the fused score.
        top_k: at most so many.
    """
    chunks = {
        (chunk.key.document_id, chunk.ordinal): chunk
        for chunk in found.chunks
        if (document := shown.get(chunk.key)) is not None
        and chunk.key.tenant == reader.tenant
        and document.version == chunk.version
        and reader.may_see(document.source, document.access)
    }
    near = {name: chunk.cosine for name, chunk in chunks.items()} if found.by_vectors else {}
    bm25 = {name: chunk.bm25 for name, chunk in chunks.items() if chunk.bm25 > 0}
    best = _without_repetitions(chunks, fused(near, bm25, words, weight=weight, chunks=found.total), top_k)
    if _has_changed(found, shown):
        return Ranking(best, is_settled=False)
    if found.bm25_rest <= 0 and (found.cosine_rest <= -1 or not found.by_vectors):  # that was all
        return Ranking(best, is_settled=True)
    by = scale(max(bm25.values(), default=0.0), words, weight=weight if found.by_vectors else 0.0, chunks=found.total)
    rest = by.score(found.cosine_rest, found.bm25_rest)
    return Ranking(best, is_settled=len(best) == top_k and best[-1][1].score > rest + _TOLERANCE)


def _has_changed(found: Candidates, shown: Mapping[Key, Shown]) -> bool:
    """Whether a document got another version after its chunks were found: these are looked for again."""
    versions: dict[Key, set[str]] = defaultdict(set)
    for chunk in found.chunks:
        versions[chunk.key].add(chunk.version)
    return any(
        document.version and document.version not in versions[key] for key, document in shown.items() if key in versions
    )


def _without_repetitions(
    chunks: Mapping[tuple[str, int], Candidate], scores: Sequence[Scored[tuple[str, int]]], top_k: int
) -> list[tuple[Candidate, Scored[tuple[str, int]]]]:
    """Return the best, without those that say what a better one of their document says."""
    taken: dict[str, list[Candidate]] = defaultdict(list)
    best: list[tuple[Candidate, Scored[tuple[str, int]]]] = []
    for scored in scores:
        chunk = chunks[scored.chunk]
        others = taken[chunk.key.document_id]
        if not _repeats(chunk, others):
            others.append(chunk)
            best.append((chunk, scored))
            if len(best) == top_k:
                break
    return best


def _repeats(chunk: Candidate, others: Sequence[Candidate]) -> bool:
    if any(other.text == chunk.text for other in others):
        return True
    vectors = [other.vector for other in others if other.vector is not None]
    return chunk.vector is not None and is_repetition(cosines(chunk.vector, vectors))


def _hit(chunk: Candidate, scored: Scored[tuple[str, int]], document: Shown) -> pb.Hit:
    headings = chunk.headings
    hit = pb.Hit(
        document_id=chunk.key.document_id,
        version=chunk.version,
        ordinal=chunk.ordinal,
        text=chunk.text,
        start=chunk.start,
        end=chunk.end,
        # The first heading of most documents is their title.
        heading_path=headings[1:] if headings[:1] == (document.title,) else headings,
        score=scored.score,
        vector_score=scored.cosine,
        text_score=scored.bm25,
        title=document.title,
        source=document.source,
        uri=document.uri,
        live_json=document.live,
        label=chunk.label,
        metadata=orjson.loads(document.metadata),
    )
    hit.occurred_at.FromMilliseconds(document.shown_ms)
    return hit
