"""Search: by vectors and by words at once, within what the reader may see."""

import asyncio
import sqlite3
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import orjson
import structlog

from headwater.embedder.v1 import service_pb2 as pb
from services.embedder.fusion import Scored, fused, is_repetition
from services.embedder.ports import Embedder, Vector
from services.embedder.query import WordQuery, word_query
from services.embedder.sqlite_documents import IN, parameter
from services.embedder.vectors import VectorIndex
from services.kernel.errors import HeadwaterError
from services.kernel.sqlite import Database

CANDIDATES_MIN = 50  # of each kind; more changed nothing in the measurements
CANDIDATES_PER_HIT = 3
REMEMBERED = 256  # queries whose vectors are kept

log = structlog.get_logger(__name__)


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


class Found(NamedTuple):
    """Hits, best first, and the parts of the search that failed, in plain words."""

    hits: list[pb.Hit]
    missing: list[str]


class Candidates(NamedTuple):
    """Chunks that were found, by both ways.

    Attributes:
        cosines: of every chunk that was found.
        bm25: of those that were found by words.
        words: what was looked for.
        missing: the parts of the search that failed, in plain words.
    """

    cosines: dict[int, float]
    bm25: dict[int, float]
    words: WordQuery
    missing: list[str]


class Searcher:
    """Searches in a thread of its own, so that a large index holds up nothing else."""

    def __init__(self, database: Database, index: VectorIndex, embedder: Embedder, weight: float) -> None:
        """Wire the searcher.

        Args:
            database: the installation's database.
            index: the vectors.
            embedder: the model that made them.
            weight: the share of the vectors in the fused score.
        """
        self._index, self._embedder, self._weight = index, embedder, weight
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._connection = sqlite3.connect(
            f"{database.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA query_only=ON")
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._is_partial = False

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

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
        call = (query, vector, reader, top_k)
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._search, *call)
        return found._replace(missing=[*missing, *found.missing])

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
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._first_chunks, document_ids, reader)

    def _first_chunks(self, document_ids: Collection[str], reader: Reader) -> list[pb.Hit]:
        groups = self.groups(reader)
        chunks = self._connection.execute(
            f"""SELECT c.id FROM knowledge_documents d JOIN knowledge_chunks c ON c.document=d.id AND c.ordinal=0
                WHERE d.tenant=? AND d.document_id {IN}""",
            (reader.tenant, parameter(document_ids)),
        ).fetchall()
        rows = self._rows([chunk for (chunk,) in chunks], groups).values()
        return [_hit(row, Scored(row["id"], 0.0, 0.0, 0.0)) for row in sorted(rows, key=lambda row: row["document_id"])]

    def _search(self, query: str, vector: Vector | None, reader: Reader, top_k: int) -> Found:
        groups = self.groups(reader)
        if not groups:
            return Found([], [])
        count = max(CANDIDATES_MIN, CANDIDATES_PER_HIT * top_k)
        found = self.candidates(query, vector, groups, count)
        ranked = fused(found.cosines, found.bm25, found.words, weight=self._weight, chunks=len(self._index))
        return Found(self._hits(ranked[:count], groups, top_k), found.missing)

    def candidates(self, query: str, vector: Vector | None, groups: Collection[int], count: int) -> Candidates:
        """Return the best chunks of some groups of documents by each of the two ways, `count` of each.

        Args:
            query: what is looked for.
            vector: its vector; without one, chunks are found by words alone.
            groups: only chunks of these are looked at.
            count: at most so many.
        """
        words, missing = word_query(query), list[str]()
        cosines: dict[int, float] = {}
        bm25: dict[int, float] = {}
        try:
            bm25 = self._by_words(words.expression, groups, count)
        except sqlite3.Error as error:
            log.warning("search.words_failed", error=str(error))
            missing.append(f"search by words: {error}")
        if vector is not None and self._index.dimensions not in (0, len(vector)):
            missing.append("search by meaning: the query's vector is of another model than those of the documents")
        elif vector is not None:
            cosines = dict(self._index.search(vector, groups, count))
            cosines |= self._index.cosines(vector, [chunk for chunk in bm25 if chunk not in cosines])
            if self._is_partial and self.look_for_another_model():
                missing.append(
                    "search by meaning: the embedding model has changed, and what it has not embedded yet is found by "
                    "words alone"
                )
        return Candidates(cosines, bm25, words, missing)

    def look_for_another_model(self) -> bool:
        """Tell whether there are chunks that the model has not embedded; another one has, before this process began."""
        (chunks,) = self._connection.execute("SELECT count(*) FROM knowledge_chunks").fetchone()
        self._is_partial = chunks > len(self._index)
        return self._is_partial

    def groups(self, reader: Reader) -> list[int]:
        """Return the groups of documents that a reader may see: the one filter, for words and vectors alike."""
        rows = self._connection.execute(
            "SELECT id, source, access FROM knowledge_visibility WHERE tenant=?", (reader.tenant,)
        )
        return [
            group
            for group, source, access in rows
            if (not reader.sources or source in reader.sources) and may_see(orjson.loads(access), reader.access)
        ]

    def _by_words(self, expression: str, groups: Collection[int], count: int) -> dict[int, float]:
        if not expression:
            return {}
        rows = self._connection.execute(
            # Ordered by `rank` the index itself sorts, and who may see a chunk is asked only until there are enough.
            f"""SELECT c.id, -rank FROM knowledge_words
                JOIN knowledge_chunks c ON c.id=knowledge_words.rowid JOIN knowledge_documents d ON d.id=c.document
                WHERE knowledge_words MATCH ? AND d.visibility {IN} ORDER BY rank LIMIT ?""",
            (expression, parameter(groups), count),
        )
        return dict(rows.fetchall())

    def _hits(self, ranked: Sequence[Scored], groups: Collection[int], top_k: int) -> list[pb.Hit]:
        rows = self._rows([hit.chunk for hit in ranked], groups)
        vectors = self._index.vectors(list(rows))
        taken: dict[int, list[int]] = defaultdict(list)
        hits: list[pb.Hit] = []
        for scored in ranked:
            row = rows.get(scored.chunk)
            if row is None or self._repeats(row, taken[row["document"]], rows, vectors):
                continue
            taken[row["document"]].append(scored.chunk)
            hits.append(_hit(row, scored))
            if len(hits) == top_k:
                break
        return hits

    def _repeats(
        self, row: Mapping[str, Any], others: Sequence[int], rows: Mapping[int, Mapping[str, Any]], vectors: Any
    ) -> bool:
        """Whether a chunk says what a better one of its document said already."""
        if any(rows[other]["text"] == row["text"] for other in others):
            return True
        own = vectors.get(row["id"])
        return own is not None and is_repetition([float(own @ vectors[o]) for o in others if o in vectors])

    def _rows(self, chunks: Sequence[int], groups: Collection[int]) -> dict[int, dict[str, Any]]:
        # The groups are asked for again: a document may have been closed to the reader since it was found.
        cursor = self._connection.execute(
            f"""SELECT c.id, c.document, d.document_id, d.version, c.ordinal, c.text, c.start, c."end", c.headings,
                  d.title, d.source, d.uri, d.live, d.shown_ms, c.label, d.metadata
                FROM knowledge_chunks c JOIN knowledge_documents d ON d.id=c.document
                WHERE c.id {IN} AND d.visibility {IN}""",
            (parameter(chunks), parameter(groups)),
        )
        names = [column[0] for column in cursor.description]
        return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


def may_see(labels: Collection[str], held: Collection[str]) -> bool:
    """Whether a reader who holds some labels may see what has these."""
    return not labels or any(label in held for label in labels)


def _hit(row: Mapping[str, Any], scored: Scored) -> pb.Hit:
    headings: list[str] = orjson.loads(row["headings"])
    hit = pb.Hit(
        document_id=row["document_id"],
        version=row["version"],
        ordinal=row["ordinal"],
        text=row["text"],
        start=row["start"],
        end=row["end"],
        # The first heading of most documents is their title.
        heading_path=headings[1:] if headings[:1] == [row["title"]] else headings,
        score=scored.score,
        vector_score=scored.cosine,
        text_score=scored.bm25,
        title=row["title"],
        source=row["source"],
        uri=row["uri"],
        live_json=row["live"],
        label=row["label"],
        metadata=orjson.loads(row["metadata"]),
    )
    hit.occurred_at.FromMilliseconds(row["shown_ms"])
    return hit
