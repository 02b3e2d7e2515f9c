"""The state of erasures in SQLite: requests and the services' acknowledgements."""

import sqlite3

from headwater.common.v1 import events_pb2
from services.identity_graph.ports import ErasureState
from services.kernel.sqlite import Database

SCHEMA = (
    "CREATE TABLE identity_erasures (id TEXT PRIMARY KEY, requested_ms INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE identity_erasure_answers (
         erasure TEXT, service TEXT, answer BLOB NOT NULL, PRIMARY KEY (erasure, service)) WITHOUT ROWID""",
)


class SqliteErasures:
    """See `ports.ErasureStore`."""

    def __init__(self, database: Database) -> None:
        database.migrate("identity_erasures", SCHEMA)
        self._database = database

    async def note_request(self, request: events_pb2.ErasureRequested) -> None:
        """Keep that an erasure was asked for, within the open unit of work."""
        self._database.writer.execute(
            "INSERT OR IGNORE INTO identity_erasures VALUES (?, ?)",
            (request.erasure_id, request.requested_at.ToMilliseconds()),
        )

    async def note_answer(self, answer: events_pb2.ErasureDone) -> None:
        """Keep an acknowledgement, within the open unit of work; the newest of a service stands."""
        self._database.writer.execute(
            "INSERT INTO identity_erasure_answers VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET answer=excluded.answer",
            (answer.erasure_id, answer.service, answer.SerializeToString(deterministic=True)),
        )

    async def state(self, erasure_id: str) -> ErasureState | None:
        """Return what is known of an erasure."""
        reader: sqlite3.Connection = self._database.reader
        row = reader.execute("SELECT requested_ms FROM identity_erasures WHERE id=?", (erasure_id,)).fetchone()
        if row is None:
            return None
        answers = reader.execute(
            "SELECT answer FROM identity_erasure_answers WHERE erasure=? ORDER BY service", (erasure_id,)
        )
        return ErasureState(row[0], tuple(events_pb2.ErasureDone.FromString(answer) for (answer,) in answers))

    async def reset(self) -> None:
        """Forget everything, within the open unit of work."""
        self._database.writer.execute("DELETE FROM identity_erasures")
        self._database.writer.execute("DELETE FROM identity_erasure_answers")
