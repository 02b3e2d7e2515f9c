"""The profile stores in the installation's SQLite database: their tables, queries, and what a rebuild needs."""

import itertools
import sqlite3
from collections.abc import Sequence

from headwater.common.v1 import common_pb2
from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.freshness import FreshnessTable
from services.kernel.hashing import state_hash
from services.kernel.log import SEPARATOR, Ledger, Message, Record, key_of
from services.kernel.service import Platform
from services.kernel.sqlite import Transaction
from services.profile.documents import PROFILE_TYPE, Stored, digest, with_version
from services.profile.ports import FOLD_GROUP, ROWS_GROUP, Fold
from services.profile.sqlite_documents import SqliteDocuments, identifier_key
from services.profile.sqlite_erasure import SqliteErasures
from services.profile.sqlite_rows import SqliteRows, texts

COMPONENT = "profile"
READ_BY = {ROWS_GROUP: (topics.CHANGES, topics.ASSIGNMENTS), FOLD_GROUP: (topics.TOUCHED,)}

SCHEMA = (
    """CREATE TABLE profile_rows (
         key TEXT PRIMARY KEY, profile TEXT, generation INTEGER NOT NULL DEFAULT -1,
         identifiers TEXT NOT NULL DEFAULT '[]', suspect INTEGER NOT NULL DEFAULT 0,
         source TEXT NOT NULL DEFAULT '', entity TEXT NOT NULL DEFAULT '', partition INTEGER NOT NULL DEFAULT -1,
         position TEXT, occurred_us INTEGER NOT NULL DEFAULT 0, known_at TEXT, body TEXT)""",
    "CREATE INDEX profile_rows_by_profile ON profile_rows (profile) WHERE profile IS NOT NULL",
    """CREATE TABLE profile_truncations (
         partition INTEGER, tenant TEXT, source TEXT, entity TEXT, position TEXT NOT NULL,
         PRIMARY KEY (partition, tenant, source, entity)) WITHOUT ROWID""",
    """CREATE TABLE profile_documents (
         key TEXT PRIMARY KEY, version INTEGER NOT NULL, folded_to INTEGER NOT NULL, identifiers TEXT NOT NULL,
         content BLOB NOT NULL)""",
    """CREATE TABLE profile_identifiers (
         profile TEXT, identifier TEXT, PRIMARY KEY (profile, identifier)) WITHOUT ROWID""",
    "CREATE INDEX profile_identifiers_by_identifier ON profile_identifiers (identifier)",
    """CREATE TABLE profile_seeds (
         key TEXT PRIMARY KEY, version INTEGER NOT NULL, digest TEXT NOT NULL,
         happened_ms INTEGER NOT NULL)""",
    "CREATE TABLE profile_erasures (digest TEXT PRIMARY KEY, erased_ms INTEGER NOT NULL) WITHOUT ROWID",
)
_TABLES = ("profile_rows", "profile_truncations", "profile_documents", "profile_identifiers", "profile_seeds")
_PUBLISHED_PER_UNIT = 500


