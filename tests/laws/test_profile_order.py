"""Order: however changes and assignments are repeated, delayed, mixed and cut into batches, the same comes out."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.laws.profile_world import (
    ASSIGNMENTS,
    CHANGES,
    ENTITIES,
    STEPS,
    Assignment,
    Change,
    World,
    messages_of,
    model,
)


@pytest.fixture(scope="module", params=["latest", "most_frequent"])
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), **rules(request.param))
    yield made
    made.close()


def rules(rule: str) -> dict[str, Any]:
    """A table [profile] with one declared field."""
    columns = ["crm.customers.a", "crm.orders.a", "crm.customers.b"]
    return {"fields": {"best": {"from": columns, "rule": rule}}}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS, data=st.data())
def test_documents_are_the_fold_of_the_final_rows_in_whatever_order_everything_came(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    mixed(world, changes, assignments, steps, data)


def mixed(
    world: World,
    changes: list[Change],
    assignments: list[Assignment],
    steps: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    tenant = world.new_tenant()
    messages = messages_of(tenant, changes, assignments)
    repeated = data.draw(st.lists(st.sampled_from(messages), max_size=5)) if messages else []
    arriving = data.draw(st.permutations([*messages, *repeated]))
    cut = data.draw(st.integers(0, len(arriving)))
    world.append(arriving[:cut])
    for group, size in steps:
        world.step(group, size)
    world.append(arriving[cut:])
    for group, size in steps:
        world.step(group, size)
    world.settle()
    expected = model(tenant, changes, assignments, world.settings)
    assert world.documents(tenant) == expected
    assert world.published(tenant) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(changes=CHANGES, assignments=ASSIGNMENTS, steps=STEPS)
def test_when_every_row_is_deleted_nothing_is_left(
    world: World, changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]
) -> None:
    deleted(world, changes, assignments, steps)


def deleted(world: World, changes: list[Change], assignments: list[Assignment], steps: list[tuple[str, int]]) -> None:
    tenant = world.new_tenant()
    gone = [Change("delete", entity, key) for entity in ENTITIES for key in (1, 2)]
    world.append(messages_of(tenant, [*changes, *gone], assignments))
    for group, size in steps:
        world.step(group, size)
    world.settle()
    assert world.documents(tenant) == world.published(tenant) == {}
    assert not world.traces(tenant, "account") & {"profile_documents", "profile_identifiers"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(changes=CHANGES, assignments=ASSIGNMENTS, merged=st.sets(st.sampled_from(["p1", "p2", "p3"])), data=st.data())
def test_a_world_with_a_merge_and_its_unmerge_equals_the_world_that_never_merged(
    world: World, changes: list[Change], assignments: list[Assignment], merged: set[str], data: st.DataObject
) -> None:
    unmerged(world, changes, assignments, merged, data)


def unmerged(
    world: World, changes: list[Change], assignments: list[Assignment], merged: set[str], data: st.DataObject
) -> None:
    tenant = world.new_tenant()
    newest = {a.record: a for a in assignments}
    joined = [a for a in newest.values() if a.profile in merged]
    merge = [a._replace(profile="p1") for a in joined]
    cut = data.draw(st.integers(0, len(changes)))
    history = [*assignments, *merge, *joined]
    changing, assigning = messages_of(tenant, changes, []), messages_of(tenant, [], history)
    world.append(changing[:cut] + assigning[: len(assignments) + len(merge)])
    world.settle()
    world.append(changing[cut:] + assigning[len(assignments) + len(merge) :])
    world.settle()
    never = model(tenant, changes, assignments, world.settings)
    assert world.documents(tenant) == world.published(tenant) == never
