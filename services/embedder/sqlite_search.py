"""The answering side of the embedded index: chunks and words in SQLite, vectors in memory; in a thread of its own."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import orjson
import structlog

from services.embedder.index import Candidate, Candidates, Reader, Shown
from services.embedder.ports import Vector
from services.embedder.query import WordQuery
from services.embedder.sqlite_documents import IN, parameter
from services.embedder.state import Key
from services.embedder.vectors import VectorIndex, cosines
from services.kernel.sqlite import Database

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class SqliteSearch:
    """Implements `ChunkSearch` and `ShownDocuments`; a large index holds up nothing else."""

    def __init__(self, database: Database, index: VectorIndex) -> None:
        """Open a connection that only reads.

        Args:
            database: the installation's database.
            index: the vectors.
        """
        self._index = index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._connection = sqlite3.connect(
            f"{database.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA query_only=ON")
        self._is_partial = False

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    def look_for_another_model(self) -> bool:
        """Tell whether there are chunks that the model has not embedded; another one has, before this process began."""
        self._is_partial = self._total() > len(self._index)
        return self._is_partial

    async def search(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        """Return the best chunks that a reader may find: `count` by meaning and `count` by words."""
        return await self._in_thread(self.candidates, words, vector, reader, count)

    async def openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        """Return the first chunk of documents, each of a version, without scores; those that have none are left out."""
        return await self._in_thread(self._openings, versions)

    async def shown(self, keys: Collection[Key]) -> dict[Key, Shown]:
        """Return what is known of documents now; those that are not there are left out."""
        return await self._in_thread(self._shown, keys)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

    def candidates(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        """Do the work of `search` in this thread."""
        groups, missing = self.groups(reader), list[str]()
        near: list[tuple[int, float]] = []
        bm25: dict[int, float] = {}
        by_vectors = vector is not None and self._index.dimensions in (0, len(vector))
        if vector is not None and by_vectors:
            near = self._index.search(vector, groups, count)
            if self._is_partial and self.look_for_another_model():
                missing.append(
                    "search by meaning: the embedding model has changed, and what it has not embedded yet is found by "
                    "words alone"
                )
        elif vector is not None:
            missing.append("search by meaning: the query's vector is of another model than those of the documents")
        try:
            bm25 = self._by_words(words.expression, groups, count)
        except sqlite3.Error as error:
            log.warning("search.words_failed", error=str(error))
            missing.append(f"search by words: {error}")
        rest = min(bm25.values()) if len(bm25) == count else 0.0
        bm25 |= self._scored(words.expression, [chunk for chunk, _ in near if chunk not in bm25] if bm25 else [])
        chunks = list(dict.fromkeys((*(chunk for chunk, _ in near), *bm25)))
        return Candidates(
            self._chunks(chunks, bm25, vector if by_vectors else None),
            cosine_rest=near[-1][1] if len(near) == count else -1.0,
            bm25_rest=rest,
            total=self._total(),
            missing=missing,
            by_vectors=bool(near),
        )

    def groups(self, reader: Reader) -> list[int]:
        """Return the groups of documents that a reader may see: the one filter, for words and vectors alike."""
        rows = self._connection.execute(
            "SELECT id, source, access FROM knowledge_visibility WHERE tenant=?", (reader.tenant,)
        )
        return [group for group, source, access in rows if reader.may_see(source, orjson.loads(access))]

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

    def _scored(self, expression: str, chunks: Sequence[int]) -> dict[int, float]:
        """Return the scores of those of some chunks that hold a word of the query."""
        if not chunks:
            return {}
        rows = self._connection.execute(
            # The plus keeps SQLite from asking the index anew for every chunk.
            f"SELECT rowid, -rank FROM knowledge_words WHERE knowledge_words MATCH ? AND +rowid {IN}",
            (expression, parameter(chunks)),
        )
        return dict(rows.fetchall())

    def _total(self) -> int:
        (chunks,) = self._connection.execute("SELECT count(*) FROM knowledge_chunks").fetchone()
        return int(chunks)

    def _chunks(
        self, chunks: Sequence[int], bm25: Mapping[int, float], vector: Vector | None = None
    ) -> list[Candidate]:
        vectors = self._index.vectors(chunks)
        near = {} if vector is None else dict(zip(vectors, cosines(vector, list(vectors.values())), strict=True))
        rows = self._connection.execute(
            f"""SELECT c.id, d.tenant, d.document_id, d.version, c.ordinal, c.start, c."end", c.text, c.headings,
                  c.label FROM knowledge_chunks c JOIN knowledge_documents d ON d.id=c.document WHERE c.id {IN}""",
            (parameter(chunks),),
        )
        return [
            Candidate(
                Key(tenant, document_id), version, ordinal, start, end, text, tuple(orjson.loads(headings)), label,
                near.get(chunk, 0.0), bm25.get(chunk, 0.0), vectors.get(chunk),
            )
            for chunk, tenant, document_id, version, ordinal, start, end, text, headings, label in rows
        ]  # fmt: skip

    def _openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        rows = self._connection.execute(
            f"SELECT c.id {_BY_KEY} JOIN knowledge_chunks c ON c.document=d.id AND c.ordinal=0", (_names(versions),)
        )
        found = self._chunks([chunk for (chunk,) in rows.fetchall()], {})
        return {chunk.key: chunk for chunk in found if versions[chunk.key] == chunk.version}

    def _shown(self, keys: Iterable[Key]) -> dict[Key, Shown]:
        rows = self._connection.execute(
            f"""SELECT d.tenant, d.document_id, d.version, v.source, v.access, d.title, d.uri, d.metadata, d.live,
                  d.shown_ms {_BY_KEY} JOIN knowledge_visibility v ON v.id=d.visibility""",
            (_names(keys),),
        )
        return {
            Key(tenant, document_id): Shown(version, source, tuple(orjson.loads(access)), *rest)
            for tenant, document_id, version, source, access, *rest in rows
        }


_BY_KEY = """FROM json_each(?) k
  CROSS JOIN knowledge_documents d ON d.tenant=k.value->>0 AND d.document_id=k.value->>1"""


def _names(keys: Iterable[Key]) -> str:
    return parameter(list(key) for key in keys)
