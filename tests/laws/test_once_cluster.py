"""Law 3, once, on a cluster: workers and engines are killed under load, and the network between them is interrupted."""

import asyncio
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from services.kernel.log import Message
from services.kernel.settings import SERVICES
from tests.engines.cluster import Cluster, Engines, Worker, cluster_in
from tests.laws import cluster_world as world

KILLS = int(os.environ.get("HEADWATER_KILLS", "2"))  # of each service
SEED = int(os.environ.get("HEADWATER_SEED", "20261125"))
CHANGES = int(os.environ.get("HEADWATER_CHANGES", str(1_000 + 400 * KILLS)))
HOTELS = 40 + 10 * KILLS
ANSWERS = CHANGES // 10
RESTARTS = 1 + KILLS // 20  # of each engine, and interruptions of the network
INTERRUPTION_S = 30.0
PAUSE_S = 6.0  # between two disturbances, at most: a group takes up to 10 s to miss a member that was killed
SETTLE_S = 1_200.0
VERIFY_S = 300.0 + CHANGES / 20  # of one service
Disturbance = tuple[str, Callable[[], None]]


def crash(worker: Worker) -> None:
    """Kill a worker; a supervisor starts it again at once."""
    assert worker.is_alive, f"{worker.service} has ended by itself: {worker.log}"
    worker.kill()
    worker.start()


def disturbances(cluster: Cluster) -> list[Disturbance]:
    """All that shall happen, in any order, each with the name of what it happens to."""
    workers = [cluster.workers[service][0] for service in SERVICES for _ in range(KILLS)]
    engines = cluster.engines
    return [
        *((worker.service, lambda worker=worker: crash(worker)) for worker in workers),
        *((name, lambda name=name: engines.restart(name)) for name in engines.each for _ in range(RESTARTS)),
        *[("network", lambda: engines.interrupt(INTERRUPTION_S))] * RESTARTS,
    ]


async def feed_while(
    cluster: Cluster, requests: list[list[bytes]], told: list[Message], chance: random.Random
) -> Counter[str]:
    """Feed everything while all happens, and over again if that takes longer; returns what has happened, how often."""
    all_of = disturbances(cluster)
    chance.shuffle(all_of)
    expected_s = PAUSE_S / 2 * len(all_of)
    telling = asyncio.create_task(world.tell(cluster, told, expected_s / len(told) * world.TOLD_AT_ONCE))
    feeder = world.Feeder(requests, expected_s / len(requests))
    feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
    happened: Counter[str] = Counter()
    one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def happen(name: str, disturb: Callable[[], None]) -> None:
        async with one_at_a_time[name]:
            await asyncio.to_thread(disturb)
        happened[name] += 1

    happening = []
    for name, disturb in all_of:
        await asyncio.sleep(chance.uniform(0.0, PAUSE_S))
        if feeding.done():
            feeding.result()
            feeder.next = 0  # all of it once more: repetitions must do nothing
            feeding = asyncio.create_task(feeder.feed(world.ingesters(cluster)))
        happening.append(asyncio.create_task(happen(name, disturb)))  # while an engine comes back, others die
    await asyncio.gather(*happening)
    for worker in cluster.alive:
        await asyncio.to_thread(worker.ready)
    await feeding
    await telling
    return happened


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(7200)
async def test_every_input_takes_effect_once_whatever_dies(engines: Engines, tmp_path: Path) -> None:
    print(f"HEADWATER_SEED={SEED} HEADWATER_KILLS={KILLS} HEADWATER_CHANGES={CHANGES}")  # for who repeats a failure
    requests = world.mixed(world.changes(CHANGES), world.hotels(HOTELS), size=20)
    told = world.conversations(ANSWERS)
    with cluster_in(engines, tmp_path / "cluster", world.CONFIG) as cluster:
        cluster.start()
        began = time.monotonic()
        happened = await feed_while(cluster, requests, told, random.Random(SEED))
        disturbed_s = time.monotonic() - began
        groups = await cluster.quiet(SETTLE_S)
        quiet_s = time.monotonic() - began - disturbed_s
        world.assert_balanced(groups)
        await world.assert_all_taken_in_once(cluster, groups)
        hashes = await cluster.hashes()
        world.assert_all_hold(await cluster.verify(VERIFY_S))
        assert await cluster.hashes() == hashes
        cluster.stop()
    expected, _ = await world.twin(tmp_path / "embedded", requests, told)
    assert hashes == expected
    print(f"killed {dict(happened)} in {disturbed_s:.0f} s; quiet {quiet_s:.0f} s later; inputs", world.inputs(groups))
