"""Removes subjects from the profile tables, and searches for what is left: the state of profile-erasure."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from headwater.common.v1 import events_pb2 as common_pb2
from services.kernel import topics
from services.kernel.erasure import field_bytes, requests_of
from services.kernel.log import SEPARATOR, Log, Progress, Record, key_of
from services.kernel.sqlite import Database
from services.profile.erasure import Erased, Erasures
from services.profile.ports import FOLD_GROUP
from services.profile.sqlite_rows import digest_of, texts

_IN = "IN (SELECT value FROM json_each(?))"
_COUNTS = {
    "rows": f"SELECT count(*) FROM profile_rows WHERE key {_IN}",
    "documents": f"SELECT count(*) FROM profile_documents WHERE key {_IN}",
    "identifiers": f"SELECT count(*) FROM profile_identifiers WHERE profile {_IN}",
}


class SqliteErasures:
    """The state of profile-erasure. Loading a batch is what erases, so that what is told of it was found afterwards."""

    def __init__(self, log: Log, database: Database, clock: Callable[[], float]) -> None:
        self._log, self._database, self._clock = log, database, clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch, in the open unit of work."""
        state = Erasures()
        for record, request in requests_of(batch):
            state.done[record.offset] = await self._erase(request, record.timestamp_ms)
        return state

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Do nothing: all is done."""

    async def _erase(self, request: common_pb2.ErasureRequested, happened_ms: int) -> Erased:
        records = [key_of(request.tenant, record).decode() for record in request.records]
        named = {key_of(request.tenant, profile_id).decode() for profile_id in request.profile_ids}
        profiles = sorted(named | await self._holding(records))
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

    async def _holding(self, records: Sequence[str]) -> set[str]:
        """Return the profiles whose documents may hold something of the records.

        A record is in the document of its present profile; and in that of a former one only as long as the touch that
        its leaving caused has not been taken in.
        """
        writer = self._database.writer
        rows = writer.execute(
            f"SELECT DISTINCT profile FROM profile_rows WHERE profile IS NOT NULL AND key {_IN}", (texts(records),)
        )
        holding = {profile for (profile,) in rows}
        needles = [field_bytes(record.partition(SEPARATOR)[2]) for record in records]
        async for touched in self._touched():
            documents = writer.execute(
                f"SELECT key, content FROM profile_documents WHERE key {_IN}", (texts(touched - holding),)
            )
            holding |= {key for key, content in documents if any(needle in content for needle in needles)}
        return holding

    async def _touched(self) -> AsyncIterator[set[str]]:
        """Go through the profiles that are touched and not folded again yet."""
        reached = await self._log.committed(FOLD_GROUP)
        for partition in range(self._log.partitions(topics.TOUCHED)):
            offset = reached.get((topics.TOUCHED, partition), 0)
            while records := await self._log.read(topics.TOUCHED, partition, offset):
                offset = records[-1].offset + 1
                yield {record.key.decode() for record in records if record.key is not None}
                await asyncio.sleep(0)

    def _count(self, records: Sequence[str], profiles: Sequence[str]) -> dict[str, int]:
        keys = {"rows": texts(records), "documents": texts(profiles), "identifiers": texts(profiles)}
        return {kind: self._database.writer.execute(sql, (keys[kind],)).fetchone()[0] for kind, sql in _COUNTS.items()}
