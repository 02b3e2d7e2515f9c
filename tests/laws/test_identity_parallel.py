"""The exactness law with many workers: what eight of them make of one graph at the same time is the batch answer."""

import asyncio
import random
from pathlib import Path

import pytest

from benchmarks.identity import records
from benchmarks.identity_parallel import Done, Feed, feed_of, groups_of, newest, persons, share, shuffled, work_through
from services.identity_graph.model import Kinds
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.log import Record, key_of
from tests.engines.neo4j import Neo4jServer, neo4j_engine
from tests.laws.identity_neo4j import Worker, opened
from tests.laws.identity_world import CHAINS, SETTINGS, Event, Type, World, encode, from_scratch

__all__ = ["neo4j_engine"]
pytestmark = [pytest.mark.slow, pytest.mark.engine]
WORKERS = 8
DEFAULTS = Settings.from_config({})


async def all_work(workers: list[Worker], shares: list[Feed], batch: int, settings: Settings) -> list[Done]:
    return await asyncio.gather(
        *(work_through(worker.adapters, part, batch, settings) for worker, part in zip(workers, shares, strict=True))
    )


async def test_a_shuffled_stream_with_heavy_overlap(neo4j_engine: Neo4jServer, tmp_path: Path) -> None:
    inputs = shuffled(records(5_000))
    async with opened(neo4j_engine.uri, tmp_path / "local", Kinds(DEFAULTS), WORKERS, WORKERS) as workers:
        done = await all_work(workers, share(feed_of(inputs, WORKERS), WORKERS), 100, DEFAULTS)
        found = await workers[0].hash()
    assert groups_of(newest(done)) == persons(inputs)
    embedded = World(tmp_path / "embedded", DEFAULTS)
    for start in range(0, len(inputs), 500):
        part = [record._replace(offset=start + n) for n, record in enumerate(inputs[start : start + 500])]
        await embedded.process(part)
    assert found == await embedded.hash()
    embedded.close()


def history(rng: random.Random, size: int) -> list[Event]:
    """Few values on few records, so that everybody meets: quarantine and release, chains, truncations."""
    events = []
    for number in range(size):
        entity, key, time_ms = rng.choice(["leads", "customers"]), rng.randint(1, 25), rng.randint(1, 9) * 1000
        draw = rng.random()
        if draw < 0.01:
            events.append(Event(number, Type.OPERATION_TRUNCATE, entity, 0, {}, (), time_ms))
        elif draw < 0.2:
            events.append(Event(number, Type.OPERATION_DELETE, entity, key, {}, (), time_ms))
        else:
            row: dict[str, object] = {"id": key}
            for name, values, chance in (
                ("email", [f"{n}@x.io" for n in range(14)], 0.7),
                ("phone", [f"+1415555{n:04d}" for n in range(1000, 1014)], 0.5),
                ("device_id", ["kiosk", "d2", "d3"], 0.2),
                ("ssn", ["111-22-3334", "111-22-3335", "111-22-3336"], 0.1),
                ("name", ["Ada", "Bob"], 0.4),
            ):
                if rng.random() < chance:
                    row[name] = rng.choice(values)
            events.append(Event(number, Type.OPERATION_UPDATE, entity, key, row, (), time_ms))
    return events


def feed(events: list[Event]) -> Feed:
    parts: dict[int, list[Record]] = {partition: [] for partition in range(WORKERS)}
    for event in events:
        for partition, change in encode(event, WORKERS):
            key = key_of("", change.record) if change.record else None
            value, kind = change.SerializeToString(), change.DESCRIPTOR.full_name
            offset = len(parts[partition])
            parts[partition].append(Record(topics.CHANGES, partition, offset, key, value, kind, "", event.time_ms))
    return parts


@pytest.mark.parametrize("limits", [SETTINGS, CHAINS], ids=["low limits", "chains"])
@pytest.mark.parametrize("seed", range(3))
async def test_few_values_that_everybody_touches(
    neo4j_engine: Neo4jServer, tmp_path: Path, limits: Settings, seed: int
) -> None:
    rng = random.Random(seed)
    events = history(rng, 250)
    async with opened(neo4j_engine.uri, tmp_path / "local", Kinds(limits), WORKERS, WORKERS) as workers:
        done = await all_work(workers, share(feed(rng.sample(events, len(events))), WORKERS), 3, limits)
        told, quarantined = from_scratch(events, limits)
        assert newest(done) == {record: now.profile for record, now in told.items()}
        world = World(tmp_path, limits, workers[0])
        assert (await world.check_tables()).crowds == quarantined
        found = await workers[0].hash()
    embedded = World(tmp_path / "embedded", limits)
    await embedded.deliver(events)
    assert found == await embedded.hash()
    embedded.close()
