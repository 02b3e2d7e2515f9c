"""Law 3, once: kill `headwater up` at random instants under load; every input has taken effect exactly once."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.server import Server, serving
from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from headwater.ingest.v1 import service_pb2, service_pb2_grpc
from services.kernel import topics
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog

KILLS = int(os.environ.get("HEADWATER_KILLS", "50"))
EVENTS = 20_000
LINES_PER_REQUEST = 50
SEED = 20261125
ROOT = Path(__file__).parents[2]


class Feeder:
    """Pushes lines in order; after a crash it goes on with the first request that was not acknowledged."""

    def __init__(self, lines: list[bytes]) -> None:
        self.requests = [lines[i : i + LINES_PER_REQUEST] for i in range(0, len(lines), LINES_PER_REQUEST)]
        self.next = 0
        self.sent = 0

    async def feed(self, address: str) -> None:
        """Push until everything is acknowledged or the server is gone."""
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.IngestServiceStub(channel)
            try:
                while self.next < len(self.requests):
                    request = service_pb2.PushRawRequest(format="native", records=self.requests[self.next])
                    self.sent += 1
                    async for response in stub.PushRaw(iter([request])):
                        assert response.accepted == len(request.records), list(response.errors)
                    self.next += 1
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error


def documents(count: int) -> list[bytes]:
    """Rows that become documents, several versions each, so that the embedder is killed at work too."""
    return [
        json.dumps({
            "source": "inventory", "entity": "hotels", "op": "update" if n >= 20 else "insert", "key": {"id": n % 20},
            "after": {"id": n % 20, "name": f"Hotel {n % 20}", "description": f"Version {n // 20} of a quiet house."},
            "position": n, "time": "2026-11-01T00:00:00Z",
        }).encode()
        for n in range(count)
    ]  # fmt: skip


async def status(address: str) -> dict[str, str]:
    """Wait until everything is processed, and return the state hash of every store."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = operations_pb2_grpc.OperationsServiceStub(channel)
        response = await stub.Verify(pb.VerifyRequest())
        assert all(check.ok for check in response.checks), [c for c in response.checks if not c.ok]
        return {store.store: store.hash for store in (await stub.GetStatus(pb.GetStatusRequest())).stores}


@pytest.fixture
def lines() -> list[bytes]:
    command = [sys.executable, "benchmarks/generate_changes.py", "--events", str(EVENTS), "--records", str(EVENTS // 5)]
    options = ["--updates", "0.30", "--deletes", "0.05", "--bytes", "300", "--seed", "3"]
    made = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, check=True).stdout.splitlines()
    rows = documents(200)
    every = len(made) // len(rows)
    return [
        line
        for n, change in enumerate(made)
        for line in ([rows[n // every]] if n % every == 0 and n // every < len(rows) else []) + [change]
    ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_input_takes_effect_once_whatever_the_instants_of_the_kills(tmp_path: Path, lines: list[bytes]) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text(
        '[[embedder.tables]]\nsource = "inventory"\nentity = "hotels"\ntitle = "{name}"\ntext = "{description}"\n'
    )
    chance = random.Random(SEED)
    feeder = Feeder(lines)
    data, kills = tmp_path / "killed", 0
    while kills < KILLS or feeder.next < len(feeder.requests):
        server = Server(data, "--config", str(config))
        try:
            asyncio.run(_feed_for(feeder, server, chance.uniform(0.0, 0.6) if kills < KILLS else 600.0))
        finally:
            server.kill()
        kills += 1
        if feeder.next >= len(feeder.requests) and kills < KILLS:
            feeder.next = 0  # all of it once more: repetitions must do nothing
    with serving(data, "--config", str(config)) as server:
        killed = asyncio.run(status(server.grpc))
    calm_feeder = Feeder(lines)
    with serving(tmp_path / "calm", "--config", str(config)) as server:
        asyncio.run(calm_feeder.feed(server.grpc))
        calm = asyncio.run(status(server.grpc))
    assert killed == calm
    assert asyncio.run(_repeated_event_ids(data)) == {}
    print(f"{kills} kills, {feeder.sent} requests of {LINES_PER_REQUEST} lines, seed {SEED}")


async def _feed_for(feeder: Feeder, server: Server, seconds: float) -> None:
    """Feed until the time is over, then kill the server while requests are under way."""
    feeding = asyncio.ensure_future(feeder.feed(server.grpc))
    await asyncio.wait([feeding], timeout=seconds)
    server.process.kill()
    await feeding


async def _repeated_event_ids(data: Path) -> dict[str, Any]:
    """Return event ids that a topic holds more than once."""
    database = Database(data)
    log = SqliteLog(database)
    found = {}
    for topic in (topics.ASSIGNMENTS, topics.PROFILES, topics.JOBS, topics.INDEXED, topics.DECISIONS):
        ids: Counter[str] = Counter()
        for partition in range(log.partitions(topic)):
            offset = 0
            while records := await log.read(topic, partition, offset):
                offset = records[-1].offset + 1
                ids.update(record.event_id for record in records)
        if repeated := [name for name, count in ids.items() if count > 1]:
            found[topic] = repeated[:5]
    database.close()
    return found
