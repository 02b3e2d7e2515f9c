"""The log on Kafka against bare aiokafka: the same records, acknowledgements, batches and broker, in the same run.

    python -m benchmarks.kafka [--records 40000] [--rounds 5] [--profile produce|poll|transform]

Fetches and starts a broker where none is given (`--bootstrap-servers`). Adapter and baseline take turns; the figures
are medians. The baseline sends the bare value of 1 KiB under its key, and takes what `getmany` gives; the adapter adds
and reads what it always does: the headers of CloudEvents, places, tallies, progress.
"""

import argparse
import asyncio
import contextlib
import cProfile
import os
import pstats
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.report import report
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Message, Progress, Record, Stateless, Tally, partition_of, position_of
from services.kernel.processor import APPLIED, Decision, Processor, ProcessorLoop
from services.kernel.topics import CHANGES, RATINGS, TOPICS

PARTITIONS = 4
VALUE_BYTES = 1024
APPEND_RECORDS = 500
APPENDERS = 4  # at once, as several callers of ingest are
BATCH_RECORDS, BATCH_BYTES = 1000, 1 << 20
TYPE = "headwater.change.v1.Change"


class Bench:
    """One broker, one set of records; topics of their own for every run."""

    def __init__(self, bootstrap_servers: str, records: int) -> None:
        self._servers = bootstrap_servers
        self.keys = [f"crm\x1fcustomers\x1f{n % 5000}".encode() for n in range(records)]
        self.values = [os.urandom(VALUE_BYTES) for _ in range(min(records, 1000))]
        self.batch_records = BATCH_RECORDS  # what the processor's loop made of it

    def value(self, number: int) -> bytes:
        """Return the value of a record."""
        return self.values[number % len(self.values)]

    @contextlib.asynccontextmanager
    async def log(self) -> AsyncIterator[KafkaLog]:
        """Yield a log whose topics are empty."""
        settings = KafkaSettings(self._servers, prefix=f"{uuid.uuid4().hex}.", replication=1)
        log = KafkaLog(settings, partitions=PARTITIONS)
        await log.start()
        await log.create_topics(TOPICS)
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

    async def send(self, topic: str) -> None:
        """Send the same, bare."""
        async with self.producer() as producer:
            futures = [
                await producer.send(topic, self.value(n), key=key, partition=partition_of(key, PARTITIONS))
                for n, key in enumerate(self.keys)
            ]
            await asyncio.gather(*futures)

    async def produce(self) -> tuple[float, float]:
        """Return the seconds of the adapter and of the baseline."""
        async with self.log() as log:
            await warm(log, CHANGES)
            ours = await _timed(self.append(log))
            return ours, await _timed(self.send(log.named(RATINGS)))

    # Consuming --------------------------------------------------------------------------------------------------

    async def poll_all(self, log: KafkaLog) -> None:
        """Poll all records, and move the group in the transaction of each batch."""
        member, left = log.consumer("g", [CHANGES]), len(self.keys)
        while left > 0:
            batch = await member.poll(BATCH_RECORDS, BATCH_BYTES)
            async with member.unit():
                place = (batch.topic, batch.partition, batch.start, batch.next_offset)
                await member.commit(Progress("g", *place, [], Tally(applied=len(batch.records))))
            left -= len(batch.records)
        await member.close()

    async def read_all(self, log: KafkaLog) -> None:
        """Read all records as a rebuild or an export does."""
        for partition in range(PARTITIONS):
            offset = 0
            while records := await log.read(CHANGES, partition, offset, max_records=BATCH_RECORDS):
                offset = records[-1].offset + 1

    async def getmany_all(self, topic: str) -> None:
        """Take all records with `getmany`, one partition after the other, too."""
        consumer = self.consumer()
        await consumer.start()
        for partition in range(PARTITIONS):
            place = TopicPartition(topic, partition)
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                await consumer.getmany(place, timeout_ms=200, max_records=BATCH_RECORDS)
        await consumer.stop()

    async def poll(self) -> tuple[float, float]:
        """Return the seconds of the adapter and of the baseline: both move the group in transactions."""
        async with self.log() as log:
            await self.append(log)
            return await _timed(self.poll_all(log)), await _timed(self.copy(log.named(CHANGES), None, BATCH_RECORDS))

    async def read(self) -> tuple[float, float]:
        """Return the seconds of the adapter and of the baseline: no group is moved."""
        async with self.log() as log:
            await self.append(log)
            return await _timed(self.read_all(log)), await _timed(self.getmany_all(log.named(CHANGES)))

    # Transactions -----------------------------------------------------------------------------------------------

    async def loop(self, log: KafkaLog) -> None:
        """Copy all records by the loop of a processor."""
        store = _NoStore(len(self.keys))
        loop = ProcessorLoop(Processor("g", (CHANGES,), store, _copy, ledger=Stateless()), log)
        task = asyncio.create_task(loop.run())
        await store.all_there.wait()
        ends = {(CHANGES, partition): end for partition, end in enumerate(await log.end(CHANGES))}
        await log.wait_committed(["g"], position_of(ends), 60.0)
        self.batch_records = round(statistics.mean(store.batches))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def copy(self, topic: str, to: str | None, batch_records: int) -> None:
        """Copy the same, or only move the group, by bare transactions of batches that are as long.

        A producer for each partition, too: one alone would wait again and again for its last transaction to be over.
        """
        name, left = f"{topic}.{to or 'bare'}", len(self.keys)
        consumer = self.consumer(name)
        consumer.subscribe([topic])
        async with contextlib.AsyncExitStack() as stack:
            producers = [
                await stack.enter_async_context(self.producer(f"{name}.{partition}")) for partition in range(PARTITIONS)
            ]
            await stack.enter_async_context(consumer)
            while left > 0:
                for place, raw in (await consumer.getmany(timeout_ms=200, max_records=batch_records)).items():
                    producer = producers[place.partition]
                    await producer.begin_transaction()
                    if to is not None:
                        futures = [
                            await producer.send(to, each.value, key=each.key, partition=each.partition) for each in raw
                        ]
                        await asyncio.gather(*futures)
                    await producer.send_offsets_to_transaction({place: raw[-1].offset + 1}, name)
                    await producer.commit_transaction()
                    left -= len(raw)

    async def transform(self) -> tuple[float, float]:
        """Return the seconds of the adapter and of the baseline."""
        async with self.log() as log:
            await self.append(log)
            ours = await _timed(self.loop(log))
            return ours, await _timed(self.copy(log.named(CHANGES), log.named(RATINGS), self.batch_records))


