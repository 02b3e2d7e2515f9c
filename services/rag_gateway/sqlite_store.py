"""Conversations in the installation's database: the table gateway_turns."""

import sqlite3
from collections.abc import Iterable, Sequence

import orjson

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel.erasure import requests_of
from services.kernel.hashing import state_hash
from services.kernel.log import DEFAULT_TENANT, Progress, Record
from services.kernel.service import Platform
from services.kernel.sqlite import Database
from services.rag_gateway.conversations import (
    TURNS_GROUP,
    Erased,
    Erasures,
    TurnRow,
    Turns,
    decoded,
    digest_of,
    drawing_on,
)
from services.rag_gateway.pending import pending_turns

SCHEMA = (
    """CREATE TABLE gateway_turns (
         tenant TEXT, conversation_id TEXT, asked_ms INTEGER, answer_id TEXT, profile_id TEXT NOT NULL,
         asked_as TEXT NOT NULL, content BLOB NOT NULL,
         PRIMARY KEY (tenant, conversation_id, asked_ms, answer_id)) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX gateway_answers ON gateway_turns (tenant, answer_id)",
    """CREATE TABLE gateway_subjects (
         tenant TEXT, subject TEXT, answer_id TEXT, PRIMARY KEY (tenant, subject, answer_id)) WITHOUT ROWID""",
    # Digests only: nothing of an erased answer can be read from them. A rebuild keeps them.
    "CREATE TABLE gateway_erased (digest TEXT PRIMARY KEY) WITHOUT ROWID",
)
_IN = "IN (SELECT value FROM json_each(?))"


class SqliteTurns:
    """The state of gateway-turns, and the queries."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("rag_gateway", SCHEMA)

    async def load(self, batch: Sequence[Record]) -> Turns:
        """Find which answers of a batch are known already, or were erased."""
        keys = [(row.tenant, row.answer_id) for row in decoded(batch)]
        writer = self._database.writer
        known = writer.execute(
            f"SELECT tenant, answer_id FROM gateway_turns WHERE answer_id {_IN}", (_texts(a for _, a in keys),)
        )
        erased = writer.execute(
            f"SELECT digest FROM gateway_erased WHERE digest {_IN}", (_texts(digest_of(*key) for key in keys),)
        )
        return Turns(known=set(known.fetchall()), erased={digest for (digest,) in erased})

    async def save(self, state: Turns, progress: Progress) -> None:
        """Store the new turns, in the open unit of work."""
        del progress
        insert(self._database.writer, state.new.values())

    async def turns(
        self, tenant: str, conversation_id: str, *, last: int | None = None
    ) -> list[events_pb2.TurnCompleted]:
        """The turns of a conversation, oldest first; only the last few where `last` is given."""
        rows = self._database.reader.execute(
            """SELECT content FROM gateway_turns WHERE tenant=? AND conversation_id=?
               ORDER BY asked_ms DESC, answer_id DESC LIMIT ?""",
            (tenant or DEFAULT_TENANT, conversation_id, -1 if last is None else last),
        ).fetchall()
        return [events_pb2.TurnCompleted.FromString(content) for (content,) in reversed(rows)]

    async def reset(self) -> None:
        """Empty the tables, in the open unit of work."""
        for table in ("gateway_turns", "gateway_subjects"):
            self._database.unit.execute(f"DELETE FROM {table}")

    async def state_hash(self, snapshot: sqlite3.Connection) -> str:
        """The hash of all turns."""
        return await state_hash(
            snapshot.execute("SELECT tenant, conversation_id, asked_ms, answer_id, content FROM gateway_turns")
        )


def insert(writer: sqlite3.Connection, rows: Iterable[TurnRow]) -> None:
    """Store turns; those that are there already stay as they are."""
    rows = list(rows)
    writer.executemany(
        "INSERT OR IGNORE INTO gateway_turns VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(r.tenant, r.conversation_id, r.asked_ms, r.answer_id, r.profile_id, r.asked_as, r.content) for r in rows],
    )
    writer.executemany(
        "INSERT OR IGNORE INTO gateway_subjects VALUES (?, ?, ?)",
        [(row.tenant, subject, row.answer_id) for row in rows for subject in row.subjects],
    )


class SqliteErasures:
    """The state of gateway-erasure. Loading a batch is what erases, so that what is told of it was found afterwards."""

    def __init__(self, platform: Platform) -> None:
        self._log, self._database, self._clock = platform.log, platform.database, platform.clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch, in the open unit of work."""
        return Erasures({record.offset: await self._erase(request) for record, request in requests_of(batch)})

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Do nothing: all is done."""

    async def _erase(self, request: common_pb2.ErasureRequested) -> Erased:
        tenant = request.tenant or DEFAULT_TENANT
        # What the log holds and the table does not yet: it must go as well, and not come in afterwards.
        pending = await pending_turns(self._log, tenant, await self._log.committed(TURNS_GROUP))
        erased = self._erased(tenant, pending)  # those tell nothing any more, as if they had been stored and removed
        pending = [row for row in pending if digest_of(tenant, row.answer_id) not in erased]
        names, gone = drawing_on(pending, request, self._names_of(tenant, request))
        gone |= self._stored(tenant, request) | self._anonymous(tenant, names)
        removed = self._count(tenant, gone)
        conversations = self._conversations(tenant, gone, pending)
        writer = self._database.writer
        writer.executemany(
            "INSERT OR IGNORE INTO gateway_erased VALUES (?)", [(digest_of(tenant, answer),) for answer in gone]
        )
        for table in ("gateway_turns", "gateway_subjects"):
            writer.execute(f"DELETE FROM {table} WHERE tenant=? AND answer_id {_IN}", (tenant, _texts(gone)))
        remaining = len(self._stored(tenant, request)) + self._count(tenant, gone)
        return Erased(
            request=request,
            removed={"turns": removed},
            remaining={"turns": remaining},
            related=tuple(sorted(gone | conversations)),
            done_ms=int(self._clock() * 1000),
        )

    def _erased(self, tenant: str, rows: Sequence[TurnRow]) -> set[str]:
        """The digests of the turns that were erased already."""
        found = self._database.writer.execute(
            f"SELECT digest FROM gateway_erased WHERE digest {_IN}",
            (_texts(digest_of(tenant, row.answer_id) for row in rows),),
        )
        return {digest for (digest,) in found}

    def _stored(self, tenant: str, request: common_pb2.ErasureRequested) -> set[str]:
        """The stored answers that draw on the subject."""
        rows = self._database.writer.execute(
            f"SELECT DISTINCT answer_id FROM gateway_subjects WHERE tenant=? AND subject {_IN}",
            (tenant, _texts([*request.profile_ids, *request.records])),
        )
        return {answer for (answer,) in rows}

    def _names_of(self, tenant: str, request: common_pb2.ErasureRequested) -> set[str]:
        """The identifiers under which the subject asked."""
        rows = self._database.writer.execute(
            f"SELECT DISTINCT asked_as FROM gateway_turns WHERE tenant=? AND asked_as<>'' AND profile_id {_IN}",
            (tenant, _texts(request.profile_ids)),
        )
        return {name for (name,) in rows}

    def _anonymous(self, tenant: str, names: set[str]) -> set[str]:
        """Answers given under the subject's identifiers while the profile could not be had."""
        rows = self._database.writer.execute(
            f"SELECT answer_id FROM gateway_turns WHERE tenant=? AND profile_id='' AND asked_as {_IN}",
            (tenant, _texts(names)),
        )
        return {answer for (answer,) in rows}

    def _conversations(self, tenant: str, gone: set[str], pending: Sequence[TurnRow]) -> set[str]:
        """The conversations of which nothing stays."""
        rows = self._database.writer.execute(
            f"""SELECT DISTINCT conversation_id FROM gateway_turns WHERE tenant=? AND answer_id {_IN}""",
            (tenant, _texts(gone)),
        )
        touched = {conversation for (conversation,) in rows}
        touched |= {row.conversation_id for row in pending if row.answer_id in gone}
        kept = self._database.writer.execute(
            f"""SELECT DISTINCT conversation_id FROM gateway_turns
                WHERE tenant=? AND conversation_id {_IN} AND answer_id NOT {_IN}""",
            (tenant, _texts(touched), _texts(gone)),
        )
        staying = {row.conversation_id for row in pending if row.answer_id not in gone}
        return touched - {conversation for (conversation,) in kept} - staying - {""}

    def _count(self, tenant: str, answers: set[str]) -> int:
        row = self._database.writer.execute(
            f"SELECT count(*) FROM gateway_turns WHERE tenant=? AND answer_id {_IN}", (tenant, _texts(answers))
        ).fetchone()
        return int(row[0])


def _texts(values: Iterable[str]) -> str:
    return orjson.dumps(list(values)).decode()
