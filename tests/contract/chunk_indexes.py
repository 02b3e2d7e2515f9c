"""Indexes of chunks for tests: how the embedded one is filled without a service, and chunks to fill them with."""

import hashlib
import time
from collections.abc import Mapping, Sequence

import orjson

from services.embedder.decider import Decider
from services.embedder.index import Candidate, Candidates, IndexedChunk, Reader, Shown, Visibility
from services.embedder.ports import Vector
from services.embedder.query import WordQuery
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.state import Key
from services.embedder.vectors import Entry, VectorIndex
from services.kernel.sqlite import Database
from tests.unit.embedder.examples import HashModel

MODEL = HashModel()
TITLE = "Title"


def chunk(ordinal: int, text: str, vector: Vector | bytes | None = None, **fields: object) -> IndexedChunk:
    """A chunk with the vector of its text, or another one."""
    made = MODEL.embed(text) if vector is None else vector
    data = made if isinstance(made, bytes) else made.tobytes()
    hash_ = hashlib.sha256(text.encode()).digest()[:16]
    whole = IndexedChunk(ordinal, 0, len(text), text, TITLE, (TITLE, "Part"), f"page {ordinal}", hash_, data)
    return whole._replace(**fields)  # type: ignore[arg-type]


class EmbeddedIndex:
    """The embedded index, filled as the service does it; it has one version of a document at a time."""

    def __init__(self, database: Database, dimensions: int = MODEL.dimensions) -> None:
        self._database, self._vectors, self.dimensions = database, VectorIndex(dimensions), dimensions
        self._documents = SqliteDocuments(
            database, self._vectors, Decider({}, MODEL.model_id), provider=MODEL.model_id, clock=time.time
        )
        self.store = SqliteSearch(database, self._vectors)

    async def put(self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]) -> None:
        async with self._database.transaction() as unit:
            number = self._documents.visibility(key.tenant, *visibility)
            (row_id,) = unit.execute(
                """INSERT INTO knowledge_documents (tenant, document_id, source, entity, partition, position,
                     occurred_ms, wanted, version, name, uri, metadata, live, access, visibility, shown_ms, "row",
                     known_at, chunks, title)
                   VALUES (?1, ?2, ?3, '', -1, '', 0, ?4, ?4, '', '', '{}', '', '[]', ?5, 0, '', '', ?6, ?7)
                   RETURNING id""",
                (*key, visibility.source, version, number, len(chunks), TITLE),
            ).fetchone()
            unit.executemany(
                """INSERT INTO knowledge_chunks (document, ordinal, start, "end", text, context, headings, label, hash)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                [(row_id, *each[:5], orjson.dumps(each.headings).decode(), each.label, each.hash) for each in chunks],
            )
            rows = unit.execute(
                "SELECT id FROM knowledge_chunks WHERE document=? ORDER BY ordinal", (row_id,)
            ).fetchall()
        entries = [Entry(row, number, each.vector) for (row,), each in zip(rows, chunks, strict=True)]
        self._vectors.put(entries)

    async def remove(self, key: Key) -> None:
        async with self._database.transaction() as unit:
            rows = unit.execute("SELECT id FROM knowledge_documents WHERE tenant=? AND document_id=?", key).fetchall()
            await self._documents.remove([row_id for (row_id,) in rows])

    async def search(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        return await self.store.search(words, vector, reader, count)

    async def openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        return await self.store.openings(versions)

    async def shown(self, keys: Sequence[Key]) -> dict[Key, Shown]:
        return await self.store.shown(keys)

    async def close(self) -> None:
        self.store.close()
