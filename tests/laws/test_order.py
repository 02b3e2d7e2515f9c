"""Law 2, order, through the whole flow: repeated, delayed and interleaved changes end in the same state."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from headwater.ingest.v1 import service_pb2, service_pb2_grpc
from services.embedded import builds
from tests.conftest import RunService

ROOT = Path(__file__).parents[2]
TABLES = {"embedder": {"tables": [{"source": "inventory", "entity": "hotels", "title": "{name}",
                                   "text": "{name}: {description}", "live": ["rooms_left"]}]}}  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    command = [sys.executable, "benchmarks/generate_changes.py", "--events", "600", "--records", "200"]
    options = ["--updates", "0.50", "--deletes", "0.10", "--bytes", "300", "--seed", "11"]
    made = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, check=True).stdout.splitlines()
    return made + [hotel(number) for number in range(60)]


def hotel(number: int) -> bytes:
    """Ten hotels in six versions; of one the last is a delete."""
    name = number % 10
    row = {"id": name, "name": f"Hotel {name}", "description": f"Version {number // 20}.", "rooms_left": number}
    gone = number == 59
    change = {"source": "inventory", "entity": "hotels", "op": "delete" if gone else "update", "key": {"id": name},
              "position": number, "time": f"2026-11-01T00:00:{number:02d}Z"}  # fmt: skip
    return json.dumps(change if gone else {**change, "after": row}).encode()


async def hashes(run_service: RunService, data: Path, requests: Sequence[Sequence[bytes]]) -> dict[str, str]:
    """Push requests into a new installation; return the state hash of each store, and see that the balance holds."""
    async with run_service(*builds(), data=data, settings_tables=TABLES) as running:
        ingest = service_pb2_grpc.IngestServiceStub(running.channel)
        operations = operations_pb2_grpc.OperationsServiceStub(running.channel)
        sent = [service_pb2.PushRawRequest(format="native", records=records) for records in requests]
        async for response in ingest.PushRaw(iter(sent)):
            assert response.dead_lettered == 0, list(response.errors)
        await running.runtime.operations.settle()
        assert (await operations.GetBalance(pb.GetBalanceRequest())).balanced
        status = await operations.GetStatus(pb.GetStatusRequest())
        return {store.store: store.hash for store in status.stores}


def cut(chance: random.Random, lines: Sequence[bytes]) -> list[list[bytes]]:
    """Cut lines into requests of random sizes."""
    requests, start = [], 0
    while start < len(lines):
        stop = start + chance.randint(1, 90)
        requests.append(list(lines[start:stop]))
        start = stop
    return requests


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_repeated_delayed_and_interleaved_changes_end_in_the_same_state(
    run_service: RunService, tmp_path: Path, lines: list[bytes], seed: int
) -> None:
    chance = random.Random(seed)
    calm = await hashes(run_service, tmp_path / "calm", [lines])
    mixed = lines + chance.choices(lines, k=300)
    chance.shuffle(mixed)
    assert await hashes(run_service, tmp_path / "mixed", cut(chance, mixed)) == calm
