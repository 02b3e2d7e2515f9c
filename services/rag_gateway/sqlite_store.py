"""Conversations in the installation's database: the table gateway_turns."""

from collections.abc import Callable, Iterable, Sequence
import sqlite3

import orjson

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.hashing import state_hash
from services.kernel.log import DEFAULT_TENANT, Progress, Record
from services.kernel.service import Platform
from services.kernel.sqlite import Database
from services.rag_gateway.conversations import (
    TURN_TYPE,
    TURNS_GROUP,
    Erased,
    Erasures,
    TurnRow,
    Turns,
    digest_of,
    row_of,
)

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
        """Find which answers of a batch are known already."""
        del batch  # every answer is new but after a replay; the save ignores what is there, so only digests matter
        erased = {row[0] for row in self._database.writer.execute("SELECT digest FROM gateway_erased")}
        return Turns(known=set(), erased=erased)

    async def save(self, state: Turns, progress: Progress) -> None:
        """Store the new turns, in the open unit of work."""
        del progress
        insert(self._database.writer, state.new.values())

    def turns(self, tenant: str, conversation_id: str, *, last: int | None = None) -> list[events_pb2.TurnCompleted]:
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

    @staticmethod
    async def state_hash(snapshot: sqlite3.Connection) -> str:
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
