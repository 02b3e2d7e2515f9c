"""The end of an erasure: once the KPIs are corrected and the lake is renewed, look whether anything is left; say so.

The processor has removed the subject's rows by then, in the same commit that took the request in. What is left to do
takes longer and touches files, so it is background work; it goes on where it was after a restart.
"""

import asyncio
from collections.abc import Collection, Mapping

import orjson
import structlog

from headwater.common.v1 import events_pb2
from headwater.feedback.v1 import events_pb2 as feedback_pb2
from services.feedback.answers import Key, event_of, key_of_event, milliseconds, names_of_erasure
from services.feedback.classifier import Models
from services.feedback.exporter import Exporter
from services.kernel import topics
from services.kernel.erasure import KEPT, acknowledgement, field_bytes
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Record, position_of
from services.kernel.service import Platform

SERVICE = "feedback"
WAIT_S = 60.0
TABLES = ("turns", "ratings", "classified", "observations", "jobs")

log = structlog.get_logger(__name__)


class Eraser:
    """Finishes erasures, and acknowledges them."""

    def __init__(self, platform: Platform, exporter: Exporter, models: Models, kpi_group: str) -> None:
        """Wire it; `kpi_group` is the consumer group that corrects the KPIs."""
        self._log, self._database, self._clock = platform.log, platform.database, platform.clock
        self._exporter, self._models, self._kpi_group = exporter, models, kpi_group
        self._woken = asyncio.Event()
        self._acknowledged: set[str] = set()
        self._seen = 0  # of `erasures.done`

    def wake(self) -> None:
        """An erasure, or something that was erased, has come in."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; a background task."""
        while True:
            self._woken.clear()
            rows = self._database.reader.execute(
                "SELECT request, removed, related FROM feedback_erasures WHERE NOT done ORDER BY rowid"
            ).fetchall()
            for request, removed, related in rows:
                await self._finish(
                    events_pb2.ErasureRequested.FromString(request), orjson.loads(removed), orjson.loads(related)
                )
            await self._forget_in_log()
            await self._woken.wait()

    async def _finish(
        self, request: events_pb2.ErasureRequested, removed: dict[str, int], related: Collection[str]
    ) -> None:
        tenant = request.tenant or DEFAULT_TENANT
        ends = enumerate(await self._log.end(topics.ANSWERS_TOUCHED))
        touched = position_of({(topics.ANSWERS_TOUCHED, partition): end for partition, end in ends})
        while not await self._log.wait_committed([self._kpi_group], touched, WAIT_S):
            log.warning("feedback.erasure_waits", erasure=request.erasure_id, group=self._kpi_group)
        if any(removed.values()):
            await self._models.forget(tenant)
            removed["export_files"] = await self._exporter.renew(tenant)
        await self._forget_in_log()
        remaining = self._remaining(request, related)
        remaining["export_files"] = await self._exporter.holding(tenant, related)
        answer = events_pb2.ErasureDone(
            erasure_id=request.erasure_id, service=SERVICE, removed=removed, remaining=remaining, related_ids=related
        )
        answer.done_at.FromMilliseconds(int(self._clock() * 1000))
        message = acknowledgement(request, answer)._replace(event_id=f"{SERVICE}:{request.erasure_id}#done")
        told = await self._is_acknowledged(request.erasure_id)
        async with self._database.transaction(durable=True) as unit:
            if not told:
                unit.emit([message])
            unit.execute("UPDATE feedback_erasures SET done=1 WHERE erasure_id=?", (request.erasure_id,))

    async def _is_acknowledged(self, erasure_id: str) -> bool:
        """Tell whether the log has our answer already: whose database was lost takes in every request again."""
        while records := await self._log.read(topics.ERASURES_DONE, 0, self._seen):
            self._seen = records[-1].offset + 1
            answers = (events_pb2.ErasureDone.FromString(record.value) for record in records if record.value)
            self._acknowledged.update(answer.erasure_id for answer in answers if answer.service == SERVICE)
        return erasure_id in self._acknowledged

    def _remaining(self, request: events_pb2.ErasureRequested, related: Collection[str]) -> dict[str, int]:
        """Search the tables for the subject, and for what belonged to it."""
        tenant, reader = request.tenant or DEFAULT_TENANT, self._database.reader
        subjects = orjson.dumps([f"answer:{name}" for name in related]).decode()
        counts = {
            table: reader.execute(
                f"SELECT count(*) FROM feedback_{table} WHERE tenant=? AND subject IN (SELECT value FROM json_each(?))",
                (tenant, subjects),
            ).fetchone()[0]
            for table in TABLES
        }
        until_ms = request.requested_at.ToMilliseconds()
        for _, name in names_of_erasure(request):
            counts["turns"] += reader.execute(
                "SELECT count(*) FROM feedback_askers WHERE tenant=? AND name=? AND asked_ms<=?",
                (tenant, name, until_ms),
            ).fetchone()[0]
        return counts

    async def _forget_in_log(self) -> None:
        """Take out of the log what its own part of an erasure does not know of, such as a turn that came in later."""
        rows = self._database.reader.execute("SELECT tenant, subject, until_ms FROM feedback_unlogged").fetchall()
        if not rows:
            return
        erased = Erased({Key(tenant, subject): until_ms for tenant, subject, until_ms in rows})
        removed = await self._log.erase(erased.holds, KEPT)
        async with self._database.transaction() as unit:
            unit.executemany("DELETE FROM feedback_unlogged WHERE tenant=? AND subject=? AND until_ms=?", rows)
        if removed:
            await self._database.scrub()
        log.info("feedback.forgotten_in_log", things=len(rows), removed=removed)


class Erased:
    """Names of what was erased, and until when: `answer:<id>`, `conversation:<id>` and `rater:<name>` of tenants."""

    def __init__(self, until_ms: Mapping[Key, int]) -> None:
        """Of a conversation and of a rater, only ratings (and their classifications) are meant."""
        self._until_ms = until_ms
        self._answers = [
            (key.tenant, answer, field_bytes(answer))
            for key in until_ms
            if (answer := key.subject.removeprefix("answer:")) != key.subject
        ]

    def holds(self, record: Record) -> bool:
        """Tell whether a record is about something of it, or holds it."""
        tenant, *parts = (record.key or b"").decode(errors="replace").split(SEPARATOR)
        value = record.value or b""
        if any(tenant == owner and (name in parts or raw in value) for owner, name, raw in self._answers):
            return True
        if record.topic not in (topics.RATINGS, topics.CLASSIFIED):
            return False
        try:
            event = event_of(record)
            if isinstance(event, feedback_pb2.AnswerRated):
                at_ms, names = milliseconds(event.rated_at, record.timestamp_ms), {f"rater:{event.rater}"}
            elif isinstance(event, feedback_pb2.TurnClassified):
                at_ms, names = milliseconds(event.written_at, record.timestamp_ms), set[str]()
            else:
                return False
            key = key_of_event(event)
        except InvalidInputError:
            return False  # it has no name that could be erased
        return any(at_ms <= self._until_ms.get(Key(key.tenant, name), -1) for name in {key.subject, *names})
