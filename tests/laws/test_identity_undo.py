"""The undo law: a world with a merge and its unmerge equals the world that never merged."""

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings, strategies as st

from tests.laws.identity_world import Event, Type, World, histories, rows

LATER = 1_000  # positions and keys beyond those of the world that never merged


async def outcome_of(batches: Sequence[Sequence[Event]]) -> tuple[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            for batch in batches:
                await world.deliver(batch)
            await world.check_tables()
            return await world.hash(), world.told()
        finally:
            world.close()


def come_and_go(events: list[Event], bridges: list[dict[str, object]], data: st.DataObject) -> list[list[Event]]:
    """Return batches of the events and of records that come and go among them."""
    # Bridges may be older than everything, so that profiles take their ids for a while.
    extra = [
        Event(
            LATER + n,
            Type.OPERATION_INSERT,
            "leads",
            LATER + n,
            {"id": LATER + n, **row},
            (),
            data.draw(st.integers(0, 9)),
        )
        for n, row in enumerate(bridges)
    ]
    gone = [
        event._replace(number=2 * LATER + n, operation=Type.OPERATION_DELETE, row={}) for n, event in enumerate(extra)
    ]
    where = sorted(data.draw(st.integers(0, len(events))) for _ in range(2))
    rng = random.Random(data.draw(st.integers(0, 2**16)))
    batches = [[event] for event in events[: where[0]]] + [extra, events[where[0] : where[1]], gone, events[where[1] :]]
    batches = [batch for batch in batches if batch]
    rng.shuffle(extra)
    return batches


@settings(max_examples=80, deadline=None)
@given(histories(max_size=16), st.lists(rows, min_size=1, max_size=3), st.data())
def test_records_that_come_and_go_leave_the_world_as_if_they_had_never_been(
    events: list[Event], bridges: list[dict[str, object]], data: st.DataObject
) -> None:
    batches = come_and_go(events, bridges, data)
    assert asyncio.run(outcome_of(batches)) == asyncio.run(outcome_of([events]))


@settings(max_examples=60, deadline=None)
@given(histories(max_size=14, truncates=False), rows, st.integers(1, 6))
def test_a_record_that_changes_and_changes_back_leaves_the_world_as_it_was(
    events: list[Event], row: dict[str, object], key: int
) -> None:
    versions = [e for e in events if (e.entity, e.key) == ("leads", key)]
    last = versions[-1] if versions else None
    if last is None or last.operation == Type.OPERATION_DELETE or last.unavailable or last.partial:
        return  # nothing to go back to, or it cannot be told by one change
    there = last._replace(number=LATER, operation=Type.OPERATION_UPDATE, row={"id": key, **row}, time_ms=9_000)
    back = last._replace(number=LATER + 1, operation=Type.OPERATION_UPDATE, time_ms=9_000)
    assert asyncio.run(outcome_of([events, [there], [back]])) == asyncio.run(outcome_of([events]))
