"""The exactness law: who is who equals the answer worked out from nothing, whatever the history and its delivery."""

import asyncio
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings, strategies as st

from services.identity_graph.settings import Settings
from tests.laws.identity_world import CHAINS, SETTINGS, Event, World, from_scratch, histories


def deliveries(events: list[Event], seed: int) -> list[list[Event]]:
    """Deliver events out of order, some of them again, in batches of any size; each at least once."""
    rng = random.Random(seed)
    order = list(events)
    if rng.random() < 0.7:
        order.sort(key=lambda event: event.number + rng.choice([0, 0, 0, 5, 30]) * rng.random())
    order += rng.sample(events, rng.randint(0, len(events)))
    batches = []
    while order:
        cut = rng.choice([1, 2, 3, 5, 8, 13, 100])
        batches.append(order[:cut])
        order = order[cut:]
    return batches


async def check(events: list[Event], seed: int, world: World, limits: Settings) -> str:
    try:
        delivered: list[Event] = []
        for batch in deliveries(events, seed):
            await world.deliver(batch)
            delivered += batch
            told, quarantined = from_scratch(delivered, limits)
            assert world.told() == told
            assert (await world.check_tables()).crowds == quarantined
        return await world.hash()
    finally:
        world.close()


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(0, 2**32), min_size=2, max_size=3), st.sampled_from([SETTINGS, CHAINS]))
def test_any_delivery_of_any_history_gives_the_answer_from_scratch(
    events: list[Event], seeds: list[int], limits: Settings
) -> None:
    hashes = set()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            hashes.add(asyncio.run(check(events, seed, World(Path(folder), limits), limits)))
    assert len(hashes) == 1
