"""Whose turn it is to write: one at a time, those whom somebody waits for first, else in order of arrival."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

URGENT_IN_A_ROW = 4  # then one of the others has its turn, so that nobody starves


class Turn:
    """A lock with two queues."""

    def __init__(self) -> None:
        self._taken = False
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._in_a_row = 0

    @contextlib.asynccontextmanager
    async def take(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for the turn, and have it for the length of a block.

        Args:
            urgent: somebody waits for the answer, and the block is short.
        """
        if self._taken:
            await self._wait(self._urgent if urgent else self._others)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                with contextlib.suppress(ValueError):  # where it has been passed over already
                    queue.remove(future)
            else:  # the turn was passed to us in the same instant
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next; it stays taken in between, so that nobody slips in."""
        fair = self._in_a_row >= URGENT_IN_A_ROW
        for queue in (self._others, self._urgent) if fair else (self._urgent, self._others):
            while queue:
                future = queue.popleft()
                if not future.done():
                    self._in_a_row = self._in_a_row + 1 if queue is self._urgent else 0
                    future.set_result(None)
                    return
        self._taken = False
