"""The log on Kafka against bare aiokafka: the same records, acknowledgements, batches and broker, in the same run.

    python -m benchmarks.kafka [--records 40000] [--rounds 5] [--profile produce|poll|read|transform]

Fetches and starts a broker where none is given (`--bootstrap-servers`). Adapter and baseline take turns in one process,
which has the settings of a service's; both are connected before they are timed, and the figures are medians: by the
clock, and of this process's own processor, which a busy machine does not change.

The baseline sends the bare value of 1 KiB under its key, and takes what `getmany` gives of the same records; the
adapter adds and reads what it always does: the headers of CloudEvents, places, tallies, progress. Where groups move,
both do it in a transaction for each batch of a partition, by a producer of that partition's own: this alone fences who
has lost the partition. aiokafka's C extensions have to be there.
"""

import argparse
import asyncio
import contextlib
import cProfile
import gc
import os
import pstats
import statistics
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.util import NO_EXTENSIONS

from benchmarks.report import report
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Consumer, Message, Progress, Record, Stateless, Tally, partition_of
from services.kernel.processor import APPLIED, Decision, Processor, ProcessorLoop
from services.kernel.runner import GC_THRESHOLD
from services.kernel.telemetry import configure_logging
from services.kernel.topics import CHANGES, RATINGS, TOPICS

PARTITIONS = 4
VALUE_BYTES = 1024
APPEND_RECORDS = 500
APPENDERS = 4  # at once, as several callers of ingest are
BATCH_RECORDS, BATCH_BYTES = 1000, 1 << 20
RUNS = ("produce", "poll", "read", "transform")
TYPE = "headwater.change.v1.Change"


class Seconds(NamedTuple):
    """How long something took, by the clock and of this process's processor: the broker's is not in it."""

    wall: float
    cpu: float


