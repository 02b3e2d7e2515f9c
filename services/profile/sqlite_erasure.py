"""Removes subjects from the profile tables, and searches for what is left: the state of profile-erasure."""

from collections.abc import Callable, Sequence

import orjson
from google.protobuf.message import DecodeError

from headwater.common.v1 import events_pb2 as common_pb2
from services.kernel.erasure import field_bytes
from services.kernel.log import SEPARATOR, Progress, Record, key_of
from services.kernel.sqlite import Database
from services.profile.erasure import Erased, Erasures
from services.profile.sqlite_documents import identifier_key
from services.profile.sqlite_rows import digest_of, texts

_IN = "IN (SELECT value FROM json_each(?))"
_COUNTS = {
    "rows": f"SELECT count(*) FROM profile_rows WHERE key {_IN}",
    "documents": f"SELECT count(*) FROM profile_documents WHERE key {_IN}",
    "identifiers": f"SELECT count(*) FROM profile_identifiers WHERE profile {_IN}",
}


class SqliteErasures:
    """The state of profile-erasure. Loading a batch is what erases, so that what is told of it was found afterwards."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch, in the open unit of work."""
        state = Erasures()
        for record in batch:
            try:
                request = common_pb2.ErasureRequested.FromString(record.value or b"")
            except DecodeError:
                continue
            if record.value is not None:
                state.done[record.offset] = self._erase(request, record.timestamp_ms)
        return state

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Do nothing: all is done."""

    def _erase(self, request: common_pb2.ErasureRequested, happened_ms: int) -> Erased:
        records = [key_of(request.tenant, record).decode() for record in request.records]
        profiles = sorted({key_of(request.tenant, p).decode() for p in request.profile_ids} | self._holding(records))
        removed = self._count(records, profiles)
        writer = self._database.writer
        writer.execute(f"DELETE FROM profile_rows WHERE key {_IN}", (texts(records),))
        writer.execute(f"DELETE FROM profile_documents WHERE key {_IN}", (texts(profiles),))
        writer.execute(f"DELETE FROM profile_identifiers WHERE profile {_IN}", (texts(profiles),))
        # Older changes may still be on their way, or be offered again: their digests keep them out.
        asked_ms = request.requested_at.ToMilliseconds() or happened_ms
        writer.executemany(
            """INSERT INTO profile_erasures VALUES (?, ?)
               ON CONFLICT DO UPDATE SET erased_ms=max(erased_ms, excluded.erased_ms)""",
            [(digest_of(record), asked_ms) for record in records],
        )
        return Erased(request, tuple(profiles), removed, self._count(records, profiles), int(self._clock() * 1000))

    def _holding(self, records: Sequence[str]) -> set[str]:
        """Return the profiles whose documents are made of the records, by their assignments or not yet folded again."""
        writer = self._database.writer
        rows = writer.execute(
            f"SELECT key, profile, identifiers FROM profile_rows WHERE key {_IN}", (texts(records),)
        ).fetchall()
        holding = {profile for _, profile, _ in rows if profile is not None}
        names = {
            identifier_key(key.partition(SEPARATOR)[0], kind, value)
            for key, _, identifiers in rows
            for kind, value in orjson.loads(identifiers)
        }
        needles = [field_bytes(record.partition(SEPARATOR)[2]) for record in records]
        others = writer.execute(
            f"""SELECT key, content FROM profile_documents WHERE key IN (
                  SELECT profile FROM profile_identifiers WHERE identifier {_IN})""",
            (texts(names),),
        )
        return holding | {key for key, content in others if any(needle in content for needle in needles)}

    def _count(self, records: Sequence[str], profiles: Sequence[str]) -> dict[str, int]:
        parameters = {"rows": texts(records), "documents": texts(profiles), "identifiers": texts(profiles)}
        return {
            kind: self._database.writer.execute(sql, (parameters[kind],)).fetchone()[0] for kind, sql in _COUNTS.items()
        }
