"""Whose turn it is to write."""

import asyncio

import pytest

from services.kernel.turn import URGENT_IN_A_ROW, Turn


async def run(turn: Turn, name: str, order: list[str], *, urgent: bool = False) -> None:
    async with turn.take(urgent=urgent):
        order.append(name)
        await asyncio.sleep(0)


async def test_the_urgent_go_first_and_the_others_in_order_of_arrival() -> None:
    turn, order = Turn(), list[str]()
    tasks = [
        asyncio.create_task(run(turn, name, order, urgent=name.startswith("u"))) for name in ("a", "b", "c", "u1", "u2")
    ]
    await asyncio.gather(*tasks)
    assert order == ["a", "u1", "u2", "b", "c"]


async def test_the_others_do_not_starve() -> None:
    turn, order = Turn(), list[str]()
    names = ["first", "other", *(f"u{n}" for n in range(10))]
    await asyncio.gather(*(run(turn, name, order, urgent=name.startswith("u")) for name in names))
    assert order.index("other") == 1 + URGENT_IN_A_ROW


async def test_one_at_a_time_also_when_some_are_cancelled_while_they_wait() -> None:
    turn, inside, worst = Turn(), 0, 0

    async def work(number: int) -> None:
        nonlocal inside, worst
        async with turn.take(urgent=number % 3 == 0):
            inside += 1
            worst = max(worst, inside)
            await asyncio.sleep(0)
            inside -= 1

    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    for number, task in enumerate(tasks):
        if number % 4 == 1:
            await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert worst == 1
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    async with asyncio.timeout(1), turn.take():
        pass  # it is free again


async def test_a_turn_that_was_passed_on_in_the_instant_of_a_cancellation_is_not_lost() -> None:
    turn, order = Turn(), list[str]()
    holder = asyncio.create_task(run(turn, "holder", order))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(run(turn, "waiter", order))
    await asyncio.sleep(0)
    await holder  # passes the turn to the waiter, which has not run yet
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    async with asyncio.timeout(1), turn.take():
        pass