class Bench:
    """One broker, one set of records; topics of their own for every run."""

    def __init__(self, bootstrap_servers: str, records: int) -> None:
        self._servers = bootstrap_servers
        self.keys = [f"crm\x1fcustomers\x1f{n % 5000}".encode() for n in range(records)]
        self.values = [os.urandom(VALUE_BYTES) for _ in range(min(records, 1000))]
        self.batch_records = BATCH_RECORDS  # what the processor's loop made of it
        self.group = ""  # that of the baseline
        self.profiler: cProfile.Profile | None = None

    def value(self, number: int) -> bytes:
        """Return the value of a record."""
        return self.values[number % len(self.values)]

    async def ours(self, work: Awaitable[None]) -> Seconds:
        """Return the seconds that the adapter takes for something, under the profiler if that is wanted."""
        with self.profiler or contextlib.nullcontext():
            return await _timed(work)

    @contextlib.asynccontextmanager
    async def log(self) -> AsyncIterator[KafkaLog]:
        """Yield a log whose topics are empty."""
        settings = KafkaSettings(self._servers, prefix=f"{uuid.uuid4().hex}.", replication=1)
        log = KafkaLog(settings, partitions=PARTITIONS)
        await log.start()
        await log.create_topics([spec for spec in TOPICS if spec.name in (CHANGES, RATINGS)])
        await warm(log, RATINGS)
        try:
            yield log
        finally:
            await log.close()

    def producer(self, transactional_id: str | None = None) -> Any:
        """Return a bare producer with the settings of the adapter's."""
        return AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", enable_idempotence=True,
            transactional_id=transactional_id, max_batch_size=256 << 10,
        )  # fmt: skip

    def consumer(self, group: str | None = None) -> Any:
        """Return a bare consumer with the settings of the adapter's."""
        return AIOKafkaConsumer(
            bootstrap_servers=self._servers, group_id=group, isolation_level="read_committed",
            enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=100,
        )  # fmt: skip

    # Producing --------------------------------------------------------------------------------------------------

    async def append(self, log: KafkaLog) -> None:
        """Append all records in batches."""
        starts = iter(range(0, len(self.keys), APPEND_RECORDS))

        async def appender() -> None:
            for start in starts:
                numbers = range(start, min(start + APPEND_RECORDS, len(self.keys)))
                await log.append(
                    [Message(CHANGES, self.keys[n], self.value(n), TYPE, 1_790_000_000_000 + n) for n in numbers]
                )

        await asyncio.gather(*(appender() for _ in range(APPENDERS)))

    async def send(self, producer: Any, topic: str) -> None:
        """Send the same, bare."""
        futures = [
            await producer.send(topic, self.value(n), key=key, partition=partition_of(key, PARTITIONS))
            for n, key in enumerate(self.keys)
        ]
        await asyncio.gather(*futures)

    async def produce(self) -> tuple[Seconds, Seconds]:
        """Return the seconds of the adapter and of the baseline."""
        async with self.log() as log, self.producer() as producer:
            await warm(log, CHANGES)
            await producer.send_and_wait(log.named(RATINGS), b"v", partition=0)
            return await self.ours(self.append(log)), await _timed(self.send(producer, log.named(RATINGS)))

    # Reading ----------------------------------------------------------------------------------------------------

    async def read_all(self, log: KafkaLog) -> None:
        """Read all records as a rebuild or an export does."""
        for partition in range(PARTITIONS):
            offset = 1
            while records := await log.read(CHANGES, partition, offset, max_records=BATCH_RECORDS):
                offset = records[-1].offset + 1

    async def getmany_all(self, consumer: Any, places: Sequence[TopicPartition]) -> None:
        """Take all records with `getmany`, one partition after the other, too."""
        ends = await consumer.end_offsets(places)
        for place in places:
            while await consumer.position(place) < ends[place]:
                await consumer.getmany(place, timeout_ms=200, max_records=BATCH_RECORDS)

    async def read(self) -> tuple[Seconds, Seconds]:
        """Return the seconds of the adapter and of the baseline: no group is moved."""
        async with self.log() as log, self.consumer() as consumer:
            await warm(log, CHANGES)
            places = [TopicPartition(log.named(CHANGES), partition) for partition in range(PARTITIONS)]
            consumer.assign(places)
            for place in places:
                await log.read(CHANGES, place.partition, 0)
                await consumer.getmany(place, timeout_ms=5000)
            await self.append(log)
            return await self.ours(self.read_all(log)), await _timed(self.getmany_all(consumer, places))

    # Moving groups ----------------------------------------------------------------------------------------------

    async def poll_all(self, member: Consumer, left: int) -> None:
        """Poll so many records, and move the group in the transaction of each batch."""
        while left > 0:
            batch = await member.poll(BATCH_RECORDS, BATCH_BYTES)
            async with member.unit():
                place = (batch.topic, batch.partition, batch.start, batch.next_offset)
                await member.commit(Progress("g", *place, [], Tally(applied=len(batch.records))))
            left -= len(batch.records)

    async def poll(self) -> tuple[Seconds, Seconds]:
        """Return the seconds of the adapter and of the baseline."""
        async with self.log() as log, self.member(log) as (consumer, producers):
            await warm(log, CHANGES)
            member = log.consumer("g", [CHANGES])
            await self.poll_all(member, PARTITIONS)
            await self.copy(consumer, producers, None, 1)
            await self.append(log)
            ours = await self.ours(self.poll_all(member, len(self.keys)))
            return ours, await _timed(self.copy(consumer, producers, None, BATCH_RECORDS))

    @contextlib.asynccontextmanager
    async def loop(self, log: KafkaLog, store: "_NoStore") -> AsyncIterator[ProcessorLoop[None]]:
        """Yield the loop of a processor that copies records: it has joined its group, and pauses."""
        loop = ProcessorLoop(Processor("g", (CHANGES,), store, _copy, ledger=Stateless()), log)
        task = asyncio.create_task(loop.run())
        await store.has(PARTITIONS)
        await loop.pause()
        yield loop
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def transform_all(self, loop: ProcessorLoop[None], store: "_NoStore") -> None:
        """Copy all records by the loop of a processor."""
        loop.resume()
        await store.has(PARTITIONS + len(self.keys))
        await loop.pause()  # once the last transaction is through

    @contextlib.asynccontextmanager
    async def member(self, log: KafkaLog) -> AsyncIterator[tuple[Any, list[Any]]]:
        """Yield what bare aiokafka needs for the same: a member of a group, and a producer for each partition."""
        self.group = log.named("bare")
        async with contextlib.AsyncExitStack() as stack:
            producers = [self.producer(f"{self.group}.{partition}") for partition in range(PARTITIONS)]
            for each in producers:
                await stack.enter_async_context(each)
            consumer = self.consumer(self.group)
            consumer.subscribe([log.named(CHANGES)])
            yield await stack.enter_async_context(consumer), producers

    async def copy(self, consumer: Any, producers: Sequence[Any], to: str | None, batch_records: int) -> None:
        """Copy all records, or only move the group, by bare transactions: the partitions take turns."""
        ends = await consumer.end_offsets(consumer.assignment())
        left = deque(sorted(ends))
        while left:
            for place in left:  # what is there already comes first
                raw = (await consumer.getmany(place, max_records=batch_records)).get(place)
                if raw:
                    break
            else:
                await asyncio.sleep(0.001)
                continue
            producer, reached = producers[place.partition], raw[-1].offset + 1
            await producer.begin_transaction()
            if to is not None:
                futures = [await producer.send(to, each.value, key=each.key, partition=each.partition) for each in raw]
                await asyncio.gather(*futures)
            await producer.send_offsets_to_transaction({place: reached}, self.group)
            await producer.commit_transaction()
            left.remove(place)
            if reached < ends[place]:
                left.append(place)

    async def transform(self) -> tuple[Seconds, Seconds]:
        """Return the seconds of the adapter and of the baseline."""
        async with self.log() as log, self.member(log) as (consumer, producers):
            await warm(log, CHANGES)
            store = _NoStore()
            await self.copy(consumer, producers, None, 1)
            async with self.loop(log, store) as loop:
                await self.append(log)
                ours = await self.ours(self.transform_all(loop, store))
            self.batch_records = round(statistics.mean(store.batches[PARTITIONS:]))
            work = self.copy(consumer, producers, log.named(RATINGS), self.batch_records)
            return ours, await _timed(work)


