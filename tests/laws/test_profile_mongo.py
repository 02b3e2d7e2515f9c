"""The laws of profiles on Kafka and MongoDB: the same histories as embedded, and the same state hash."""

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from headwater.common.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.profile.mongo_erasure import MongoErasures
from tests.contract.test_ingest_api import records
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
from tests.laws.test_profile_erasure import SUBJECT, ask_to_erase, erased, just_left
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


def one_person(world: World, tenant: str) -> None:
    """Two rows of one profile, taken in and not folded yet."""
    changes = [Change("insert", "customers", 1, {"a": 1}), Change("insert", "orders", 1, {"a": 2})]
    assignments = [Assignment(SUBJECT, "p1"), Assignment("crm/orders/1", "p1")]
    world.append(messages_of(tenant, changes, assignments))
    while world.step("profile-rows", 10):
        pass


def unavailable(*_: Any) -> NoReturn:
    raise UnavailableError("cut off")


def test_what_was_folded_and_not_published_when_an_erasure_came_does_not_come_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = world.new_tenant()
    one_person(world, tenant)
    with monkeypatch.context() as patch:
        patch.setattr(world.consumers["profile-fold"], "commit", unavailable)
        world.step("profile-fold", 10)
    assert world.documents(tenant).keys() == {"p1"}
    assert world.published(tenant) == {}
    ask_to_erase(world, tenant, "p1")
    world.step("profile-erasure", 10)
    assert acknowledged(world, tenant) == []
    world.settle()
    assert len(acknowledged(world, tenant)) == 1
    assert world.traces(tenant, SUBJECT) == set()
    assert [each.record for each in world.published(tenant)["p1"].records] == ["crm/orders/1"]


def test_an_erasure_that_is_cut_off_is_done_and_told_in_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = world.new_tenant()
    one_person(world, tenant)
    world.settle()
    ask_to_erase(world, tenant, "")
    for name in ("_planned", "_remaining"):
        with monkeypatch.context() as patch:
            patch.setattr(MongoErasures, name, unavailable)
            world.step("profile-erasure", 10)
    assert acknowledged(world, tenant) == []
    world.step("profile-erasure", 10)
    (done,) = acknowledged(world, tenant)
    assert dict(done.removed) == {"rows": 1, "documents": 1, "identifiers": 2}
    assert dict(done.remaining) == {"rows": 0, "documents": 0, "identifiers": 0}
    assert world.traces(tenant, SUBJECT) == set()
    world.settle()
    assert [each.record for each in world.documents(tenant)["p1"].records] == ["crm/orders/1"]
    assert world.documents(tenant) == world.published(tenant)


def acknowledged(world: World, tenant: str) -> list[events_pb2.ErasureDone]:
    """What the service has told of the tenant's erasure."""
    while world.runner.run(world._is_undecided()):
        pass
    found = world.runner.run(records(world.log, topics.ERASURES_DONE))
    answers = (events_pb2.ErasureDone.FromString(each.value or b"") for each in found)
    return [answer for answer in answers if answer.erasure_id == tenant]
