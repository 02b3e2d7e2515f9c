"""Many workers on one graph in Neo4j: `python -m benchmarks.identity_parallel [--changes N] [--workers N …]`.

One stream of changes, shuffled, so that the records of every person are all over the partitions and every batch meets
the others' persons. Workers are processes; each takes in its partitions, batch by batch, as the processor's loop does,
without a log. Afterwards the graph must be what the embedded one makes of the same changes in order: the same hash, and
the same persons as a plain union of what shares an identifier. The embedded graph's time is that of the same run.
"""

import argparse
import asyncio
import multiprocessing
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.identity import records
from benchmarks.report import report
from headwater.identity_graph.v1 import events_pb2
from services.identity_graph import consumer
from services.identity_graph.app import changes_processor, sqlite_adapters
from services.identity_graph.changes import Effect, read_change
from services.identity_graph.columns import Extractor
from services.identity_graph.model import Kinds
from services.identity_graph.neo4j_adapters import neo4j_adapters
from services.identity_graph.neo4j_client import Neo4j
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.identity_graph.ports import Adapters
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.log import Message, Progress, Record, Tally, partition_of
from services.kernel.processor import Processor
from services.kernel.sqlite import Database

PARTITIONS = 8
SETTINGS = Settings.from_config({})
KINDS = Kinds(SETTINGS)
RETRY_S = 0.05
ATTEMPTS = 200
WARM_UP = 10_000  # changes until the server has compiled what it runs

Feed = Mapping[int, Sequence[Record]]
_shares: list[Feed] = []  # of the workers, in each of their processes


class Told(NamedTuple):
    """What is told of a record: a number that grows, and its profile; empty when it is nobody's."""

    generation: int
    profile: str


class Done(NamedTuple):
    """What a worker did: how often it had to begin a batch again, and what it told of each record."""

    again: int
    told: dict[str, list[Told]]


def feed_of(inputs: Iterable[Record], partitions: int = PARTITIONS) -> Feed:
    """Return the inputs by partition, with the offsets that they have there."""
    feed: dict[int, list[Record]] = defaultdict(list)
    for record in inputs:
        partition = partition_of(record.key or b"", partitions)
        feed[partition].append(record._replace(partition=partition, offset=len(feed[partition])))
    return feed


def shuffled(inputs: Sequence[Record], seed: int = 1) -> list[Record]:
    """Return the inputs in an order that no source would send them in."""
    mixed = list(inputs)
    random.Random(seed).shuffle(mixed)
    return mixed


async def work_through(adapters: Adapters, feed: Feed, batch: int, settings: Settings = SETTINGS) -> Done:
    """Take in partitions of the feed, in turn, as one worker."""
    work = changes_processor(adapters, settings)
    done = Done(0, defaultdict(list))
    for start in range(0, max((len(part) for part in feed.values()), default=0), batch):
        for part in feed.values():
            if records_ := part[start : start + batch]:
                again, outputs = await _take_in(work, records_)
                done = done._replace(again=done.again + again)
                _note(done.told, outputs)
    return done


async def _take_in(work: Processor[consumer.Work], batch: Sequence[Record]) -> tuple[int, list[Message]]:
    """Take in a batch, again and again where others are in the way; return how often again, and its outputs."""
    assert work.finish is not None
    assert work.ledger is not None
    for attempt in range(ATTEMPTS):
        try:
            async with work.ledger.unit():
                state = await work.store.load(batch)
                for record in batch:
                    work.decide(state, record)
                outputs = list(work.finish(state))
                start, end = batch[0].offset, batch[-1].offset + 1
                progress = Progress(work.name, topics.CHANGES, batch[0].partition, start, end, outputs, Tally())
                await work.store.save(state, progress)
                await work.ledger.record(progress)
        except UnavailableError:
            await asyncio.sleep(RETRY_S * random.random())
        else:
            return attempt, outputs
    raise UnavailableError("a batch never came to its end")


def _note(told: dict[str, list[Told]], outputs: Iterable[Message]) -> None:
    for message in outputs:
        if message.topic == topics.ASSIGNMENTS:
            event = events_pb2.RecordAssigned.FromString(message.value or b"")
            told[event.record].append(Told(event.generation, event.profile_id))


def newest(done: Iterable[Done]) -> dict[str, str]:
    """Return the profile of every record, as a reader of all workers' assignments knows it; the highest number counts.

    Raises:
        ValueError: a record was told of twice under one number.
    """
    known: dict[str, list[Told]] = defaultdict(list)
    for each in done:
        for record, told in each.told.items():
            known[record].extend(told)
    for record, told in known.items():
        if len({one.generation for one in told}) != len(told):
            raise ValueError(f"{record} was told of twice under one generation: {told}")
    return {record: profile for record, told in known.items() if (profile := max(told).profile)}


