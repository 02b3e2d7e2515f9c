"""What leaves the embedded log: by age, by size, by compaction, and by erasure.

But for erasures, a record is removed only when every group that consumes its topic has passed it. Every unit of work is
short, so that processors and queries have their turn in between.
"""

import asyncio
import bisect
import itertools
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from services.kernel.log import Record
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import Cleanup, TopicSpec

SLICE_RECORDS = 2_000  # what one unit of work looks at
KEYS_PER_PASS = 200_000  # what one pass of compaction keeps in memory


class Retention:
    """Removes records from a log."""

    def __init__(self, log: SqliteLog, database: Database) -> None:
        self._log, self._database = log, database

    async def clean(self, now_ms: int | None = None) -> int:
        """Apply retention and compaction to every topic; return how many records went.

        Args:
            now_ms: the time, for the records' age; now by default.
        """
        now_ms = now_ms or time.time_ns() // 1_000_000
        removed = 0
        for spec, partition in self._log.places():
            if spec.cleanup is Cleanup.DELETE:
                removed += await self._retain(spec, partition, now_ms)
            elif spec.cleanup is Cleanup.COMPACT:
                removed += await self._compact(spec, partition, now_ms)
        return removed

    async def erase(
        self, matches: Callable[[Record], bool], kept_topics: Collection[str], *, dry_run: bool = False
    ) -> dict[str, int]:
        """Remove every record that matches, whatever the topic's retention, and whoever has not read it.

        Args:
            matches: tells whether a record has to go.
            kept_topics: topics that are not looked at.
            dry_run: only count.

        Returns:
            How many records went (or would have gone), per topic that had any.
        """
        counts: dict[str, int] = defaultdict(int)
        for spec, partition in self._log.places():
            if spec.name in kept_topics:
                continue
            offset = 0
            while records := await self._log.read(spec.name, partition, offset):
                offset = records[-1].offset + 1
                gone = [record.offset for record in records if matches(record)]
                counts[spec.name] += len(gone)
                if gone and not dry_run:
                    await self._delete(spec.name, partition, gone)
                await asyncio.sleep(0)
        return {topic: count for topic, count in counts.items() if count}

    async def _delete(self, topic: str, partition: int, offsets: Collection[int]) -> None:
        async with self._database.transaction() as unit:
            table = self._log.table(topic, partition)
            unit.executemany(f"DELETE FROM {table} WHERE offset=?", ((offset,) for offset in offsets))

    async def _retain(self, spec: TopicSpec, partition: int, now_ms: int) -> int:
        bound = min(self._log.floor(spec.name, partition), await self._first_to_keep(spec, partition, now_ms))
        table, removed = self._log.table(spec.name, partition), 0
        for _, stop in self._slices(table, bound):
            async with self._database.transaction() as unit:
                removed += unit.execute(f"DELETE FROM {table} WHERE offset<?", (stop,)).rowcount
        return removed

    async def _first_to_keep(self, spec: TopicSpec, partition: int, now_ms: int) -> int:
        """Return the first offset that neither the age nor the size of a partition lets go."""
        table, bound = self._log.table(spec.name, partition), 0
        end = (await self._log.end(spec.name))[partition]
        if spec.retention_ms is not None:
            # Times of appending only grow.
            sql = f"SELECT appended_ms FROM {table} WHERE offset>=? ORDER BY offset LIMIT 1"

            def appended_ms(offset: int) -> int:
                row = self._database.reader.execute(sql, (offset,)).fetchone()
                return row[0] if row else sys.maxsize

            bound = bisect.bisect_right(range(end), now_ms - spec.retention_ms, key=appended_ms)
        if spec.retention_bytes is not None:
            with self._database.snapshot() as connection:
                sizes = connection.execute(
                    f"SELECT offset, coalesce(length(key), 0) + coalesce(length(value), 0) FROM {table} "
                    "ORDER BY offset DESC"
                )
                totals = itertools.accumulate(sizes, lambda a, b: (b[0], a[1] + b[1]))
                too_large = next((offset + 1 for offset, total in totals if total > spec.retention_bytes), 0)
            bound = max(bound, too_large)
        return bound

    async def _compact(self, spec: TopicSpec, partition: int, now_ms: int) -> int:
        """Remove what a later record of the same key supersedes, and old tombstones."""
        table, floor = self._log.table(spec.name, partition), self._log.floor(spec.name, partition)
        # Only the keys of one pass are in memory at a time, whatever the size of the partition.
        passes, removed = sum(1 for _ in self._slices(table, floor)) * SLICE_RECORDS // KEYS_PER_PASS + 1, 0
        for turn in range(passes):
            newest = await self._newest(table, floor, passes, turn)
            for start, stop in self._slices(table, floor):
                rows = self._database.reader.execute(
                    f"SELECT offset, key, value IS NULL FROM {table} "
                    "WHERE offset>=? AND offset<? AND appended_ms<=? AND key IS NOT NULL",
                    (start, stop, now_ms - spec.compaction_lag_ms),
                ).fetchall()
                gone = [
                    offset for offset, key, tombstone in rows if key in newest and (tombstone or newest[key] > offset)
                ]
                if gone:
                    await self._delete(spec.name, partition, gone)
                removed += len(gone)
                await asyncio.sleep(0)
        return removed

    def _slices(self, table: str, end: int) -> Iterator[tuple[int, int]]:
        """Cut what a partition holds below an offset into slices, however many offsets have no record any more."""
        sql = f"SELECT offset FROM {table} WHERE offset>=? AND offset<? ORDER BY offset LIMIT 1 OFFSET ?"
        start = 0
        while start < end:
            row = self._database.reader.execute(sql, (start, end, SLICE_RECORDS)).fetchone()
            stop = row[0] if row else end
            yield start, stop
            start = stop

    async def _newest(self, table: str, floor: int, passes: int, turn: int) -> dict[bytes, int]:
        """Return the newest offset below `floor` of every key whose turn it is, of records that are whole."""
        newest: dict[bytes, int] = {}
        for start, stop in self._slices(table, floor):
            rows = self._database.reader.execute(
                f"SELECT key, offset FROM {table} WHERE offset>=? AND offset<? AND key IS NOT NULL "
                "AND (headers IS NULL OR headers->>'whole' IS NOT 'no') ORDER BY offset",
                (start, stop),
            )
            newest.update((key, offset) for key, offset in rows if zlib.crc32(key) % passes == turn)
            await asyncio.sleep(0)
        return newest
