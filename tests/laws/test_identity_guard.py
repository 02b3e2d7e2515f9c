"""The guard against blob persons: what ten thousand users share does not make them one (peers.md, (d) 7)."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.identity_graph.settings import Settings
from tests.laws.identity_world import Event, Type, World

USERS = 10_000
BATCH = 500
DEFAULTS = Settings.from_config({})
SHARED = {
    "a word for nothing": {"email": "null"},
    "a kiosk": {"device_id": "kiosk-17"},
    "a mailbox of a team": {"email": "team@corp.example.com"},
    "a mailbox that nobody suspects": {"email": "the.smiths@corp.example.com"},
    "a telephone": {"phone": "+1 415 555 0100"},
}


def users(shared: dict[str, str], entity: str) -> Iterator[list[Event]]:
    # The first come one by one, for that is when they could become one.
    starts = [*range(100), *range(100, USERS, BATCH)]
    for start, stop in itertools.pairwise([*starts, USERS]):
        yield [
            Event(
                n,
                Type.OPERATION_INSERT,
                entity,
                n,
                {"id": n, "name": f"User {n}", "work_email": f"u{n}@x.io", **shared},
                (),
                n,
            )
            for n in range(start, stop)
        ]


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
def test_ten_thousand_users_who_share_something_stay_ten_thousand_persons(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    world = World(tmp_path, DEFAULTS)

    async def run() -> None:
        largest = 0
        for batch in users(shared, "visits"):
            await world.deliver(batch)
            largest = max(largest, *Counter(now.profile for now in world.told().values()).values())
        assert largest <= max(rule.records_max for rule in DEFAULTS.kinds.values())

    asyncio.run(run())
    told = world.told()
    assert len({now.profile for now in told.values()}) == USERS
    assert not any(now.suspect for now in told.values())
    shared_values = {value.lower().replace(" ", "") for value in shared.values()}
    assert not any(value in shared_values for now in told.values() for _, value in now.identifiers)
    world.close()


def test_while_a_shared_value_still_links_its_profile_is_suspect(tmp_path: Path) -> None:
    world = World(tmp_path, DEFAULTS)
    visits = [
        Event(n, Type.OPERATION_INSERT, "visits", n, {"id": n, "email": f"u{n}@x.io", "device_id": "kiosk"}, (), n)
        for n in range(9)
    ]
    asyncio.run(world.deliver(visits[:2]))
    assert [now.suspect for now in world.told().values()] == [True, True]
    asyncio.run(world.deliver(visits))
    assert len({now.profile for now in world.told().values()}) == 1
    assert all(now.suspect for now in world.told().values())
    asyncio.run(
        world.deliver(
            [visits[0]._replace(number=99 + n, key=99 + n, row={**visits[0].row, "id": 99 + n}) for n in range(5)]
        )
    )
    assert len({now.profile for now in world.told().values()}) == 1, "the same visitor again is nobody new"
    world.close()


def test_a_profile_never_passes_its_bound(tmp_path: Path) -> None:
    settings = Settings.from_config({"cluster_records_max": 20, "kinds": {"phone": {"records_max": 5}}})
    world = World(tmp_path, settings)
    # A chain: each shares a telephone with the next, so that no single value is on too many.
    chain = [
        Event(
            n,
            Type.OPERATION_INSERT,
            "visits",
            n,
            {"id": n, "phone": f"+1415555{n:04d}", "home_phone": f"+1415555{n + 1:04d}"},
            (),
            n,
        )
        for n in range(1000, 1500)
    ]
    for start in range(0, len(chain), 50):
        asyncio.run(world.deliver(chain[start : start + 50]))
    sizes = Counter(now.profile for now in world.told().values())
    assert max(sizes.values()) <= 20
    assert all(now.suspect for now in world.told().values() if sizes[now.profile] == 20)
    world.close()


def test_a_traveller_with_hundreds_of_bookings_is_one_person(tmp_path: Path) -> None:
    world = World(tmp_path, DEFAULTS)
    bookings = [
        Event(n, Type.OPERATION_INSERT, "bookings", n, {"id": n, "email": "ada@x.io", "name": "Ada", "price": n}, (), n)
        for n in range(800)
    ]
    for start in range(0, len(bookings), 100):
        asyncio.run(world.deliver(bookings[start : start + 100]))
    told = world.told()
    assert len(told) == 800
    assert len({now.profile for now in told.values()}) == 1
    assert not any(now.suspect for now in told.values())
    world.close()
