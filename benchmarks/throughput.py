"""From native change events to the last profile written: events a second, memory, and where the time goes.

    python -m benchmarks.throughput [--events 100000] [--profile]

The named baseline, measured in the same run: the same bytes appended to the same kind of log and read back by one
consumer group that only counts, which is what no processing at all would cost.
"""

import argparse
import asyncio
import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from benchmarks.report import report
from benchmarks.server import serving
from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from headwater.ingest.v1 import service_pb2_grpc
from services.ingest.client import push_file
from services.kernel.log import Message, Progress, Tally
from services.kernel.service import CHANNEL_OPTIONS
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import CHANGES, TOPICS

PATH_GROUPS = ("identity", "profile")


def generate(path: Path, events: int, records: int) -> None:
    """Write the change events to a file."""
    command = [sys.executable, "benchmarks/generate_changes.py", "--events", str(events), "--records", str(records)]
    with path.open("wb") as out:
        subprocess.run(
            [*command, "--updates", "0.30", "--deletes", "0.05", "--bytes", "500", "--seed", "1"],
            stdout=out,
            check=True,
        )


async def baseline(path: Path, folder: Path) -> float:
    """Return the seconds that appending and reading the file's lines take with nothing done to them."""
    database = Database(folder)
    log = SqliteLog(database)
    await log.create_topics(TOPICS)
    started = time.perf_counter()
    with path.open("rb") as lines:
        count, batch = 0, []
        for line in lines:
            batch.append(Message(CHANGES, line[:40], line, "baseline", 0))
            if len(batch) == 1000:
                await log.append(batch)
                count, batch = count + len(batch), []
        await log.append(batch)
        count += len(batch)
    consumer, read = log.consumer("baseline", [CHANGES]), 0
    while read < count:
        polled = await consumer.poll(1000, 1 << 20)
        async with consumer.unit():
            tally = Tally(applied=len(polled.records))
            await consumer.commit(
                Progress("baseline", polled.topic, polled.partition, polled.start, polled.next_offset, [], tally)
            )
        read += len(polled.records)
    seconds = time.perf_counter() - started
    database.close()
    return seconds


async def drive(address: str, path: Path) -> float:
    """Push the file and wait until every group of the change path has passed it; returns the seconds."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        operations = operations_pb2_grpc.OperationsServiceStub(channel)
        started = time.perf_counter()
        totals = await push_file(
            service_pb2_grpc.IngestServiceStub(channel), str(path), "", "native", lambda _done: None
        )
        if totals.dead_lettered:
            raise RuntimeError(f"{totals.dead_lettered} events were refused: {totals.errors}")
        quiet = 0
        while quiet < 2:
            balance = await operations.GetBalance(pb.GetBalanceRequest())
            lag = sum(group.lag for group in balance.groups if group.group.startswith(PATH_GROUPS))
            quiet = quiet + 1 if lag == 0 else 0
            await asyncio.sleep(0.02)
        seconds = time.perf_counter() - started
        if not balance.balanced:
            raise RuntimeError("the balance is not even")
        return seconds


async def profiled(folder: Path, path: Path) -> pstats.Stats:
    """Run the same in this process under the profiler."""
    from services.embedded import ephemeral, installation
    from services.kernel.settings import Settings

    async with installation(ephemeral(Settings(data=folder))) as runtime:
        profiler = cProfile.Profile()
        profiler.enable()
        await drive(runtime.address, path)
        profiler.disable()
    return pstats.Stats(profiler)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "changes.jsonl"
        generate(path, options.events, options.events // 5)
        if options.profile:
            asyncio.run(profiled(folder / "profiled", path)).sort_stats("tottime").print_stats(45)
            return
        base_s = asyncio.run(baseline(path, folder / "baseline"))
        with serving(folder / "data") as server:
            idle_mib, cpu_s = server.memory_mib(), server.cpu_s()
            seconds = asyncio.run(drive(server.grpc, path))
            cpu_s = server.cpu_s() - cpu_s
            peak_mib = server.memory_mib()
        report(
            "throughput" if options.events == 100_000 else f"throughput-{options.events}",
            {
                "events": options.events,
                "seconds": round(seconds, 2),
                "events_per_second": round(options.events / seconds),
                "server_cpu_us_per_event": round(cpu_s / options.events * 1e6, 1),
                "events_per_cpu_second": round(options.events / cpu_s),
                "ratio_to_bare_log": round(seconds / base_s, 2),
                "peak_mib": round(peak_mib),
                "mib_before": round(idle_mib),
            },
        )


if __name__ == "__main__":
    main()
