"""Rows and assignments of records in the installation's SQLite database: the state of profile-rows.

A record is keyed by the text of its topic key (tenant, separator, record key). Its row and its assignment are written
separately, since they are separate registers.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from services.kernel import topics
from services.kernel.freshness import FreshnessTable
from services.kernel.log import SEPARATOR, Progress, Record
from services.kernel.records import record_key
from services.kernel.sqlite import Database
from services.profile.rows import Entity, Row, Rows, events_of, truncations

_ROW = (
    "key, source, entity, partition, position, occurred_us, {body}, known_at, profile, generation, identifiers, suspect"
)
_KNOWN_AT = 6  # its place after the key
_IN = "IN (SELECT value FROM json_each(?))"
_ROWS_PER_TURN = 1000


def digest_of(key: str) -> str:
    """Return the digest by which an erased record is known, once its name must be forgotten."""
    return hashlib.sha256(key.encode()).hexdigest()


def texts(values: Iterable[str]) -> str:
    """Return texts as the parameter of `IN (SELECT value FROM json_each(?))`."""
    return orjson.dumps(list(values)).decode()


class SqliteRows:
    """The state of profile-rows."""

    def __init__(self, database: Database, freshness: FreshnessTable) -> None:
        self._database, self._freshness = database, freshness

    async def load(self, batch: Sequence[Record]) -> Rows:
        """Load the rows of a batch's records, and all live rows of the entities that it truncates."""
        events = events_of(batch)
        keys = {record.key.decode() for record in batch if record.key is not None}
        writer = self._database.writer
        found = writer.execute(f"SELECT {_ROW.format(body='body')} FROM profile_rows WHERE key {_IN}", (texts(keys),))
        state = Rows(events, {key: _row(fields) for key, *fields in found})
        if batch and batch[0].topic == topics.CHANGES:
            partition = batch[0].partition
            fences = writer.execute(
                "SELECT tenant, source, entity, position FROM profile_truncations WHERE partition=?", (partition,)
            )
            state.truncated = {Entity(*entity): position for *entity, position in fences}
            for entity in truncations(events):
                await self._load_entity(state, entity, partition)
        if writer.execute("SELECT 1 FROM profile_erasures LIMIT 1").fetchone():
            state.erased = self._erased(keys)
        return state

    async def _load_entity(self, state: Rows, entity: Entity, partition: int) -> None:
        # Bodies stay behind: they go, or are kept as they are, unless values kept from older changes are among them.
        columns = _ROW.format(body="iif(known_at IS NULL, '', body)")
        # The key's own prefix finds them; "0" follows "/".
        first = f"{entity.tenant}{SEPARATOR}{record_key(entity.source, entity.entity, {'': ''})}"
        rows = self._database.writer.execute(
            f"SELECT {columns} FROM profile_rows WHERE key>=? AND key<? AND partition=? AND body IS NOT NULL",
            (first, first[:-1] + "0", partition),
        )
        while some := rows.fetchmany(_ROWS_PER_TURN):
            for key, *fields in some:
                if key not in state.rows:
                    state.rows[key] = _row(fields)
            await asyncio.sleep(0)

    def _erased(self, keys: Iterable[str]) -> dict[str, int]:
        digests = {digest_of(key): key for key in keys}
        found = self._database.writer.execute(
            f"SELECT digest, erased_ms FROM profile_erasures WHERE digest {_IN}", (texts(digests),)
        )
        return {digests[name]: erased_ms for name, erased_ms in found}

    async def save(self, state: Rows, progress: Progress) -> None:
        """Write the changed rows and assignments."""
        del progress  # it is in the same database
        writer = self._database.writer
        writer.executemany(
            """INSERT INTO profile_rows (key, source, entity, partition, position, occurred_us, known_at, body)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 source=excluded.source, entity=excluded.entity, partition=excluded.partition,
                 position=excluded.position, occurred_us=excluded.occurred_us, known_at=excluded.known_at,
                 body=excluded.body""",
            [
                (
                    key, row.source, row.entity, row.partition, row.position, row.occurred_us,
                    orjson.dumps(row.known_at).decode() if row.known_at else None, row.body,
                )
                for key, row in ((key, state.rows[key]) for key in state.changed)
            ],
        )  # fmt: skip
        writer.executemany(
            """INSERT INTO profile_rows (key, profile, generation, identifiers, suspect) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET profile=excluded.profile, generation=excluded.generation,
                 identifiers=excluded.identifiers, suspect=excluded.suspect""",
            [
                (key, row.profile, row.generation, row.identifiers, row.suspect)
                for key, row in ((key, state.rows[key]) for key in state.assigned)
            ],
        )
        if state.truncated_now:
            writer.executemany(
                """INSERT INTO profile_truncations VALUES (?, ?, ?, ?, ?)
                   ON CONFLICT DO UPDATE SET position=excluded.position""",
                [(partition, *entity, state.truncated[entity]) for entity, partition in state.truncated_now.items()],
            )
        self._freshness.save(state.sightings)


def _row(fields: Sequence[Any]) -> Row:
    row = Row(*fields)
    if (known_at := fields[_KNOWN_AT]) is not None:
        row.known_at = orjson.loads(known_at)
    return row
