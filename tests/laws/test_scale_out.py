"""A cluster gives the same with any number of workers, and while they come and go (laws 2 and 3, §7 of the design)."""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.engines.cluster import Cluster, Engines, cluster_in
from tests.laws import cluster_world as world

CHANGES, HOTELS = int(os.environ.get("HEADWATER_SCALE_OUT", "4000")), 100
CHURNS = 10
SCALED = ("ingest", "identity_graph", "profile", "embedder", "rag_gateway")
ALONE = ("feedback",)  # one worker: it keeps its state in its local database
SEED = int(os.environ.get("HEADWATER_SEED", "20261125"))
SETTLE_S = 1_200.0
VERIFY_S = 300.0  # of one service
pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(7200)]


async def churn(cluster: Cluster, count: int) -> Counter[str]:
    """Ten times, take a worker of each service away or bring it back: some drained, some killed; returns how many."""
    chance = random.Random(SEED)
    happened: Counter[str] = Counter()
    for _ in range(CHURNS):
        for service in SCALED:
            worker = chance.choice(cluster.workers[service][1:count])  # one of each stays
            if not worker.is_alive:
                worker.start()
                happened["started"] += 1
            elif chance.random() < 0.5:
                worker.kill()
                happened["killed"] += 1
            else:
                status = await asyncio.to_thread(worker.stop)
                assert status in (0, -signal.SIGTERM), worker.log  # the signal, where it comes before Python has begun
                happened["drained"] += 1
        await asyncio.sleep(chance.uniform(0.5, 3.0))
    return happened


def keep_one(cluster: Cluster) -> None:
    """Drain all workers but one of each service: a store is only made again by one."""
    leaving = [worker for workers in cluster.workers.values() for worker in workers[1:] if worker.is_alive]
    for worker in leaving:
        worker.terminate()
    for worker in leaving:
        assert worker.ended() == 0, worker.log


@pytest.mark.parametrize("count", [2, 4])
async def test_workers_that_come_and_go_change_nothing(engines: Engines, tmp_path: Path, count: int) -> None:
    print(f"HEADWATER_SEED={SEED} HEADWATER_SCALE_OUT={CHANGES}")  # for who repeats a failure
    requests = world.mixed(world.changes(CHANGES), world.hotels(HOTELS))
    told = world.conversations(CHANGES // 10)
    with cluster_in(engines, tmp_path / "cluster", world.CONFIG) as cluster:
        cluster.start(1, ALONE)
        cluster.start(count, SCALED)
        feeder = world.Feeder(requests)
        feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
        telling = asyncio.create_task(world.tell(cluster, told))
        happened = await churn(cluster, count)
        await feeding
        await telling
        groups = await cluster.quiet(SETTLE_S)
        world.assert_balanced(groups)
        await world.assert_all_taken_in_once(cluster, groups)
        hashes = await cluster.hashes()
        await asyncio.to_thread(keep_one, cluster)
        world.assert_all_hold(await cluster.verify(VERIFY_S))
        cluster.stop()
    expected, _ = await world.twin(tmp_path / "embedded", requests, told)
    assert hashes == expected
    print(f"{count} workers of {len(SCALED)} services, {dict(happened)}; inputs", world.inputs(groups))
