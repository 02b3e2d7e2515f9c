"""Works everything out anew when the settings have changed: the graph is what the settings of today make of the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog

from services.identity_graph.assignments import gone, told_by
from services.identity_graph.consumer import GROUP
from services.identity_graph.ports import GraphLife, Told
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.log import Log, position_of
from services.kernel.sqlite import Database

WAIT_S = 3600.0
LOOK_EVERY_S = 30.0

log = structlog.get_logger(__name__)


class Renewal:
    """Sends the consumer group back to the beginning when it must, and tells of records that are nobody's any more."""

    def __init__(self, graph: GraphLife, database: Database, log_: Log, settings: Settings) -> None:
        self._graph, self._database, self._log = graph, database, log_
        self._fingerprint = settings.fingerprint()

    async def start(self) -> None:
        """Make the graph ready, and compare the settings with those that it was worked out by."""
        await self._graph.start()
        known = await self._graph.fingerprint()
        if known == self._fingerprint and await self._graph.is_whole():
            return
        async with self._database.transaction() as unit:
            if known not in {None, self._fingerprint}:
                log.warning("identity.settings_changed", consequence="who is who is worked out anew from the log")
                await self._log.reset_group(unit, GROUP)
            await self._graph.renew(self._fingerprint, self._told())

    async def keep_whole(self) -> None:
        """Look now and then whether somebody began to make the graph again and did not end; then do it."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # Where the settings are not ours, a worker of another version is to make it.
            if not await self._graph.is_whole() and await self._graph.fingerprint() == self._fingerprint:
                log.warning("identity.left_half_made", consequence="who is who is worked out anew from the log")
                await self._graph.renew(self._fingerprint, self._told())

    async def _told(self) -> AsyncIterator[Sequence[Told]]:
        for partition in range(self._log.partitions(topics.ASSIGNMENTS)):
            offset = 0
            while records := await self._log.read(topics.ASSIGNMENTS, partition, offset):
                offset = records[-1].offset + 1
                yield [told_by(record) for record in records]

    async def tell_of_ghosts(self) -> None:
        """Once the group has caught up, tell of the records that did not come back; then there is nothing to do."""
        ends = {(topics.CHANGES, partition): end for partition, end in enumerate(await self._log.end(topics.CHANGES))}
        while not await self._log.wait_committed([GROUP], position_of(ends), WAIT_S):
            log.info("identity.catching_up", behind=await self._log.lag(GROUP, [topics.CHANGES]))
        async with self._database.transaction() as unit:
            generation, ghosts = await self._graph.ghosts()
            unit.emit([gone(key, first_seen, generation) for key, first_seen in ghosts])
        async with self._database.transaction():  # only what has been told of for certain is forgotten
            await self._graph.lay_ghosts()
