"""The embedded log: topics, partitions and consumer groups in the installation's database.

Every partition is a table whose rowid is the offset. There is one writer, so offsets are handed out in the order of
commits: a reader cannot pass a record that is not committed yet.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import orjson

from headwater.common.v1 import common_pb2
from services.kernel.errors import InvalidInputError
from services.kernel.log import (
    EMPTY,
    Batch,
    Ledger,
    Message,
    Offsets,
    PartitionLostError,
    Progress,
    Record,
    Tally,
    partition_of,
    position_of,
)
from services.kernel.sqlite import Database, Transaction
from services.kernel.topics import Cleanup, TopicSpec
from services.kernel.waiters import Waiters

SCHEMA = (
    """CREATE TABLE log_topics (
         id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, partitions INTEGER NOT NULL, spec TEXT NOT NULL)""",
    """CREATE TABLE log_partitions (
         topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)) WITHOUT ROWID""",
    """CREATE TABLE log_groups (
         name TEXT, topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, applied INTEGER NOT NULL,
         superseded INTEGER NOT NULL, waiting INTEGER NOT NULL, dead_lettered INTEGER NOT NULL,
         PRIMARY KEY (name, topic, partition)) WITHOUT ROWID""",
    "CREATE TABLE log_muted (name TEXT PRIMARY KEY, topics TEXT NOT NULL) WITHOUT ROWID",
)
DEFAULT_PARTITIONS = 4
URGENT_MESSAGES = 16  # of so few, each is somebody's question, rating or change, and no bulk load


class SqliteLog:
    """The log of an embedded installation; see `services.kernel.log.Log`."""

    def __init__(self, database: Database, partitions: int = DEFAULT_PARTITIONS) -> None:
        self._database = database
        self._default_partitions = partitions
        database.migrate("log", SCHEMA)
        database.set_appender(self._append)
        self._specs: dict[str, TopicSpec] = {}
        self._partitions: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        self._next: Offsets = {}  # as written, committed or not
        self._ends: Offsets = {}  # as committed: what a reader may see
        self._committed: dict[str, Offsets] = defaultdict(dict)
        self._groups: dict[str, list[SqliteConsumer]] = defaultdict(list)
        self._inputs: dict[str, Collection[str]] = {}  # group -> what it consumes, even while it has no member
        self._appended, self._advanced = Waiters(), Waiters()
        self._open = asyncio.Event()  # closed while a rebuild wants the log to stand still
        self._still = 0  # how many want it to stand still
        self._muted: dict[str, Collection[str]] = {}  # group -> the topics that it may publish to nevertheless
        self._load()
        self._open_or_close()

    def _load(self) -> None:
        reader = self._database.reader
        for topic_id, name, partitions, spec in reader.execute("SELECT id, name, partitions, spec FROM log_topics"):
            fields = orjson.loads(spec)
            self._specs[name] = TopicSpec(**{**fields, "cleanup": Cleanup(fields["cleanup"])})
            self._partitions[name], self._ids[name] = partitions, topic_id
        for topic, partition, offset in reader.execute("SELECT topic, partition, next_offset FROM log_partitions"):
            self._next[topic, partition] = self._ends[topic, partition] = offset
        rows = reader.execute("SELECT name, topic, partition, next_offset FROM log_groups")
        for group, topic, partition, offset in rows:
            self._committed[group][topic, partition] = offset
        self._inputs = {group: {topic for topic, _ in places} for group, places in self._committed.items()}
        self._muted = {group: orjson.loads(names) for group, names in reader.execute("SELECT * FROM log_muted")}

    # Topics -----------------------------------------------------------------------------------------------------

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Make the topics that are not there yet; what is there keeps its number of partitions."""
        missing = [spec for spec in specs if self._specs.get(spec.name) != spec]
        if not missing:
            return
        async with self._database.transaction() as unit:
            for spec in missing:
                self._create(unit, spec)

    def _create(self, unit: Transaction, spec: TopicSpec) -> None:
        encoded = orjson.dumps({**spec._asdict(), "cleanup": spec.cleanup.value}).decode()
        self._specs[spec.name] = spec
        if spec.name in self._ids:
            unit.execute("UPDATE log_topics SET spec=? WHERE name=?", (encoded, spec.name))
            return
        partitions = spec.partitions or self._default_partitions
        cursor = unit.execute(
            "INSERT INTO log_topics (name, partitions, spec) VALUES (?, ?, ?)",
            (spec.name, partitions, encoded),
        )
        self._ids[spec.name], self._partitions[spec.name] = cursor.lastrowid or 0, partitions
        for partition in range(partitions):
            unit.execute("INSERT INTO log_partitions VALUES (?, ?, 0)", (spec.name, partition))
            unit.execute(
                f"""CREATE TABLE {self.table(spec.name, partition)} (
                      offset INTEGER PRIMARY KEY, key BLOB, value BLOB, type TEXT NOT NULL, event_id TEXT NOT NULL,
                      happened_ms INTEGER NOT NULL, appended_ms INTEGER NOT NULL, headers TEXT)"""
            )
            self._next[spec.name, partition] = self._ends[spec.name, partition] = 0

    def table(self, topic: str, partition: int) -> str:
        """Return the name of a partition's table."""
        return f"log_{self._ids[topic]}_{partition}"

    def partitions(self, topic: str) -> int:
        """Return the topic's number of partitions."""
        try:
            return self._partitions[topic]
        except KeyError:
            raise InvalidInputError(f"there is no topic {topic!r}: create it first") from None

    # Writing ----------------------------------------------------------------------------------------------------

    async def append(
        self, messages: Sequence[Message], *, durable: bool = True, from_outside: bool = True
    ) -> common_pb2.Position:
        """Append all messages, or none; from outside, waits while a rebuild wants the log to stand still."""
        opened = self.unit_from_outside if from_outside else self._database.transaction
        async with opened(durable=durable, urgent=len(messages) <= URGENT_MESSAGES) as unit:
            unit.emit(messages)
            touched = {(m.topic, self._partition(m)) for m in messages}
            ends = {place: self._next[place] for place in touched}
        return position_of(ends)

    @asynccontextmanager
    async def unit_from_outside(self, *, durable: bool = False, urgent: bool = False) -> AsyncIterator[Transaction]:
        """Open a unit of work in which somebody publishes who is no processor; see `Database.transaction`.

        Waits while a rebuild wants the log to stand still.
        """
        while True:
            await self._open.wait()
            async with self._database.transaction(durable=durable, urgent=urgent) as unit:
                if self._open.is_set():  # it may have been closed while this waited for its turn
                    yield unit
                    return

    def _partition(self, message: Message) -> int:
        if message.partition is not None:
            return message.partition
        return partition_of(message.key or b"", self.partitions(message.topic))

    def _append(self, unit: Transaction, messages: Sequence[Message]) -> None:
        now_ms = time.time_ns() // 1_000_000
        rows: dict[tuple[str, int], list[tuple[object, ...]]] = defaultdict(list)
        for message in messages:
            place = (message.topic, self._partition(message))
            bucket = rows[place]
            offset = self._next[place] + len(bucket)
            event_id = message.event_id or f"{message.topic}/{place[1]}/{offset}"
            headers = orjson.dumps(dict(message.headers)).decode() if message.headers else None
            bucket.append(
                (
                    offset,
                    message.key,
                    message.value,
                    message.type,
                    event_id,
                    message.timestamp_ms,
                    now_ms,
                    headers,
                )
            )
        before = {place: self._next[place] for place in rows}
        unit.on_rollback.append(lambda: self._next.update(before))
        for place, bucket in rows.items():
            self._next[place] += len(bucket)
            unit.executemany(f"INSERT INTO {self.table(*place)} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", bucket)
            unit.execute(
                "UPDATE log_partitions SET next_offset=? WHERE topic=? AND partition=?",
                (self._next[place], *place),
            )
        unit.on_commit.append(lambda: self._publish(rows))

    def _publish(self, places: Collection[tuple[str, int]]) -> None:
        for place in places:
            self._ends[place] = self._next[place]
        self._appended.wake({topic for topic, _ in places})

    # Reading ----------------------------------------------------------------------------------------------------

    async def read(
        self, topic: str, partition: int, offset: int, *, max_records: int = 500, max_bytes: int = 1 << 20
    ) -> list[Record]:
        """Return committed records from `offset` on."""
        self.partitions(topic)
        records, size = [], 0
        cursor = self._database.reader.execute(
            f"SELECT offset, key, value, type, event_id, happened_ms, headers FROM {self.table(topic, partition)} "
            "WHERE offset>=? ORDER BY offset LIMIT ?",
            (offset, max_records),
        )
        for place, key, value, kind, event_id, happened_ms, headers in cursor:
            records.append(
                Record(
                    topic, partition, place, key, value, kind, event_id, happened_ms,
                    orjson.loads(headers) if headers else EMPTY,
                )
            )  # fmt: skip
            size += len(value or b"")
            if size >= max_bytes:
                break
        cursor.close()
        return records

    async def end(self, topic: str) -> list[int]:
        """Return the next offset of each partition."""
        return [self._ends[topic, partition] for partition in range(self.partitions(topic))]

    async def committed(self, group: str) -> Offsets:
        """Return the next offsets of a group."""
        return dict(self._committed[group])

    async def wait_committed(self, groups: Collection[str], position: common_pb2.Position, timeout_s: float) -> bool:
        """Wait until every group has passed `position` in the topics that it consumes."""
        deadline = time.monotonic() + timeout_s
        while not self._passed(groups, position):
            left = deadline - time.monotonic()
            if left <= 0 or not await self._advanced.wait(groups, left):
                return self._passed(groups, position)
        return True

    def _passed(self, groups: Collection[str], position: common_pb2.Position) -> bool:
        return all(
            self._committed[group].get((place.topic, place.partition), 0) >= place.offset
            for group in groups
            for place in position.offsets
            if place.topic in self._inputs.get(group, ())
        )

    async def wait_for(self, topics: Collection[str], seen: Offsets, timeout_s: float) -> bool:
        """Wait until a topic holds records at or beyond `seen`."""
        deadline = time.monotonic() + timeout_s
        while not self._has_more(topics, seen):
            left = deadline - time.monotonic()
            if left <= 0 or not await self._appended.wait(topics, left):
                return self._has_more(topics, seen)
        return True

    def _has_more(self, topics: Collection[str], seen: Offsets) -> bool:
        return any(
            self._ends[topic, partition] > seen.get((topic, partition), 0)
            for topic in topics
            for partition in range(self.partitions(topic))
        )

    # Groups -----------------------------------------------------------------------------------------------------

    def consumer(
        self, group: str, topics: Sequence[str], ledger: Ledger | None = None, internal_topics: Collection[str] = ()
    ) -> "SqliteConsumer":
        """Join a consumer group; the partitions are shared out anew among its members."""
        del internal_topics  # a rebuild says itself what is published again
        if ledger is not None:
            raise InvalidInputError(
                f"{group} keeps its state outside the embedded installation: configure [kafka], too"
            )
        for topic in topics:
            self.partitions(topic)
        member = SqliteConsumer(self, self._database, group, tuple(topics))
        self._groups[group].append(member)
        self._inputs[group] = {topic for each in self._groups[group] for topic in each.topics}
        self._rebalance(group)
        return member

    def assigned(self, group: str) -> set[tuple[str, int]]:
        """Return the partitions that the group's members have been given."""
        return {place for member in self._groups[group] for place in member.assigned}

    def leave(self, member: "SqliteConsumer") -> None:
        """Take a member out of its group."""
        if member in self._groups[member.group]:
            self._groups[member.group].remove(member)
            member.assigned = ()
            self._rebalance(member.group)

    def _rebalance(self, group: str) -> None:
        members = self._groups[group]
        topics = sorted({topic for member in members for topic in member.topics})
        for index, member in enumerate(members):
            member.assigned = tuple(
                (topic, partition)
                for topic in topics
                for partition in range(self.partitions(topic))
                if partition % len(members) == index
            )
        self._appended.wake(topics)  # those who wait look at their new partitions

    def next_of(self, group: str, place: tuple[str, int]) -> int:
        """Return where a group goes on in a partition."""
        return self._committed[group].get(place, 0)

    def has(self, place: tuple[str, int], offset: int) -> bool:
        """Tell whether a partition holds committed records at or beyond an offset."""
        return self._ends[place] > offset

    async def wait_appended(self, topics: Collection[str]) -> None:
        """Wait until something is appended to one of the topics, or partitions move."""
        await self._appended.wait(topics, 3600.0)

    def advance(self, unit: Transaction, progress: Progress) -> None:
        """Publish a batch's outputs and move its group on, in the open unit."""
        outputs = progress.outputs
        if progress.group in self._muted:
            outputs = [message for message in outputs if message.topic in self._muted[progress.group]]
        if outputs:
            self._append(unit, outputs)
        tally = progress.tally
        unit.execute(
            """INSERT INTO log_groups VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 next_offset=excluded.next_offset, applied=applied+excluded.applied,
                 superseded=superseded+excluded.superseded, waiting=waiting+excluded.waiting,
                 dead_lettered=dead_lettered+excluded.dead_lettered""",
            (progress.group, progress.topic, progress.partition, progress.next_offset, *tally),
        )

        def advanced() -> None:
            self._committed[progress.group][progress.topic, progress.partition] = progress.next_offset
            self._advanced.wake((progress.group,))

        unit.on_commit.append(advanced)

    # Operations -------------------------------------------------------------------------------------------------

    async def tallies(self, group: str) -> tuple[int, Tally]:
        """Return how many inputs a group has passed, by its offsets, and what it says became of them."""
        row = self._database.reader.execute(
            "SELECT sum(next_offset), sum(applied), sum(superseded), sum(waiting), sum(dead_lettered) "
            "FROM log_groups WHERE name=?",
            (group,),
        ).fetchone()
        inputs, *counts = (value or 0 for value in row)
        return inputs, Tally(*counts)

    async def lag(self, group: str, topics: Collection[str]) -> int:
        """Return how many records the group has not passed yet."""
        return sum(
            self._ends[topic, partition] - self.next_of(group, (topic, partition))
            for topic in topics
            for partition in range(self.partitions(topic))
        )

    async def oldest_pending_ms(self, group: str, topics: Collection[str]) -> int | None:
        """Return the event time of the oldest record, by offset, that a group has not passed; None if there is none."""
        times: list[int] = []
        for topic in topics:
            for partition in range(self.partitions(topic)):
                offset = self.next_of(group, (topic, partition))
                if self.has((topic, partition), offset):
                    row = self._database.reader.execute(
                        f"SELECT happened_ms FROM {self.table(topic, partition)} WHERE offset>=? "
                        "ORDER BY offset LIMIT 1",
                        (offset,),
                    ).fetchone()
                    times.extend(row or ())
        return min(times, default=None)

    async def count(self, topic: str) -> int:
        """Return how many records a topic holds."""
        tables = [self.table(topic, partition) for partition in range(self.partitions(topic))]

        def counted() -> int:
            with self._database.snapshot() as connection:
                return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)

        return await asyncio.to_thread(counted)  # it reads all of them

    def topics(self) -> list[str]:
        """Return the names of all topics."""
        return sorted(self._specs)

    async def reset_group(self, unit: Transaction, group: str, skip_topics: Collection[str] = ()) -> None:
        """Send a group back to the beginning of its topics, or for some of them to the end."""
        places = dict(self._committed[group])
        unit.execute("DELETE FROM log_groups WHERE name=?", (group,))
        skipped = {place: self._ends[place] for place in places if place[0] in skip_topics}
        for place, end in skipped.items():
            # Skipped inputs count as superseded, so that the balance holds.
            unit.execute("INSERT INTO log_groups VALUES (?, ?, ?, ?, 0, ?, 0, 0)", (group, *place, end, end))

        def reset() -> None:
            self._committed[group] = skipped
            self._appended.wake({topic for topic, _ in places})

        unit.on_commit.append(reset)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Make appends from outside wait; processors still publish."""
        self._still += 1
        self._open_or_close()
        try:
            async with self._database.transaction():
                pass  # whoever had begun is done
            yield
        finally:
            self._still -= 1
            self._open_or_close()

    def _open_or_close(self) -> None:
        """While groups are muted it stays closed: what came in meanwhile would lead to nothing."""
        if self._still or self._muted:
            self._open.clear()
        else:
            self._open.set()

    async def positions_of(self, group: str, topics: Collection[str]) -> Offsets:
        """Return where a group stands in every partition of the topics."""
        return {
            (topic, partition): self.next_of(group, (topic, partition))
            for topic in topics
            for partition in range(self.partitions(topic))
        }

    def is_muted(self, group: str) -> bool:
        """Tell whether a group is being rebuilt: its background work must not publish again either."""
        return group in self._muted

    @asynccontextmanager
    async def rebuilding(self, groups: Collection[str], internal_topics: Collection[str]) -> AsyncIterator[Transaction]:
        """Open the unit of work in which a store is emptied; see `services.kernel.log.Log`."""
        async with self._database.transaction() as unit:
            yield unit
            for group in groups:
                # Topics between the store's own groups are written anew: what they held before is not replayed.
                await self.reset_group(unit, group, skip_topics=internal_topics)
            self._mute(unit, groups, internal_topics)

    async def rebuilt(self, groups: Collection[str]) -> None:
        """Let groups publish again."""
        async with self._database.transaction() as unit:
            self._unmute(unit, groups)

    def _mute(self, unit: Transaction, groups: Collection[str], except_topics: Collection[str]) -> None:
        names = orjson.dumps(sorted(except_topics)).decode()
        unit.executemany("INSERT OR REPLACE INTO log_muted VALUES (?, ?)", [(group, names) for group in groups])

        def muted() -> None:
            self._muted.update(dict.fromkeys(groups, except_topics))
            self._open_or_close()

        unit.on_commit.append(muted)

    def _unmute(self, unit: Transaction, groups: Collection[str]) -> None:
        unit.executemany("DELETE FROM log_muted WHERE name=?", [(group,) for group in groups])

        def unmuted() -> None:
            for group in groups:
                self._muted.pop(group, None)
            self._open_or_close()

        unit.on_commit.append(unmuted)

    async def erase(
        self, matches: Callable[[Record], bool], kept_topics: Collection[str], *, dry_run: bool = False
    ) -> dict[str, int]:
        """Remove every record that matches, whatever the topic's retention, and whoever has not read it."""
        from services.kernel.sqlite_retention import Retention

        return await Retention(self, self._database).erase(matches, kept_topics, dry_run=dry_run)

    def floor(self, topic: str, partition: int) -> int:
        """Return the offset below which every group that consumes a partition is done with it."""
        place = (topic, partition)
        offsets = [self.next_of(group, place) for group, names in self._inputs.items() if topic in names]
        return min(offsets, default=self._ends[place])

    def places(self) -> list[tuple[TopicSpec, int]]:
        """Return every partition of every topic."""
        return [(self._specs[topic], partition) for topic, partition in self._next]


