"""What the laws of a cluster are tried on: input for all services, a feeder that never gives up, an embedded twin."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server import serving
from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from headwater.ingest.v1 import service_pb2, service_pb2_grpc
from services.kernel import topics
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.service import CHANNEL_OPTIONS
from tests.engines.cluster import GONE, Cluster

ROOT = Path(__file__).parents[2]
OUTPUTS = (topics.ASSIGNMENTS, topics.DECISIONS, topics.PROFILES, topics.JOBS, topics.INDEXED)
CONFIG = """
[[embedder.tables]]
source = "inventory"
entity = "hotels"
title = "{name}"
text = "{description}"

[[embedder.tables]]
source = "library"
entity = "papers"
title = "{title}"
text = "{text}"
"""
CORPUS = ROOT / "benchmarks" / "data" / "cranfield"


def changes(count: int, seed: int = 3) -> list[bytes]:
    """Changes of people's records, as in the laws of the embedded installation."""
    command = [sys.executable, "benchmarks/generate_changes.py", "--events", str(count), "--records", str(count // 5)]
    options = ["--updates", "0.30", "--deletes", "0.05", "--bytes", "300", "--seed", str(seed)]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, check=True).stdout.splitlines()


def hotels(count: int, rows: int = 20) -> list[bytes]:
    """Changes of rows that become documents: each is inserted, and then has ever new versions."""
    return [
        json.dumps({
            "source": "inventory", "entity": "hotels", "op": "update" if n >= rows else "insert",
            "key": {"id": n % rows}, "position": n, "time": "2026-11-01T00:00:00Z",
            "after": {
                "id": n % rows, "name": f"Hotel {n % rows}", "description": f"Version {n // rows} of quiet house {n}."
            },
        }).encode()
        for n in range(count)
    ]  # fmt: skip


def papers(count: int) -> list[bytes]:
    """Documents of a judged collection, as rows: with times and positions, so that both ways to run get the same."""
    documents = map(json.loads, (CORPUS / "corpus.jsonl").read_bytes().splitlines()[:count])
    return [
        json.dumps({
            "source": "library", "entity": "papers", "op": "insert", "key": {"id": document["_id"]}, "position": n,
            "time": "2026-11-01T00:00:00Z",
            "after": {"id": document["_id"], "title": document["title"], "text": document["text"]},
        }).encode()
        for n, document in enumerate(documents)
    ]  # fmt: skip


def questions(count: int) -> list[str]:
    """Questions to it."""
    return [json.loads(line)["text"] for line in (CORPUS / "queries.jsonl").read_bytes().splitlines()[:count]]


def mixed(*kinds: Sequence[bytes], size: int = 50) -> list[list[bytes]]:
    """Mix several kinds of lines evenly, and cut them into requests; each kind stays in order."""
    placed = [(number / len(lines), line) for lines in kinds for number, line in enumerate(lines)]
    lines = [line for _, line in sorted(placed, key=lambda each: each[0])]
    return [lines[start : start + size] for start in range(0, len(lines), size)]


class Feeder:
    """Pushes requests in order; one that is not acknowledged is pushed again, until it is.

    Attributes:
        next: the request that comes next.
    """

    def __init__(self, requests: Sequence[list[bytes]]) -> None:
        self.requests = requests
        self.next = 0

    async def feed(self, addresses: Callable[[], Sequence[str]]) -> None:
        """Push all that is left, to whoever answers."""
        turn = 0
        while self.next < len(self.requests):
            served = addresses()
            if not served:
                await asyncio.sleep(0.1)
                continue
            turn += 1
            try:
                await self._feed(served[turn % len(served)])
            except grpc.aio.AioRpcError as error:
                assert error.code() in GONE, error
                await asyncio.sleep(0.1)

    async def _feed(self, address: str) -> None:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.IngestServiceStub(channel)
            while self.next < len(self.requests):
                records = self.requests[self.next]
                request = service_pb2.PushRawRequest(format="native", records=records)
                async for response in stub.PushRaw(iter([request]), timeout=30.0):
                    assert response.accepted == len(records), list(response.errors)
                self.next += 1


def ingesters(cluster: Cluster) -> Callable[[], list[str]]:
    """Return what tells where ingest answers just now."""
    return lambda: [worker.address for worker in cluster.workers["ingest"] if worker.is_alive]


async def twin(
    folder: Path,
    requests: Sequence[list[bytes]],
    ask: Callable[[grpc.aio.Channel], Awaitable[Any]] | None = None,
) -> tuple[dict[str, str], Any]:
    """Give an embedded installation the same, undisturbed; returns its state hashes, and what `ask` found there."""
    config = folder.with_suffix(".toml")
    config.write_text(CONFIG)
    with serving(folder, "--config", str(config)) as server:
        await Feeder(requests).feed(lambda: [server.grpc])
        async with grpc.aio.insecure_channel(server.grpc, options=CHANNEL_OPTIONS) as channel:
            stub = operations_pb2_grpc.OperationsServiceStub(channel)
            checks = (await stub.Verify(pb.VerifyRequest())).checks  # which waits until all has been processed
            assert all(check.ok for check in checks), [check for check in checks if not check.ok]
            hashes = {store.store: store.hash for store in (await stub.GetStatus(pb.GetStatusRequest())).stores}
            return hashes, await ask(channel) if ask else None


def assert_balanced(groups: Sequence[pb.GroupBalance]) -> None:
    """Check conservation: of every group's inputs, it is known what became of them."""
    for group in groups:
        assert group.inputs == group.applied + group.superseded + group.waiting + group.dead_lettered, group
        assert not group.dead_lettered, group


async def repeated_event_ids(cluster: Cluster) -> dict[str, list[str]]:
    """Return event ids that a topic of outputs holds more than once, read as any consumer would."""
    log = KafkaLog(KafkaSettings(cluster.engines.kafka.address, prefix=f"{cluster.prefix}.", replication=1))
    await log.start()
    found = {}
    for topic in OUTPUTS:
        ids: Counter[str] = Counter()
        for partition in range(log.partitions(topic)):
            offset = 0
            while records := await log.read(topic, partition, offset):
                offset = records[-1].offset + 1
                ids.update(record.event_id for record in records)
        if repeated := [name for name, count in ids.items() if count > 1]:
            found[topic] = repeated[:5]
    await log.close()
    return found