class SqliteReader:
    """Committed reads; see `ports.ProfileReader`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def document(self, tenant: str, profile_id: str) -> Stored | None:
        """Return a document."""
        row = self._connection.execute(
            "SELECT version, content, identifiers, folded_to FROM profile_documents WHERE key=?",
            (key_of(tenant, profile_id).decode(),),
        ).fetchone()
        return Stored(*row) if row else None

    async def profiles_of(self, tenant: str, kind: str, values: Sequence[str]) -> list[str]:
        """Return the ids of the profiles that have an identifier."""
        names = texts(identifier_key(tenant, kind, value) for value in values)
        rows = self._connection.execute(
            """SELECT DISTINCT profile FROM profile_identifiers
               WHERE identifier IN (SELECT value FROM json_each(?)) ORDER BY profile""",
            (names,),
        )
        return [profile.partition(SEPARATOR)[2] for (profile,) in rows]

    async def profile_of_record(self, tenant: str, record: str) -> str | None:
        """Return the id of the profile that a record is assigned to."""
        row = self._connection.execute(
            "SELECT profile FROM profile_rows WHERE key=? AND profile IS NOT NULL", (key_of(tenant, record).decode(),)
        ).fetchone()
        return row[0].partition(SEPARATOR)[2] if row else None


class SqliteStores:
    """All of the service's stores; see `ports.ProfileStores`."""

    def __init__(self, platform: Platform, fold: Fold) -> None:
        self._log, self._database = platform.log, platform.database
        self._database.migrate(COMPONENT, SCHEMA)
        self._freshness = FreshnessTable(self._database, COMPONENT)
        self.rows = SqliteRows(self._database, self._freshness)
        self.documents = SqliteDocuments(self._log, self._database, fold)
        self.erasures = SqliteErasures(self._log, self._database, platform.clock)
        self.ledger: Ledger | None = None
        self.reader = SqliteReader(self._database.reader)

    async def start(self) -> None:
        """Do nothing: the database is there."""

    async def stop(self) -> None:
        """Do nothing: the database is the installation's."""

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what the documents of a tenant are current to."""
        return await self._freshness.report(tenant, self._log, READ_BY)

    async def reset(self) -> None:
        """Forget rows and documents; what was erased stays fenced off."""
        for table in _TABLES:
            self._database.writer.execute(f"DELETE FROM {table}")
        self._freshness.reset()

    async def seed(self, records: Sequence[Record]) -> None:
        """Remember what had been published, so that equal documents get their versions back."""
        writer = self._database.writer
        for record in records:
            key = (record.key or b"").decode()
            if record.value is None:
                writer.execute("DELETE FROM profile_seeds WHERE key=?", (key,))
                continue
            profile = events_pb2.Profile.FromString(record.value)
            version = profile.version
            profile.ClearField("version")
            content = profile.SerializeToString(deterministic=True)
            writer.execute(
                "INSERT OR REPLACE INTO profile_seeds VALUES (?, ?, ?, ?)",
                (key, version, digest(content), record.timestamp_ms),
            )

    async def reload(self) -> None:
        """Publish what came out otherwise than it had been published (the rules were changed), and forget the seeds."""
        while True:
            async with self._database.transaction() as unit:
                messages = self._unpublished(unit)
                if not messages:
                    unit.execute("DELETE FROM profile_seeds")
                    return
                unit.emit(messages)

    def _unpublished(self, unit: Transaction) -> list[Message]:
        """Take some documents that are not what their seeds say, and make the seeds say so."""
        changed = unit.execute(
            """SELECT key, d.version, content FROM profile_documents d LEFT JOIN profile_seeds s USING (key)
               WHERE s.version IS NOT d.version LIMIT ?""",
            (_PUBLISHED_PER_UNIT,),
        ).fetchall()
        gone = unit.execute(
            "SELECT key, happened_ms FROM profile_seeds WHERE key NOT IN (SELECT key FROM profile_documents) LIMIT ?",
            (_PUBLISHED_PER_UNIT,),
        ).fetchall()
        unit.executemany(
            "INSERT OR REPLACE INTO profile_seeds VALUES (?, ?, '', 0)", [(key, version) for key, version, _ in changed]
        )
        unit.executemany("DELETE FROM profile_seeds WHERE key=?", [(key,) for key, _ in gone])
        return [
            Message(topics.PROFILES, key.encode(), with_version(content, version), PROFILE_TYPE, _as_of_ms(content))
            for key, version, content in changed
        ] + [Message(topics.PROFILES, key.encode(), None, PROFILE_TYPE, happened_ms) for key, happened_ms in gone]

    async def state_hash(self, connection: sqlite3.Connection) -> str:
        """Return the hash of live rows and documents; versions and generations tell of the history, not the state."""
        rows = connection.execute(
            """SELECT key, source, entity, position, occurred_us, body, profile, identifiers, suspect FROM profile_rows
               WHERE body IS NOT NULL"""
        )
        documents = connection.execute("SELECT key, identifiers, content FROM profile_documents")
        return await state_hash(itertools.chain(rows, documents))


def _as_of_ms(content: bytes) -> int:
    return events_pb2.Profile.FromString(content).as_of.ToMilliseconds()
