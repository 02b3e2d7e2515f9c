"""Which texts go into the next request to an endpoint: those that changed just now first, backfill always a little.

The texts of many documents share a request, of one lane. Pure: it knows what waits and how much is in flight.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from services.embedder.ports import Vector
from services.kernel.jobs import EnrichmentError, Lane


@dataclass(slots=True, eq=False)
class Waiting:
    """A text that waits for its vector.

    Attributes:
        text: what is to be embedded.
        tokens: how long it is, about.
        lane: its queue.
        alone: the document that must have its request for itself; None when others may share it.
        vector: where the vector goes.
    """

    text: str
    tokens: int
    lane: Lane
    alone: object
    vector: asyncio.Future[Vector]

    def settle(self, vector: Vector) -> None:
        """Give whoever waits the vector."""
        if not self.vector.done():
            self.vector.set_result(vector)

    def fail(self, error: EnrichmentError) -> None:
        """Tell whoever waits that there is no vector."""
        if not self.vector.done():
            self.vector.set_exception(error)


class Batches:
    """The texts that wait, and the requests in flight.

    Attributes:
        texts_max, tokens_max: of one request; a longer text is alone in its own.
    """

    def __init__(self, *, texts_max: int, tokens_max: int, requests_max: int) -> None:
        self.texts_max, self.tokens_max = texts_max, tokens_max
        self._requests_max = requests_max
        self._queues: dict[Lane, deque[Waiting]] = {lane: deque() for lane in Lane}
        self._in_flight: Counter[Lane] = Counter()

    def put(self, waiting: Iterable[Waiting]) -> None:
        """Add texts behind those of their lane."""
        for each in waiting:
            self._queues[each.lane].append(each)

    def waits(self, lane: Lane) -> bool:
        """Tell whether a lane has texts that are still wanted."""
        queue = self._queues[lane]
        while queue and queue[0].vector.done():  # whoever waited for it has gone
            queue.popleft()
        return bool(queue)

    def take(self, *, backfill_paused: bool) -> list[Waiting]:
        """Return the texts of the next request, which is in flight from here on; none when it must wait."""
        for lane in Lane:
            if self.waits(lane) and self._may_start(lane, backfill_paused=backfill_paused):
                self._in_flight[lane] += 1
                return self._filled(self._queues[lane])
        return []

    def ended(self, lane: Lane) -> None:
        """A request is not in flight any more."""
        self._in_flight[lane] -= 1

    def drain(self) -> list[Waiting]:
        """Return all texts that wait, and let none wait."""
        drained = [each for lane in Lane for each in self._queues[lane]]
        for queue in self._queues.values():
            queue.clear()
        return drained

    def _may_start(self, lane: Lane, *, backfill_paused: bool) -> bool:
        live, backfill = self._in_flight[Lane.LIVE], self._in_flight[Lane.BACKFILL]
        if live + backfill >= self._requests_max:
            return False
        if lane is Lane.BACKFILL:
            return not backfill_paused and backfill < max(1, self._requests_max - 1)
        # An endless stream of live texts must not starve the backfill either.
        starves = self.waits(Lane.BACKFILL) and not backfill_paused and backfill == 0 and self._requests_max > 1
        return not (starves and live >= self._requests_max - 1)

    def _filled(self, queue: deque[Waiting]) -> list[Waiting]:
        batch = [queue.popleft()]
        tokens = batch[0].tokens
        while queue and len(batch) < self.texts_max:
            following = queue[0]
            if following.alone is not batch[0].alone or tokens + following.tokens > self.tokens_max:
                break
            tokens += following.tokens
            if not following.vector.done():
                batch.append(following)
            queue.popleft()
        return batch
