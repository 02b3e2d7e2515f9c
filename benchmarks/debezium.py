"""How soon a row of PostgreSQL is in its profile: through Debezium, Kafka Connect and Kafka into `headwater up`.

    python -m benchmarks.debezium [--probes 300] [--rates 50 500] [--poll-ms 20]

Fetches and starts the engines. While other rows are updated at a steady rate, one commit each, one row is probed: from
just before its UPDATE is sent to the answer of GetProfile that shows it, polled all the while. The named baseline, of
the same commits: the raw record seen by a plain consumer of the topic, which reads committed records as Headwater does.
The connector is that of `docs/debezium.md`, with this `poll.interval.ms`.
"""

import argparse
import asyncio
import json
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import orjson
import psycopg
from aiokafka import AIOKafkaConsumer

from benchmarks.report import percentiles, report
from benchmarks.server import serving
from headwater.profile.v1 import service_pb2, service_pb2_grpc
from services.kernel.service import CHANNEL_OPTIONS
from tests.engines import Kafka
from tests.engines.connect import Connect

PAGE = Path(__file__).parents[1] / "docs" / "debezium.md"
TOPIC = "crm.public.customers"
ROWS = 5_000
WARM_UP = 20
TIMEOUT_S = 60.0
PAUSE_S = 0.02  # between probes, so that they fall anywhere in the connector's rounds
POLL_S = 0.001
TABLE = "CREATE TABLE customers (id bigint PRIMARY KEY, email text NOT NULL, full_name text, tier text NOT NULL)"
FILL = (
    "INSERT INTO customers SELECT n, 'c' || n || '@example.com', 'Customer ' || n, 'basic' "
    f"FROM generate_series(0, {ROWS}) n"
)
UPDATE = "UPDATE customers SET tier = %s WHERE id = %s"


class Load(threading.Thread):
    """Updates rows other than the probed one at a steady rate, each in a transaction of its own."""

    def __init__(self, dsn: str, rate: int) -> None:
        super().__init__(daemon=True)
        self._dsn, self._rate = dsn, rate
        self._ending = threading.Event()
        self.commits, self.seconds = 0, 0.0

    def run(self) -> None:
        """Write until told to end; what it was too late for, it makes up."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            started = time.perf_counter()
            while not self._ending.is_set():
                connection.execute(UPDATE, (f"load{self.commits}", self.commits % ROWS + 1))
                self.commits += 1
                self._ending.wait(max(0.0, started + self.commits / self._rate - time.perf_counter()))
            self.seconds = time.perf_counter() - started

    def end(self) -> float:
        """Stop; returns the rate that was reached."""
        self._ending.set()
        self.join()
        return self.commits / self.seconds


class Raw:
    """The plain consumer: when it saw each value of the probed row."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.seen: dict[str, float] = {}

    async def run(self) -> None:
        """Read until cancelled."""
        async for record in self._consumer:
            if record.value is not None and record.key == b'{"id":0}':
                self.seen[orjson.loads(record.value)["after"]["tier"]] = time.perf_counter()


async def tier(stub: Any) -> str:
    """Return what the profile of the probed row says."""
    request = service_pb2.GetProfileRequest()
    request.identifier.kind, request.identifier.value = "email", "c0@example.com"
    try:
        return str(json.loads((await stub.GetProfile(request)).profile.fields["tier"].value_json))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        raise


async def until_seen(stub: Any, value: str) -> float:
    """Ask until the profile shows a value; returns when it did."""
    async with asyncio.timeout(TIMEOUT_S):
        while await tier(stub) != value:  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(POLL_S)
    return time.perf_counter()


async def probe(stub: Any, raw: Raw, dsn: str, name: str, probes: int) -> tuple[list[float], list[float]]:
    """Update the probed row again and again; milliseconds to the profile, and to the plain consumer."""
    profile, baseline = [], []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(probes + WARM_UP):
            value = f"{name}-{number}"
            started = time.perf_counter()
            await connection.execute(UPDATE, (value, 0))
            seen = await until_seen(stub, value)
            async with asyncio.timeout(TIMEOUT_S):
                while value not in raw.seen:  # noqa: ASYNC110 - it has nearly always been seen before
                    await asyncio.sleep(POLL_S)
            profile.append((seen - started) * 1000)
            baseline.append((raw.seen[value] - started) * 1000)
            await asyncio.sleep(PAUSE_S)
    return profile[WARM_UP:], baseline[WARM_UP:]


async def measure(connect: Connect, address: str, rates: Sequence[int], probes: int) -> dict[str, Any]:
    """Probe at each rate."""
    figures: dict[str, Any] = {}
    consumer = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=connect.kafka.address, isolation_level="read_committed", fetch_max_wait_ms=100
    )
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.ProfileServiceStub(channel)
        await until_seen(stub, "basic")
        await consumer.start()
        raw = Raw(consumer)
        reading = asyncio.create_task(raw.run())
        try:
            for rate in rates:
                load = Load(connect.dsn, rate)
                load.start()
                profile, baseline = await probe(stub, raw, connect.dsn, f"probe{rate}", probes)
                figures[f"at_{rate}_per_second"] = {
                    "reached_per_second": round(load.end(), 1),
                    "commit_to_profile_ms": percentiles(profile),
                    "baseline_commit_to_raw_record_ms": percentiles(baseline),
                    "profile_after_raw_record_ms": percentiles(
                        [mine - theirs for mine, theirs in zip(profile, baseline, strict=True)]
                    ),
                    "ratio_p50": round(percentiles(profile)["p50"] / percentiles(baseline)["p50"], 2),
                }
        finally:
            reading.cancel()
            await consumer.stop()
    return figures


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--poll-ms", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-") as name:
        base = Path(name)
        base.chmod(0o711)  # PostgreSQL is another user
        connect = Connect(Kafka(base / "kafka"), base / "postgres")
        try:
            connect.kafka.start()
            connect.start()
            with psycopg.connect(connect.dsn, autocommit=True) as connection:
                connection.execute(TABLE)
                connection.execute(FILL.encode())
            config = json.loads(blocks("json")[0])["config"]
            settings = {
                "database.port": str(connect.postgres_port), "table.include.list": "public.customers",
                "poll.interval.ms": str(options.poll_ms),
            }  # fmt: skip
            connect.put_connector("crm", config | settings)
            path = base / "headwater.toml"
            path.write_text(blocks("toml")[0].replace("127.0.0.1:9092", connect.kafka.address))
            with serving(base / "data", "--config", str(path)) as server:
                figures = asyncio.run(measure(connect, server.grpc, options.rates, options.probes))
        finally:
            connect.stop()
            connect.kafka.stop()
    told = {"probes": options.probes, "rows": ROWS, "poll_interval_ms": options.poll_ms, "exactly_once": True}
    report("debezium", {**told, **figures})


if __name__ == "__main__":
    main()
