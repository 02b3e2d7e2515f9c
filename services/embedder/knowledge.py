"""What the service answers about the knowledge base as a whole: documents, freshness, state hash, checks."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import orjson

from headwater.common.v1 import common_pb2, operations_pb2
from headwater.embedder.v1 import service_pb2 as pb
from services.embedder.schema import DERIVED
from services.embedder.search import may_see
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_jobs import GROUP, SqliteJobs
from services.embedder.state import Key
from services.embedder.vectors import VectorIndex
from services.kernel import topics
from services.kernel.errors import NotFoundError
from services.kernel.hashing import state_hash
from services.kernel.log import DEFAULT_TENANT, Log
from services.kernel.sqlite import Database

READ_BY = {GROUP: (topics.DOCUMENTS, topics.CHANGES)}


class Knowledge:
    """Reads of the knowledge base, and what a rebuild needs."""

    def __init__(
        self,
        database: Database,
        log: Log,
        documents: SqliteDocuments,
        jobs: SqliteJobs,
        index: VectorIndex,
        *,
        model_id: str,
    ) -> None:
        self._database, self._log, self._documents, self._jobs = database, log, documents, jobs
        self._index, self._model_id = index, model_id

    def document(self, key: Key, version: str, held: frozenset[str]) -> pb.GetDocumentResponse:
        """Return a document's text.

        Raises:
            NotFoundError: there is none, it cannot be found yet, it has another version, or the reader may not see it.
        """
        row = self._database.reader.execute(
            """SELECT d.version, d.title, d.text, d.uri, v.access FROM knowledge_documents d
               JOIN knowledge_visibility v ON v.id=d.visibility WHERE d.tenant=? AND d.document_id=?""",
            key,
        ).fetchone()
        # To a reader who may not see it, it is not there.
        if row is None or not may_see(orjson.loads(row[4]), held):
            raise NotFoundError(f"there is no document {key.document_id!r} in tenant {key.tenant}: check its id")
        current, title, text, uri, _ = row
        if not current:
            raise NotFoundError(f"{key.document_id!r} is not searchable yet: ListJobs tells how far it is")
        if version not in ("", current):
            raise NotFoundError(f"{key.document_id!r} has version {current} now; {version} is not kept")
        return pb.GetDocumentResponse(document_id=key.document_id, version=current, title=title, text=text, uri=uri)

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what can be found is current to: documents whose work is not done hold it back."""
        report = await self._documents.freshness.report(tenant, self._log, READ_BY)
        waiting = self._jobs.unfinished_count()
        if not waiting:
            return report
        report.behind += waiting
        for place in report.applied.offsets:
            if (first := self._jobs.first_unfinished(place.topic, place.partition)) is not None:
                place.offset = min(place.offset, first)
        for entry in report.sources:
            since_ms = self._jobs.unfinished_since_ms(tenant, entry.source)
            if since_ms is not None and entry.as_of.ToMilliseconds() >= since_ms:
                entry.as_of.FromMilliseconds(max(0, since_ms - 1))
        return report

    async def applied(self) -> common_pb2.Position:
        """Return the position up to which everything can be found, or was given up."""
        return (await self.freshness(DEFAULT_TENANT)).applied

    async def reset(self) -> None:
        """Forget everything that the log tells again; vectors stay, they are named by what they are of."""
        writer, unit = self._database.writer, self._database.unit
        for table in DERIVED:
            writer.execute(f"DELETE FROM {table}")
        self._documents.freshness.reset()
        self._documents.forget_visibilities()
        unit.on_commit.append(self._index.clear)

    async def state_hash(self, connection: sqlite3.Connection) -> str:
        """Return the hash of all documents, and of their chunks; not of when or how often they were embedded."""
        return await state_hash(_state(connection))

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