def persons(inputs: Iterable[Record]) -> set[frozenset[str]]:
    """Return who is who, worked out from nothing: records that share an identifier, directly or not, are one person."""
    extractor = Extractor(SETTINGS)
    current: dict[str, Any] = {}
    for record in inputs:
        delta = read_change(record, extractor)
        if delta.key not in current or delta.position > current[delta.key].position:
            current[delta.key] = delta
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    live = {key: delta for key, delta in current.items() if delta.effect is Effect.HOLD}
    for key, delta in live.items():
        for link in KINDS.content(delta.tenant, delta.text).links:
            parent[root(f"r{key}")] = root(f"l{link}")
    groups: dict[str, set[str]] = defaultdict(set)
    for key in live:
        groups[root(f"r{key}")].add(key.partition("\x1f")[2])
    return {frozenset(group) for group in groups.values()}


def groups_of(profiles: Mapping[str, str]) -> set[frozenset[str]]:
    """Return who is who by what was told."""
    groups: dict[str, set[str]] = defaultdict(set)
    for record, profile in profiles.items():
        groups[profile].add(record)
    return {frozenset(group) for group in groups.values()}


async def embedded(folder: Path, inputs: Sequence[Record], batch: int) -> tuple[float, str]:
    """Work through the inputs, embedded; return the seconds and the hash."""
    database = Database(folder)
    adapters = sqlite_adapters(database, KINDS)
    work = changes_processor(adapters, SETTINGS)
    assert work.finish is not None
    started = time.monotonic()
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        async with database.transaction():
            state = await work.store.load(part)
            for record in part:
                work.decide(state, record)
            outputs = list(work.finish(state))
            await work.store.save(
                state, Progress(work.name, topics.CHANGES, 0, start, start + len(part), outputs, Tally())
            )
    seconds = time.monotonic() - started
    found = await adapters.life.hash(database.writer)
    database.close()
    return seconds, found


async def prepare(uri: str, database: Database) -> None:
    """Empty the server."""
    client = Neo4j(Neo4jSettings(uri))
    while (await client.ask("MATCH (n) WITH n LIMIT 10000 DETACH DELETE n RETURN count(*)"))[0][0]:
        pass
    await client.close()

    async def nothing() -> Any:
        for _ in ():
            yield ()

    adapters = neo4j_adapters({"uri": uri}, database, KINDS, lambda: PARTITIONS, "identity_graph")
    await adapters.life.start()
    await adapters.life.renew("", nothing())
    await adapters.life.close()


def run_worker(uri: str, number: int, batch: int) -> Done:
    """Be one worker, in a process of its own."""
    feed = _shares[number]

    async def run() -> Done:
        with tempfile.TemporaryDirectory() as folder:
            database = Database(Path(folder))
            adapters = neo4j_adapters({"uri": uri}, database, KINDS, lambda: PARTITIONS, "identity_graph")
            try:
                return await work_through(adapters, feed, batch)
            finally:
                await adapters.life.close()
                database.close()

    done = asyncio.run(run())
    return done._replace(told=dict(done.told))


def share(feed: Feed, workers: int) -> list[Feed]:
    """Share partitions out among workers."""
    return [{place: feed[place] for place in sorted(feed) if place % workers == number} for number in range(workers)]


async def graph_hash(uri: str, folder: Path) -> str:
    """Return the hash of the graph."""
    database = Database(folder)
    adapters = neo4j_adapters({"uri": uri}, database, KINDS, lambda: PARTITIONS, "identity_graph")
    try:
        return await adapters.life.hash(database.writer)
    finally:
        await adapters.life.close()
        database.close()


def measure(uri: str, inputs: Sequence[Record], workers: int, batch: int) -> tuple[float, list[Done]]:
    """Let workers take everything in; return the seconds, and what they did."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        asyncio.run(prepare(uri, database))
        database.close()
    shares = share(feed_of(inputs), workers)
    with multiprocessing.get_context("fork").Pool(workers, _shares.extend, [shares]) as pool:
        started = time.monotonic()
        done = pool.starmap(run_worker, [(uri, number, batch) for number in range(workers)], chunksize=1)
        return time.monotonic() - started, done


def run(uri: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and compare."""
    inputs = shuffled(records(options.changes))
    with tempfile.TemporaryDirectory() as folder:
        seconds, expected = asyncio.run(embedded(Path(folder), inputs, options.batch))
    truth = persons(inputs)
    figures: dict[str, Any] = {
        "changes": len(inputs),
        "persons": len(truth),
        "batch": options.batch,
        "embedded changes/s": round(len(inputs) / seconds),
    }
    measure(uri, inputs[:WARM_UP], PARTITIONS // 2, options.batch)
    for workers in options.workers:
        seconds, done = measure(uri, inputs, workers, options.batch)
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(graph_hash(uri, Path(folder)))
        figures[f"{workers} workers"] = {
            "changes/s": round(len(inputs) / seconds),
            "batches begun again": sum(each.again for each in done),
            "persons equal the batch answer": groups_of(newest(done)) == truth,
            "hash equals the embedded one": found == expected,
        }
    return figures


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--uri", default="", help="of a Neo4j that may be emptied; else one is started")
    options = parser.parse_args()
    if options.uri:
        report("identity_parallel", run(options.uri, options))
        return
    from tests.engines.neo4j import Neo4jServer

    with tempfile.TemporaryDirectory() as folder:
        server = Neo4jServer(Path(folder))
        server.start()
        try:
            report("identity_parallel", run(server.uri, options))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
