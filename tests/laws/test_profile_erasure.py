"""Erasure: from the instant that it is acknowledged nothing of the subject is here, and nothing brings it back."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from headwater.common.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import message_of
from tests.laws.profile_world import ASSIGNMENTS, CHANGES, STEPS, Assignment, Change, World, messages_of, model
from tests.unit.profile.examples import T0_MS

SUBJECT = "crm/customers/1"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


def erase(world: World, tenant: str, profile_id: str) -> None:
    """Let the service carry out an erasure, and nothing else."""
    ask_to_erase(world, tenant, profile_id)
    while world.step("profile-erasure", 10):
        pass


def ask_to_erase(world: World, tenant: str, profile_id: str) -> None:
    request = events_pb2.ErasureRequested(
        erasure_id=tenant, tenant=tenant, records=[SUBJECT], profile_ids=[profile_id] if profile_id else []
    )
    request.requested_at.FromMilliseconds(T0_MS + 1_000_000)
    world.append([message_of(topics.ERASURES, tenant.encode(), request, T0_MS + 1_000_000)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS, data=st.data())
def test_nothing_is_left_at_once_and_nothing_comes_back_from_what_was_on_its_way(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    erased(world, changes, assignments, steps, data)


def erased(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    tenant = world.new_tenant()
    arriving = data.draw(st.permutations(messages_of(tenant, changes, assignments)))
    cut = data.draw(st.integers(0, len(arriving)))
    world.append(arriving[:cut])
    for group, size in steps:
        world.step(group, size)
    newest = {a.record: a.profile for a in assignments}
    erase(world, tenant, newest.get(SUBJECT, ""))
    assert world.traces(tenant, SUBJECT) == set()
    world.append(arriving[cut:])
    world.settle()
    assert world.traces(tenant, SUBJECT) == set()
    expected = model(
        tenant,
        # Positions are places in the list: the subject's changes become heartbeats of nothing.
        [c if c.op == "truncate" or c.record != SUBJECT else Change("delete", "nothing") for c in changes],
        [a for a in assignments if a.record != SUBJECT],
        world.settings,
    )
    assert world.documents(tenant) == world.published(tenant) == expected


def test_the_document_of_a_profile_that_the_subject_has_just_left_is_reached_too(world: World) -> None:
    just_left(world)


def just_left(world: World) -> None:
    tenant = world.new_tenant()
    changes = [Change("insert", "customers", 1, {"a": 1}), Change("insert", "customers", 2, {"b": 2})]
    assignments = [Assignment(SUBJECT, "p1"), Assignment("crm/customers/2", "p1"), Assignment(SUBJECT, "p2")]
    *before, leaves = messages_of(tenant, changes, assignments)
    world.append(before)
    world.settle()
    world.append([leaves])
    world.step("profile-rows", 10)
    erase(world, tenant, "p2")
    assert world.traces(tenant, SUBJECT) == set()
    world.settle()
    assert [record.record for record in world.documents(tenant)["p1"].records] == ["crm/customers/2"]
