"""Replay: rows and documents dropped and made again from the log are the same, version for version."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from services.kernel import topics
from tests.laws.profile_world import ASSIGNMENTS, CHANGES, STEPS, Assignment, Change, World, messages_of


async def state_of(world: World) -> tuple[str, list[tuple[str, int]], list[int]]:
    """The state hash, the versions, and how much was published."""
    [store] = world.service.stores
    versions = [(key, version) for key, version, _ in world.stored()]
    return await store.hash(world.database.reader), versions, await world.log.end(topics.PROFILES)


async def drop_and_replay(world: World) -> None:
    [store] = world.service.stores
    assert store.seed is not None
    async with world.log.rebuilding(store.groups, store.internal_topics):
        await store.reset()
        for partition in range(world.log.partitions(topics.PROFILES)):
            await store.seed(await world.log.read(topics.PROFILES, partition, 0, max_records=10_000))


async def finish(world: World) -> None:
    [store] = world.service.stores
    assert store.reload is not None
    await store.reload()
    await world.log.rebuilt(store.groups)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS)
def test_a_replay_gives_the_same_hash_the_same_versions_and_publishes_nothing_new(
    changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        replayed(world, changes, assignments, steps)
        world.close()


def replayed(world: World, changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]) -> None:
    for message in messages_of(world.new_tenant(), changes, assignments):
        world.append([message])
        for group, size in steps[:2]:
            world.step(group, size)
    world.settle()
    before = world.runner.run(state_of(world))
    world.runner.run(drop_and_replay(world))
    for group, size in steps:
        world.step(group, size)
    world.settle()
    world.runner.run(finish(world))
    assert world.runner.run(state_of(world)) == before