class SqliteConsumer:
    """A member of a consumer group within this process; see `services.kernel.log.Consumer`."""

    def __init__(self, log: SqliteLog, database: Database, group: str, topics: tuple[str, ...]) -> None:
        self.group = group
        self.topics = topics
        self.trouble: str | None = None
        self.assigned: tuple[tuple[str, int], ...] = ()
        self._log, self._database = log, database
        self._starts: Offsets = {}  # of the last batch of each partition
        self._turn = 0

    async def poll(self, max_records: int, max_bytes: int) -> Batch:
        """Wait for the next records of one of this member's partitions; the partitions take turns."""
        while True:
            for step in range(len(self.assigned)):
                place = self.assigned[(self._turn + step) % len(self.assigned)]
                offset = self._log.next_of(self.group, place)
                if self._log.has(place, offset):
                    self._turn = (self._turn + step + 1) % len(self.assigned)
                    records = await self._log.read(*place, offset, max_records=max_records, max_bytes=max_bytes)
                    # Compaction may have left nothing between here and the end.
                    end = records[-1].offset + 1 if records else (await self._log.end(place[0]))[place[1]]
                    self._starts[place] = offset
                    return Batch(*place, records, offset, end)
            await self._log.wait_appended(self.topics)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Open the unit of work of a batch."""
        async with self._database.transaction():
            yield

    def check(self, outputs: Sequence[Message]) -> None:
        """Do nothing: what cannot be appended is refused then, and nothing of the unit lasts."""

    async def commit(self, progress: Progress) -> None:
        """Publish the outputs and advance the group, within the open unit."""
        place = (progress.topic, progress.partition)
        stands = self._log.next_of(self.group, place)
        # It may have moved away and come back: then somebody else has done the batch.
        if place not in self.assigned or stands != self._starts.get(place, stands):
            raise PartitionLostError(f"{place[0]}/{place[1]} has moved to another member of {self.group}")
        self._log.advance(self._database.unit, progress)

    async def close(self) -> None:
        """Leave the group."""
        self._log.leave(self)
