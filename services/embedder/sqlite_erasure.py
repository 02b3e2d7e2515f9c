"""Removes erased subjects from the knowledge base, and searches for what is left: the state of `embedder-erasure`.

Loading a batch is what erases, so that what is told of it was found afterwards, in the same transaction.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from headwater.common.v1 import events_pb2 as common_pb2
from services.embedder.events import indexed_event
from services.embedder.sqlite_documents import IN, SqliteDocuments, digest_of, parameter
from services.embedder.state import Key
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Message, Progress, Record, message_of
from services.kernel.processor import Decision, Outcome
from services.kernel.sqlite import Database

SERVICE = "embedder"
_DOCUMENTS = f"document IN (SELECT id FROM knowledge_documents WHERE tenant=?1 AND document_id {IN.replace('?', '?2')})"
_NAMED = f"tenant=?1 AND document_id {IN.replace('?', '?2')}"
_COUNTS = {
    "documents": f"SELECT count(*) FROM knowledge_documents WHERE {_NAMED}",
    "chunks": f"SELECT count(*) FROM knowledge_chunks WHERE {_DOCUMENTS}",
    "jobs": f"SELECT count(*) FROM knowledge_jobs WHERE {_DOCUMENTS}",
    "fences": f"SELECT count(*) FROM knowledge_fences WHERE {_NAMED}",
}


class Erased(NamedTuple):
    """What was done with a request.

    Attributes:
        request: the request.
        documents: those that were removed.
        removed: how many of each kind of thing were removed.
        remaining: how many a search found afterwards.
        done_ms: when, milliseconds since the epoch.
    """

    request: common_pb2.ErasureRequested
    documents: tuple[Key, ...]
    removed: dict[str, int]
    remaining: dict[str, int]
    done_ms: int


class SqliteErasures:
    """What the group `embedder-erasure` loads; there is nothing left to save."""

    def __init__(
        self,
        database: Database,
        documents: SqliteDocuments,
        *,
        clock: Callable[[], float],
        forget_queries: Callable[[], None],
    ) -> None:
        self._database, self._documents, self._clock = database, documents, clock
        self._forget_queries = forget_queries

    async def load(self, batch: Sequence[Record]) -> dict[int, Erased]:
        """Carry out the erasures of a batch; return what was done, by offset."""
        done: dict[int, Erased] = {}
        for record in batch:
            try:
                request = common_pb2.ErasureRequested.FromString(record.value or b"")
            except DecodeError:
                continue
            done[record.offset] = await self._erase(request, record.timestamp_ms)
        return done

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
        asked_ms = request.requested_at.ToMilliseconds() or happened_ms
        positions = list(request.positions) + [""] * (len(records) - len(request.positions))
        writer.executemany(
            """INSERT INTO knowledge_erasures VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET
                 position=iif(excluded.position='', position, excluded.position), at_ms=max(at_ms, excluded.at_ms)""",
            [(digest_of(Key(tenant, name)), place, asked_ms) for name, place in zip(records, positions, strict=True)],
        )
        self._database.unit.on_commit.append(self._forget_queries)
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


def decide(state: dict[int, Erased], record: Record, *, model_id: str) -> Decision:
    """Tell the world what an erasure did."""
    erased = state.get(record.offset)
    if erased is None:
        raise InvalidInputError(f"{record.topic}/{record.partition}/{record.offset} is not a {record.type}")
    outputs: list[Message] = [
        indexed_event(*key, "", chunks=0, embedded=0, model_id=model_id, occurred_ms=record.timestamp_ms)
        for key in erased.documents
    ]
    answer = common_pb2.ErasureDone(
        erasure_id=erased.request.erasure_id, service=SERVICE, removed=erased.removed, remaining=erased.remaining
    )
    answer.done_at.FromMilliseconds(erased.done_ms)
    outputs.append(message_of(topics.ERASURES_DONE, record.key or b"", answer, erased.done_ms))
    return Decision(Outcome.APPLIED, outputs)
