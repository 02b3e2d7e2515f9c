"""What the laws of a cluster are tried on: input for all services, a feeder that never gives up, an embedded twin."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server import serving
from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from headwater.feedback.v1 import events_pb2 as feedback_pb2
from headwater.ingest.v1 import service_pb2, service_pb2_grpc
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Message, Record, key_of, message_of
from services.kernel.service import CHANNEL_OPTIONS
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from tests.engines.cluster import Cluster, is_gone

ROOT = Path(__file__).parents[2]
OUTPUTS = (topics.ASSIGNMENTS, topics.DECISIONS, topics.PROFILES, topics.JOBS, topics.INDEXED, topics.KPIS)
TAKEN_IN = {
    "identity-graph": (topics.CHANGES,),
    "profile-rows": (topics.CHANGES, topics.ASSIGNMENTS),
    "profile-fold": (topics.TOUCHED,),
    "embedder": (topics.DOCUMENTS, topics.CHANGES, topics.RESULTS),
    "gateway-turns": (topics.CONVERSATIONS,),
    "feedback-answers": (topics.CONVERSATIONS, topics.RATINGS, topics.CLASSIFIED),
    "feedback-kpis": (topics.ANSWERS_TOUCHED,),
}
"""What the groups take in that make the stores; none of it is compacted as long as a test takes."""
START_MS = 1_789_999_200_000  # an hour begins
TOLD_AT_ONCE = 5
CONFIG = """
[feedback]
classifier = "off"  # it says when it judged, which is another time in every installation

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


def conversations(count: int) -> list[Message]:
    """Answers that were given, three a conversation, and what was said of every other one."""
    messages = []
    for number in range(count):
        answer, asked_ms = f"a{number}", START_MS + 7_000 * number
        turn = gateway_pb2.TurnCompleted(
            tenant="default", answer_id=answer, conversation_id=f"c{number // 3}", profile_id=f"p{number % 11}",
            model=f"m{number % 3}", question=f"Why ({number})?", answered=number % 5 > 0, latency_ms=100 + number,
        )  # fmt: skip
        turn.asked_at.FromMilliseconds(asked_ms)
        key, name = key_of("", turn.conversation_id), f"test:{answer}"
        messages.append(message_of(topics.CONVERSATIONS, key, turn, asked_ms)._replace(event_id=name))
        if number % 2:
            rating = feedback_pb2.AnswerRated(tenant="default", answer_id=answer, scale=1 + number % 5)
            rating.rated_at.FromMilliseconds(asked_ms + 5_000)
            told = message_of(topics.RATINGS, key_of("", answer), rating, asked_ms + 5_000)
            messages.append(told._replace(event_id=f"{name}:rated"))
    return messages


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

    def __init__(self, requests: Sequence[list[bytes]], pause_s: float = 0.0) -> None:
        """Take the requests, and how long to wait after each."""
        self.requests, self.pause_s = requests, pause_s
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
                assert is_gone(error), error
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
                await asyncio.sleep(self.pause_s)


@asynccontextmanager
async def log_of(cluster: Cluster) -> AsyncIterator[KafkaLog]:
    """Connect to the cluster's log, past the network that is interrupted."""
    log = KafkaLog(KafkaSettings(cluster.engines.kafka.address, prefix=f"{cluster.prefix}.", replication=1))
    await log.start()
    yield log
    await log.close()


async def tell(cluster: Cluster, messages: Sequence[Message], pause_s: float = 0.0) -> None:
    """Append events in order, a few at a time; those that are not acknowledged are appended again, until they are."""
    async with log_of(cluster) as log:
        for start in range(0, len(messages), TOLD_AT_ONCE):
            while True:
                try:
                    await log.append(messages[start : start + TOLD_AT_ONCE])
                except UnavailableError:
                    await asyncio.sleep(0.1)
                else:
                    break
            await asyncio.sleep(pause_s)


def ingesters(cluster: Cluster) -> Callable[[], list[str]]:
    """Return what tells where ingest answers just now."""
    return lambda: [worker.address for worker in cluster.workers["ingest"] if worker.is_alive]


async def twin(
    folder: Path,
    requests: Sequence[list[bytes]],
    told: Sequence[Message] = (),
    ask: Callable[[grpc.aio.Channel], Awaitable[Any]] | None = None,
) -> tuple[dict[str, str], Any]:
    """Give an embedded installation the same, undisturbed; returns its state hashes, and what `ask` found there."""
    config = folder.with_suffix(".toml")
    config.write_text(CONFIG)
    database = Database(folder)
    log = SqliteLog(database)
    await log.create_topics(topics.TOPICS)
    await log.append(told)
    database.close()
    with serving(folder, "--config", str(config)) as server:
        await Feeder(requests).feed(lambda: [server.grpc])
        async with grpc.aio.insecure_channel(server.grpc, options=CHANNEL_OPTIONS) as channel:
            stub = operations_pb2_grpc.OperationsServiceStub(channel)
            checks = (await stub.Verify(pb.VerifyRequest())).checks  # which waits until all has been processed
            assert_all_hold(checks)
            hashes = {store.store: store.hash for store in (await stub.GetStatus(pb.GetStatusRequest())).stores}
            return hashes, await ask(channel) if ask else None


def assert_balanced(groups: Sequence[pb.GroupBalance]) -> None:
    """Check conservation: of every group's inputs, it is known what became of them."""
    for group in groups:
        assert group.inputs == group.applied + group.superseded + group.waiting + group.dead_lettered, group
        assert not group.dead_lettered, group


def assert_all_hold(checks: Sequence[pb.Check]) -> None:
    """Check that there were checks, and that all that was checked holds."""
    assert checks
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def inputs(groups: Sequence[pb.GroupBalance]) -> dict[str, int]:
    """Return how many inputs each group has had."""
    return {group.group: group.inputs for group in groups if group.inputs}


async def assert_all_taken_in_once(cluster: Cluster, groups: Sequence[pb.GroupBalance]) -> None:
    """Check that every group has counted each record of its topics once, and that no event was published twice."""
    counts: dict[str, int] = {}
    async with log_of(cluster) as log:
        for topic in {*OUTPUTS, *(topic for taken in TAKEN_IN.values() for topic in taken)}:
            ids = [record.event_id async for record in _all(log, topic)]
            counts[topic] = len(ids)
            repeated = [name for name, count in Counter(ids).items() if count > 1]
            assert topic not in OUTPUTS or not repeated, (topic, repeated[:5])
    inputs = {group.group: group.inputs for group in groups if group.group in TAKEN_IN}
    there = {group: sum(counts[topic] for topic in taken) for group, taken in TAKEN_IN.items()}
    assert inputs == there, (inputs, there)


async def _all(log: KafkaLog, topic: str) -> AsyncIterator[Record]:
    for partition in range(log.partitions(topic)):
        offset = 0
        while records := await log.read(topic, partition, offset):
            offset = records[-1].offset + 1
            for record in records:
                yield record
