"""The knowledge base as a whole, in the installation's SQLite database: texts, state hash, checks."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import orjson

from headwater.common.v1 import common_pb2, operations_pb2
from services.embedder.knowledge import READ_BY
from services.embedder.ports import Whole
from services.embedder.schema import DERIVED
from services.embedder.sqlite_chunks import SqliteChunks
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.state import Key
from services.embedder.vectors import VectorIndex
from services.kernel.hashing import state_hash
from services.kernel.log import Log
from services.kernel.sqlite import Database


class SqliteKnowledge:
    """Implements `KnowledgeStore`."""

    def __init__(
        self,
        database: Database,
        log: Log,
        documents: SqliteDocuments,
        chunks: SqliteChunks,
        index: VectorIndex,
        *,
        model_id: str,
    ) -> None:
        self._database, self._log, self._documents, self._chunks = database, log, documents, chunks
        self._index, self._model_id = index, model_id

    async def whole(self, key: Key) -> Whole | None:
        """Return a document; None when there is none."""
        row = self._database.reader.execute(
            """SELECT d.version, d.title, d.text, d.uri, v.access FROM knowledge_documents d
               JOIN knowledge_visibility v ON v.id=d.visibility WHERE d.tenant=? AND d.document_id=?""",
            key,
        ).fetchone()
        return Whole(row[0], row[1], row[2], row[3], orjson.loads(row[4])) if row else None

    async def report(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what has been taken in; documents whose work is not done count as if it was."""
        return await self._documents.freshness.report(tenant, self._log, READ_BY)

    async def reset(self) -> None:
        """Forget everything that the log tells again; vectors stay, they are named by what they are of."""
        writer, unit = self._database.writer, self._database.unit
        for table in DERIVED:
            writer.execute(f"DELETE FROM {table}")
        self._documents.freshness.reset()
        self._documents.forget_visibilities()
        unit.on_commit.append(self._index.clear)

    async def reload(self) -> None:
        """Clear up after a rebuild: vectors of what the log does not hold any more go."""
        await self._chunks.sweep()

    async def state_hash(self, snapshot: object) -> str:
        """Return the hash of all documents, and of their chunks; not of when or how often they were embedded."""
        assert isinstance(snapshot, sqlite3.Connection)  # noqa: S101 - of this database
        return await state_hash(_state(snapshot))

    async def checks(self) -> list[operations_pb2.Check]:
        """Check that every document has the chunks that its census says, each with words and a vector.

        A chunk may lack its vector only while the model, which is another one than before, has its document to do.
        """
        with self._database.snapshot() as connection:
            (short,) = connection.execute(
                """SELECT count(*) FROM knowledge_documents d WHERE chunks <> (
                     SELECT count(*) FROM knowledge_chunks c WHERE c.document=d.id)"""
            ).fetchone()
            (chunks,) = connection.execute("SELECT count(*) FROM knowledge_chunks").fetchone()
            (words,) = connection.execute("SELECT count(*) FROM knowledge_words_docsize").fetchone()
            lacking, bare = connection.execute(
                """SELECT count(*), total(NOT EXISTS (SELECT 1 FROM knowledge_jobs j WHERE j.document=c.document))
                   FROM knowledge_chunks c WHERE NOT EXISTS (
                     SELECT 1 FROM knowledge_embeddings e WHERE e.hash=c.hash AND e.model_id=?)""",
                (self._model_id,),
            ).fetchone()
            cached = len(self._index)
        ok = short == bare == 0 and chunks == words == cached + lacking
        detail = (
            f"{chunks} chunks, {words} in the text index, {cached} in the vector index, {bare:.0f} without a vector"
        )
        detail += f", {short} documents incomplete"
        if lacking:
            detail += f", {lacking} still to be embedded by another model than before"
        return [operations_pb2.Check(name="census knowledge", ok=ok, detail=detail)]


def _state(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    documents = """SELECT d.id, d.tenant, d.document_id, d.source, d.entity, d.position, d.occurred_ms, d.wanted,
        d.version, d.name, d.uri, d.metadata, d.live, d.access, v.access, d.shown_ms, d."row", d.known_at, d.chunks,
        d.title, d.text FROM knowledge_documents d JOIN knowledge_visibility v ON v.id=d.visibility"""
    chunks = """SELECT ordinal, start, "end", text, context, headings, label, hash FROM knowledge_chunks
        WHERE document=? ORDER BY ordinal"""
    for row_id, *fields in connection.execute(documents):
        yield (*fields, tuple(connection.execute(chunks, (row_id,))))