async def warm(log: KafkaLog, topic: str) -> None:
    """Append to every partition of a new topic: the first record of one waits for its leader."""
    await log.append([Message(topic, b"k", b"v", TYPE, 0, partition) for partition in range(PARTITIONS)])


class _NoStore:
    """Keeps nothing but how many records were in each batch."""

    def __init__(self, expected: int) -> None:
        self.batches: list[int] = []
        self.all_there = asyncio.Event()
        self._left = expected

    async def load(self, batch: Sequence[Record]) -> None:
        self.batches.append(len(batch))

    async def save(self, state: None, progress: Progress) -> None:
        del state
        self._left -= progress.tally.total
        if self._left <= 0:
            self.all_there.set()


def _copy(state: None, record: Record) -> Decision:
    del state
    output = Message(RATINGS, record.key, record.value, record.type, record.timestamp_ms, record.partition)
    return APPLIED._replace(outputs=[output])


async def _timed(work: Awaitable[None]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


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
    parser.add_argument(
        "--profile", choices=["produce", "consume", "transform"], help="show where the time goes instead"
    )
    options = parser.parse_args()
    with broker(options.bootstrap_servers) as servers:
        bench = Bench(servers, options.records)
        if options.profile:
            asyncio.run(profiled(bench, options.profile)).sort_stats("tottime").print_stats(40)
            return
        figures: dict[str, Any] = {"records": options.records, "rounds": options.rounds}
        seconds: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, run in (
                ("produce", bench.produce),
                ("poll", bench.poll),
                ("read", bench.read),
                ("transform", bench.transform),
            ):
                seconds.setdefault(name, []).append(asyncio.run(run()))
        for name, pairs in seconds.items():
            ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
            figures[f"{name}_per_second"] = round(options.records / ours)
            figures[f"{name}_bare_per_second"] = round(options.records / bare)
            figures[f"{name}_ratio"] = round(statistics.median(theirs / mine for mine, theirs in pairs), 2)
        figures["transform_batch_records"] = bench.batch_records
        report("kafka", figures)


async def profiled(bench: Bench, what: str) -> pstats.Stats:
    """Run one side, the adapter's, under the profiler."""
    profiler = cProfile.Profile()
    async with bench.log() as log:
        if what != "produce":
            await bench.append(log)
        work = {"produce": bench.append, "poll": bench.poll_all, "transform": bench.loop}[what]
        profiler.enable()
        await work(log)
        profiler.disable()
    return pstats.Stats(profiler)


if __name__ == "__main__":
    main()