async def warm(log: KafkaLog, topic: str) -> None:
    """Append to every partition of a new topic: the first record of one waits for its leader."""
    await log.append([Message(topic, b"k", b"v", TYPE, 0, partition) for partition in range(PARTITIONS)])


class _NoStore:
    """Keeps nothing but how many records were in each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._more = asyncio.Event()

    async def load(self, batch: Sequence[Record]) -> None:
        self.batches.append(len(batch))

    async def save(self, state: None, progress: Progress) -> None:
        del state, progress
        self._more.set()

    async def has(self, records: int) -> None:
        """Wait until there were so many."""
        while sum(self.batches) < records:
            self._more.clear()
            await self._more.wait()


def _copy(state: None, record: Record) -> Decision:
    del state
    output = Message(RATINGS, record.key, record.value, record.type, record.timestamp_ms, record.partition)
    return APPLIED._replace(outputs=[output])


async def _timed(work: Awaitable[None]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    await work
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


@contextlib.contextmanager
def broker(given: str) -> Iterator[str]:
    """Yield the address of a broker: the one that is given, or one that is started for the length of the block."""
    if given:
        yield given
        return
    from tests.engines import Kafka

    with tempfile.TemporaryDirectory() as name:
        engine = Kafka(Path(name))
        engine.start()
        try:
            yield engine.address
        finally:
            engine.stop()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bootstrap-servers", default="", help="a broker that is there already")
    parser.add_argument("--profile", choices=RUNS, help="show where the adapter's time goes instead")
    options = parser.parse_args()
    if NO_EXTENSIONS:
        raise SystemExit("aiokafka runs without its C extensions: unset AIOKAFKA_NO_EXTENSIONS")
    configure_logging("ERROR")
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    with broker(options.bootstrap_servers) as servers:
        bench = Bench(servers, options.records)
        if options.profile:
            bench.profiler = cProfile.Profile()
            asyncio.run(getattr(bench, options.profile)())
            pstats.Stats(bench.profiler).sort_stats("tottime").print_stats(40)
            return
        figures: dict[str, Any] = {"records": options.records, "rounds": options.rounds}
        seconds: dict[str, list[tuple[Seconds, Seconds]]] = {}
        for _ in range(options.rounds):
            for name in RUNS:
                seconds.setdefault(name, []).append(asyncio.run(getattr(bench, name)()))
        for name, pairs in seconds.items():
            ours, bare = (statistics.median(each.wall for each in column) for column in zip(*pairs, strict=True))
            figures[f"{name}_per_second"] = round(options.records / ours)
            figures[f"{name}_bare_per_second"] = round(options.records / bare)
            figures[f"{name}_ratio"] = round(statistics.median(bare.wall / ours.wall for ours, bare in pairs), 2)
            figures[f"{name}_cpu_ratio"] = round(statistics.median(bare.cpu / ours.cpu for ours, bare in pairs), 2)
        figures["transform_batch_records"] = bench.batch_records
        report("kafka", figures)


if __name__ == "__main__":
    main()
