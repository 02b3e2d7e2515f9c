"""How soon a change is seen: file written → found by search, change pushed → seen by ask; and queries under load.

    python -m benchmarks.freshness [--rounds 200]

Measured by a client of the running server, from just before the write to the answer that shows it, with durability on.
The named baseline, measured in the same run: the same question asked when nothing has changed, which is the part of
each figure that is not freshness.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from benchmarks.report import percentiles, report
from benchmarks.server import serving
from benchmarks.throughput import drive, generate
from headwater.embedder.v1 import service_pb2 as embedder_pb2, service_pb2_grpc as embedder_grpc
from headwater.ingest.v1 import events_pb2, service_pb2 as ingest_pb2, service_pb2_grpc as ingest_grpc
from headwater.rag_gateway.v1 import service_pb2 as gateway_pb2, service_pb2_grpc as gateway_grpc
from services.kernel.service import CHANNEL_OPTIONS

WARM_UP = 10
TIMEOUT_S = 30.0


async def file_to_search(channel: Any, folder: Path, rounds: int) -> list[float]:
    """Write a file, then search until it is found; milliseconds a round."""
    stub = embedder_grpc.EmbedderServiceStub(channel)
    times = []
    for number in range(rounds + WARM_UP):
        word = f"quokka{number:05d}"
        started = time.perf_counter()
        (folder / f"note-{number}.txt").write_text(f"The code word of day {number} at the harbour office is {word}.\n")
        request = embedder_pb2.SearchRequest(query=word, top_k=1)
        while not any(word in hit.text for hit in (await stub.Search(request)).hits):
            if time.perf_counter() - started > TIMEOUT_S:
                raise RuntimeError(f"{word} was not found within {TIMEOUT_S} s")
            await asyncio.sleep(0.001)
        times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.05)  # let the embedder fall idle again
    return times[WARM_UP:]


def customer(number: int) -> events_pb2.Change:
    """Return a change of the one customer, to a city that names the round."""
    row = {"id": 1, "email": "ada@bench.example", "full_name": "Ada Bench", "home_city": f"Town{number}"}
    return events_pb2.Change(
        source="bench", entity="customers", operation=events_pb2.OPERATION_SNAPSHOT,
        key_json='{"id": 1}', after_json=json.dumps(row),
    )  # fmt: skip


async def ask(stub: Any, at_least: str) -> gateway_pb2.Answer:
    """Ask for the customer's city."""
    question = gateway_pb2.Question(text="What is my home city?", at_least=at_least)
    getattr(question, "as").kind, getattr(question, "as").value = "email", "ada@bench.example"
    answer = gateway_pb2.Answer()
    async for piece in stub.Ask(gateway_pb2.AskRequest(question=question)):
        if piece.WhichOneof("piece") == "answer":
            answer = piece.answer
    return answer


async def push_to_ask(channel: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Push a change, then ask with its token; milliseconds to the answer, and of the same question with nothing new."""
    ingest, gateway = ingest_grpc.IngestServiceStub(channel), gateway_grpc.RagGatewayServiceStub(channel)
    times, idle = [], []
    for number in range(rounds + WARM_UP):
        started = time.perf_counter()
        request = ingest_pb2.PushRequest(changes=[customer(number)], request_id=str(number))
        (pushed,) = [response async for response in ingest.Push(iter([request]))]
        answer = await ask(gateway, pushed.position_token)
        times.append((time.perf_counter() - started) * 1000)
        if f"Town{number}" not in answer.text:
            raise RuntimeError(f"round {number}: the answer has not seen the change: {answer.text}")
        started = time.perf_counter()
        await ask(gateway, "")
        idle.append((time.perf_counter() - started) * 1000)
    return times[WARM_UP:], idle[WARM_UP:]


async def queries_under_load(channel: Any, load: Any) -> list[float]:
    """Search and ask in turn while a bulk load runs; milliseconds each."""
    search, gateway = embedder_grpc.EmbedderServiceStub(channel), gateway_grpc.RagGatewayServiceStub(channel)
    loading, times = asyncio.ensure_future(load), []
    while not loading.done():
        for call in (search.Search(embedder_pb2.SearchRequest(query="harbour office code word")), ask(gateway, "")):
            started = time.perf_counter()
            await call
            times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.02)
    await loading
    return times


async def measure(address: str, folder: Path, changes: Path, rounds: int) -> dict[str, Any]:
    """Run all three against a server."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        found = await file_to_search(channel, folder, rounds)
        seen, idle = await push_to_ask(channel, rounds)
        loaded = await queries_under_load(channel, drive(address, changes))
    return {
        "file_written_to_search_ms": percentiles(found),
        "pushed_to_ask_ms": percentiles(seen),
        "baseline_ask_nothing_new_ms": percentiles(idle),
        "ratio_pushed_to_baseline_p50": round(percentiles(seen)["p50"] / percentiles(idle)["p50"], 2),
        "query_during_bulk_ingest_ms": percentiles(loaded),
        "queries_during_bulk_ingest": len(loaded),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--bulk-events", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        watched, config, changes = base / "notes", base / "headwater.toml", base / "changes.jsonl"
        watched.mkdir()
        config.write_text(f'[[ingest.folders]]\npath = "{watched}"\nsource = "notes"\n')
        generate(changes, options.bulk_events, options.bulk_events // 5)
        with serving(base / "warm"):
            pass  # the model is built once per machine, and the page cache is warm
        with serving(base / "data", "--config", str(config)) as server:
            ready_s, ready_mib = server.ready_s, server.memory_mib("VmRSS")
            figures = asyncio.run(measure(server.grpc, watched, changes, options.rounds))
            peak_mib = server.memory_mib()
        up = {"rounds": options.rounds, "up_ready_s": round(ready_s, 2), "up_ready_mib": round(ready_mib)}
        report("freshness", {**up, **figures, "peak_mib": round(peak_mib)})


if __name__ == "__main__":
    main()
