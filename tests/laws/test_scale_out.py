"""A cluster gives the same with any number of workers, and while they come and go (laws 2 and 3, §7 of the design)."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.engines.cluster import Cluster, Engines, cluster_in
from tests.laws import cluster_world as world

CHANGES, HOTELS = int(os.environ.get("HEADWATER_SCALE_OUT", "4000")), 100
CHURNS = 10
SCALED = ("ingest", "identity_graph", "profile", "embedder", "rag_gateway")  # of feedback there is one
SEED = 20261125
SETTLE_S = 1_200.0
pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(7200)]


async def churn(cluster: Cluster, count: int) -> None:
    """Ten times, take a worker of each service away or bring it back: some drained, some killed."""
    chance = random.Random(SEED)
    for _ in range(CHURNS):
        for service in SCALED:
            worker = chance.choice(cluster.workers[service][1:count])  # one of each stays
            if not worker.is_alive:
                worker.start()
            elif chance.random() < 0.5:
                worker.kill()
            else:
                await asyncio.to_thread(worker.stop)
        await asyncio.sleep(chance.uniform(0.5, 3.0))


@pytest.mark.parametrize("count", [2, 4])
async def test_workers_that_come_and_go_change_nothing(engines: Engines, tmp_path: Path, count: int) -> None:
    requests = world.mixed(world.changes(CHANGES), world.hotels(HOTELS))
    with cluster_in(engines, tmp_path / "cluster", world.CONFIG) as cluster:
        cluster.start(1, ("feedback",))
        cluster.start(count, SCALED)
        feeder = world.Feeder(requests)
        feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
        await churn(cluster, count)
        await feeding
        world.assert_balanced(await cluster.quiet(SETTLE_S))
        assert await world.repeated_event_ids(cluster) == {}
        hashes = await cluster.hashes()
        cluster.stop()
    expected, _ = await world.twin(tmp_path / "embedded", requests)
    assert hashes == expected
