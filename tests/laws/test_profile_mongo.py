"""The laws of profiles on Kafka and MongoDB: the same histories as embedded, and the same state hash."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.engines import Kafka
from tests.engines.mongo import MongoServer
from tests.laws.profile_world import (
    ASSIGNMENTS,
    CHANGES,
    STEPS,
    Assignment,
    Change,
    World,
    cluster,
    messages_of,
)
from tests.laws.test_profile_erasure import erased, just_left
from tests.laws.test_profile_order import deleted, mixed, rules, unmerged
from tests.laws.test_profile_replay import replayed, state_of

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(100)]
PROFILES = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, kafka_engine: Kafka, mongo_engine: MongoServer) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), cluster(kafka_engine, mongo_engine), **rules("most_frequent"))
    yield made
    made.close()


@PROFILES
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS, data=st.data())
def test_documents_are_the_fold_of_the_final_rows_in_whatever_order_everything_came(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    mixed(world, changes, assignments, steps, data)


@PROFILES
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS)
def test_when_every_row_is_deleted_nothing_is_left(
    world: World, changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]
) -> None:
    deleted(world, changes, assignments, steps)


@PROFILES
@given(changes=CHANGES, assignments=ASSIGNMENTS, merged=st.sets(st.sampled_from(["p1", "p2", "p3"])), data=st.data())
def test_a_world_with_a_merge_and_its_unmerge_equals_the_world_that_never_merged(
    world: World, changes: list[Change], assignments: list[Assignment], merged: set[str], data: st.DataObject
) -> None:
    unmerged(world, changes, assignments, merged, data)


@PROFILES
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS)
def test_a_replay_gives_the_same_hash_the_same_versions_and_publishes_nothing_new(
    world: World, changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]
) -> None:
    replayed(world, changes, assignments, steps)


@PROFILES
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS, data=st.data())
def test_an_erasure_leaves_nothing_at_once_and_nothing_comes_back_from_what_was_on_its_way(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    erased(world, changes, assignments, steps, data)


def test_an_erasure_reaches_the_document_of_a_profile_that_the_subject_has_just_left(world: World) -> None:
    just_left(world)


@settings(PROFILES, max_examples=5)
@given(history=st.lists(st.tuples(CHANGES, ASSIGNMENTS), min_size=2, max_size=4), size=st.integers(1, 20))
def test_the_hash_is_that_of_the_embedded_stores(
    tmp_path_factory: pytest.TempPathFactory,
    kafka_engine: Kafka,
    mongo_engine: MongoServer,
    history: list[tuple[list[Change], list[Assignment]]],
    size: int,
) -> None:
    hashes = []
    for engines in (None, cluster(kafka_engine, mongo_engine)):
        one = World(tmp_path_factory.mktemp("one"), engines)
        for changes, assignments in history:
            one.append(messages_of(one.new_tenant(), changes, assignments))
        one.settle(size)
        hashes.append(one.runner.run(state_of(one))[0])
        one.close()
    assert hashes[0] == hashes[1]
