"""Removes erased subjects from the knowledge base, and searches for what is left: the state of `embedder-erasure`.

Loading a batch is what erases, so that what is told of it was found afterwards, in the same transaction.
"""

import asyncio
from collections.abc import Callable, Sequence

from headwater.common.v1 import events_pb2 as common_pb2
from services.embedder.erasure import Erased, places_of
from services.embedder.ports import nothing
from services.embedder.sqlite_documents import IN, SqliteDocuments, parameter
from services.embedder.state import Key, digest_of
from services.kernel.erasure import requests_of
from services.kernel.log import DEFAULT_TENANT, Progress, Record
from services.kernel.sqlite import Database

_DOCUMENTS = f"document IN (SELECT id FROM knowledge_documents WHERE tenant=?1 AND document_id {IN.replace('?', '?2')})"
_NAMED = f"tenant=?1 AND document_id {IN.replace('?', '?2')}"
_COUNTS = {
    "documents": f"SELECT count(*) FROM knowledge_documents WHERE {_NAMED}",
    "chunks": f"SELECT count(*) FROM knowledge_chunks WHERE {_DOCUMENTS}",
    "jobs": f"SELECT count(*) FROM knowledge_jobs WHERE {_DOCUMENTS}",
    "fences": f"SELECT count(*) FROM knowledge_fences WHERE {_NAMED}",
}


class SqliteErasures:
    """What the group `embedder-erasure` loads; there is nothing left to save."""

    def __init__(self, database: Database, documents: SqliteDocuments, *, clock: Callable[[], float]) -> None:
        self._database, self._documents, self._clock = database, documents, clock
        self.forget_queries: Callable[[], None] = nothing

    async def load(self, batch: Sequence[Record]) -> dict[int, Erased]:
        """Carry out the erasures of a batch; return what was done, by offset."""
        return {
            record.offset: await self._erase(request, record.timestamp_ms) for record, request in requests_of(batch)
        }

    async def save(self, state: dict[int, Erased], progress: Progress) -> None:
        """Do nothing: all is done."""

    async def _erase(self, request: common_pb2.ErasureRequested, happened_ms: int) -> Erased:
        writer, tenant = self._database.writer, request.tenant or DEFAULT_TENANT
        records = list(request.records)
        named = (tenant, parameter(records))
        rows = writer.execute(f"SELECT id, document_id FROM knowledge_documents WHERE {_NAMED}", named).fetchall()
        before = self._count(named)
        chunks = self._chunk_ids([row_id for row_id, _ in rows])
        await self._documents.remove([row_id for row_id, _ in rows])
        writer.execute(f"DELETE FROM knowledge_fences WHERE {_NAMED}", named)
        # Deleted words stay in the index's older segments until these are merged; that may take a while.
        await asyncio.to_thread(writer.execute, "INSERT INTO knowledge_words (knowledge_words) VALUES ('optimize')")
        # Older changes may still be on their way, or be offered again: their digests keep them out.
        writer.executemany(
            """INSERT INTO knowledge_erasures VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET
                 position=iif(excluded.position='', position, excluded.position), at_ms=max(at_ms, excluded.at_ms)""",
            [(digest_of(key), *place) for key, place in places_of(request, happened_ms).items()],
        )
        self._database.unit.on_commit.append(self.forget_queries)
        remaining = self._count(named) | {"words": self._words_left(chunks)}
        keys = tuple(Key(tenant, document_id) for _, document_id in rows)
        return Erased(request, keys, before, remaining, int(self._clock() * 1000))

    def _count(self, named: tuple[str, str]) -> dict[str, int]:
        return {kind: self._database.writer.execute(sql, named).fetchone()[0] for kind, sql in _COUNTS.items()}

    def _chunk_ids(self, row_ids: Sequence[int]) -> list[int]:
        rows = self._database.writer.execute(
            f"SELECT id FROM knowledge_chunks WHERE document {IN}", (parameter(row_ids),)
        )
        return [chunk for (chunk,) in rows]

    def _words_left(self, chunks: Sequence[int]) -> int:
        """How many of the removed chunks the full-text index still knows the length of."""
        (left,) = self._database.writer.execute(
            f"SELECT count(*) FROM knowledge_words_docsize WHERE id {IN}", (parameter(chunks),)
        ).fetchone()
        return int(left)
