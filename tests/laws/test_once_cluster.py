"""Law 3, once, on a cluster: workers and engines are killed under load, and the network between them is interrupted."""

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from services.kernel.settings import SERVICES
from tests.engines.cluster import Cluster, Engines, Worker, cluster_in
from tests.laws import cluster_world as world

KILLS = int(os.environ.get("HEADWATER_KILLS", "3"))  # of each service
INTERRUPTION_S = 30.0
CHANGES, HOTELS = 2_000, 100
PAUSE_S = 2.0  # between two disturbances, at most
SEED = 20261125
SETTLE_S = 1_200.0
Disturbance = Callable[[], None]


def crash(worker: Worker) -> None:
    """Kill a worker; a supervisor starts it again at once."""
    worker.kill()
    worker.start()


def disturbances(cluster: Cluster) -> list[Disturbance]:
    """All that shall happen, in any order."""
    workers = [cluster.workers[service][0] for service in SERVICES for _ in range(KILLS)]
    engines = cluster.engines
    return [
        *(lambda worker=worker: crash(worker) for worker in workers),
        *(lambda name=name: engines.restart(name) for name in engines.each),
        lambda: engines.interrupt(INTERRUPTION_S),
    ]


async def feed_while(cluster: Cluster, requests: list[list[bytes]], all_of: list[Disturbance]) -> None:
    """Feed everything, over and over, until all has happened and everything is acknowledged once more."""
    chance = random.Random(SEED)
    chance.shuffle(all_of)
    feeder = world.Feeder(requests)
    feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
    for disturb in all_of:
        await asyncio.sleep(chance.uniform(0.0, PAUSE_S))
        if feeding.done():
            feeding.result()
            feeder.next = 0  # all of it once more: repetitions must do nothing
            feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
        await asyncio.to_thread(disturb)
    for worker in cluster.alive:
        await asyncio.to_thread(worker.ready)
    await feeding


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(7200)
async def test_every_input_takes_effect_once_whatever_dies(engines: Engines, tmp_path: Path) -> None:
    requests = world.mixed(world.changes(CHANGES), world.hotels(HOTELS))
    with cluster_in(engines, tmp_path / "cluster", world.CONFIG) as cluster:
        cluster.start()
        await feed_while(cluster, requests, disturbances(cluster))
        world.assert_balanced(await cluster.quiet(SETTLE_S))
        assert await world.repeated_event_ids(cluster) == {}
        hashes = await cluster.hashes()
        cluster.stop()
    expected, _ = await world.twin(tmp_path / "embedded", requests)
    assert hashes == expected
