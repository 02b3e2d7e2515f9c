"""Wakes those who wait for something to happen to one of a set of names."""

import asyncio
from collections import defaultdict
from collections.abc import Collection


class Waiters:
    """Who waits for what; all within one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def wake(self, names: Collection[str]) -> None:
        """Wake whoever waits for one of the names."""
        for name in names:
            for future in self._waiting.pop(name, ()):
                if not future.done():
                    future.set_result(None)

    async def wait(self, names: Collection[str], timeout_s: float) -> bool:
        """Wait until one of the names is woken; False after `timeout_s`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for name in names:
            self._waiting[name].add(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            for name in names:
                self._waiting[name].discard(future)
        return True
