"""Works everything out anew when the settings have changed: the graph is what the settings of today make of the log."""

import structlog

from services.identity_graph.assignments import gone
from services.identity_graph.consumer import GROUP
from services.identity_graph.settings import Settings
from services.identity_graph.sqlite_lifecycle import SqliteLifecycle
from services.kernel import topics
from services.kernel.log import Log, position_of
from services.kernel.sqlite import Database

WAIT_S = 3600.0

log = structlog.get_logger(__name__)


class Renewal:
    """Sends the consumer group back to the beginning when it must, and tells of records that are nobody's any more."""

    def __init__(self, graph: SqliteLifecycle, database: Database, log_: Log, settings: Settings) -> None:
        self._graph, self._database, self._log = graph, database, log_
        self._fingerprint = settings.fingerprint()

    async def start(self) -> None:
        """Compare the settings with those that the graph was worked out by, before anything runs."""
        known = await self._graph.fingerprint()
        if known == self._fingerprint:
            return
        async with self._database.transaction() as unit:
            await self._graph.set_fingerprint(self._fingerprint)
            if known is not None:
                log.warning("identity.settings_changed", consequence="who is who is worked out anew from the log")
                await self._graph.start_over()
                await self._log.reset_group(unit, GROUP)

    async def tell_of_ghosts(self) -> None:
        """Once the group has caught up, tell of the records that did not come back; then there is nothing to do."""
        ends = {(topics.CHANGES, partition): end for partition, end in enumerate(await self._log.end(topics.CHANGES))}
        while not await self._log.wait_committed([GROUP], position_of(ends), WAIT_S):
            log.info("identity.catching_up", behind=await self._log.lag(GROUP, [topics.CHANGES]))
        async with self._database.transaction() as unit:
            generation, ghosts = await self._graph.lay_ghosts()
            unit.emit([gone(key, first_seen, generation) for key, first_seen in ghosts])
