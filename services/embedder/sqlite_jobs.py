"""The retry state of documents in the installation's SQLite database: what the enrichment runner works through."""

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from headwater.embedder.v1 import events_pb2
from services.embedder.events import GROUP, job_event, job_proto
from services.embedder.ports import Assignment
from services.embedder.sqlite_documents import IN, parameter
from services.embedder.state import Key
from services.kernel import topics
from services.kernel.jobs import Job, JobState, Lane, retried
from services.kernel.log import Log, Message, Offsets
from services.kernel.sqlite import Database, Transaction

# How often a rebuild, which publishes nothing, is looked at.
_MUTED_POLL_S = 0.05
_JOB = "document, version, provider, lane, size, state, attempts, due_at, last_error"
_WAITS = f"state<>'parked' AND document NOT {IN} AND provider NOT {IN}"
_JOINED = (
    "SELECT d.tenant, d.document_id, j.document, j.version, j.provider, j.lane, j.size, j.state, j.attempts, j.due_at, "
    "j.last_error FROM knowledge_jobs j JOIN knowledge_documents d ON d.id=j.document"
)


def row_id(job: Job) -> int:
    """Return where the document of a job is stored, which is the job's key."""
    assert isinstance(job.key, int)  # noqa: S101 - all jobs are made here
    return job.key


class SqliteJobs:
    """Jobs by the row of their document."""

    def __init__(self, database: Database, log: Log, clock: Callable[[], float]) -> None:
        self._database, self._log, self._clock = database, log, clock

    # For the runner ---------------------------------------------------------------------------------------------

    async def due(self, now: float, limit: int, running: Collection[Hashable], blocked: Collection[str]) -> list[Job]:
        """Return waiting jobs whose time has come, at most `limit` of each lane, those due longest first."""
        sql = f"""SELECT {_JOB} FROM knowledge_jobs WHERE {_WAITS} AND lane=? AND due_at<=?
                  ORDER BY due_at, document LIMIT ?"""
        left_out = _texts(running), parameter(blocked)
        return [
            _job(row)
            for lane in Lane
            for row in self._database.reader.execute(sql, (*left_out, lane, now, limit)).fetchall()
        ]

    async def next_due_at(self, running: Collection[Hashable], blocked: Collection[str]) -> float:
        """Return when the next job comes due; infinity when there is none."""
        times: list[float] = []
        for lane in Lane:
            sql = f"SELECT due_at FROM knowledge_jobs WHERE {_WAITS} AND lane=? ORDER BY due_at LIMIT 1"
            row = self._database.reader.execute(sql, (_texts(running), parameter(blocked), lane)).fetchone()
            times.extend(row or ())
        return min(times, default=float("inf"))

    async def record(self, jobs: Sequence[Job]) -> None:
        """Make the state of failed jobs last, of those that are still about the same version, and tell the log."""
        async with self._database.transaction() as unit:
            for job in jobs:
                self._write(unit, job)

    def _write(self, unit: Transaction, job: Job) -> None:
        state = (job.state.value, job.attempts, job.due_at, job.error)
        changed = unit.execute(
            """UPDATE knowledge_jobs SET state=?, attempts=?, due_at=?, last_error=? WHERE document=? AND version=?
               RETURNING (SELECT tenant FROM knowledge_documents WHERE id=document),
                         (SELECT document_id FROM knowledge_documents WHERE id=document)""",
            (*state, job.key, job.version),
        ).fetchall()
        now_ms = int(self._clock() * 1000)
        self.tell(unit, [job_event(tenant, document_id, job, now_ms) for tenant, document_id in changed])

    def tell(self, unit: Transaction, messages: Iterable[Message]) -> None:
        """Publish what the background work did; during a rebuild it is in the log already."""
        if not self._log.is_muted(GROUP):
            unit.emit(list(messages))

    async def assignment(self, job: Job) -> Assignment | None:
        """Return what a job is to do; None when it is not wanted any more."""
        row = self._database.reader.execute(
            """SELECT d.tenant, d.document_id, j.version, d.name, j.media_type, j.content, j.topic, j.partition,
                      j."offset"
               FROM knowledge_jobs j JOIN knowledge_documents d ON d.id=j.document
               WHERE j.document=? AND j.version=?""",
            (job.key, job.version),
        ).fetchone()
        return Assignment(Key(row[0], row[1]), *row[2:]) if row else None

    # For people -------------------------------------------------------------------------------------------------

    async def listed(self, tenant: str, states: Collection[JobState], limit: int) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs of a tenant in any of the states, those due first first."""
        rows = self._database.reader.execute(
            f"{_JOINED} WHERE d.tenant=? AND j.state {IN} ORDER BY j.due_at, j.document LIMIT ?",
            (tenant, parameter(state.value for state in states), limit),
        )
        return [job_proto(tenant, document_id, _job(fields)) for tenant, document_id, *fields in rows.fetchall()]

    async def counts(self, tenant: str) -> dict[JobState, int]:
        """Return how many documents of a tenant are in each state."""
        reader = self._database.reader
        rows = reader.execute(
            """SELECT j.state, count(*) FROM knowledge_jobs j JOIN knowledge_documents d ON d.id=j.document
               WHERE d.tenant=? GROUP BY j.state""",
            (tenant,),
        )
        counts = dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in rows}
        (total,) = reader.execute("SELECT count(*) FROM knowledge_documents WHERE tenant=?", (tenant,)).fetchone()
        counts[JobState.DONE] = total - sum(counts.values())
        return counts

    async def retry(self, tenant: str, document_ids: Collection[str]) -> int:
        """Make parked and waiting jobs pending again: the named documents', or all; return how many."""
        now = self._clock()
        async with self._database.transaction() as unit:
            sql, parameters = f"{_JOINED} WHERE d.tenant=? AND j.state<>'pending'", [tenant]
            if document_ids:
                sql, parameters = f"{sql} AND d.document_id {IN}", [tenant, parameter(document_ids)]
            jobs = [_job(fields) for _, _, *fields in unit.execute(sql, parameters).fetchall()]
            for job in jobs:
                self._write(unit, replace(retried(job, now), error=""))
        return len(jobs)

    async def hand_over(self, provider: str) -> None:
        """Give the jobs of another provider, which is not used any more, to this one; no failure there counts here."""
        now = self._clock()
        async with self._database.transaction() as unit:
            unit.execute(
                """UPDATE knowledge_jobs SET provider=?, state='pending', attempts=0, due_at=?
                   WHERE state<>'parked' AND provider<>?""",
                (provider, now, provider),
            )
            unit.execute("UPDATE knowledge_jobs SET provider=? WHERE provider<>?", (provider, provider))

    async def open_count(self) -> int:
        """Return how many documents cannot be found yet, or were given up."""
        return int(self._one("SELECT count(*) FROM knowledge_jobs") or 0)

    async def all_finished(self) -> None:
        """Wait until no job waits to be done; those that were given up do not count."""
        await self._until(self._is_finished, float("inf"), _MUTED_POLL_S)

    async def finished_before(self, before: Offsets, timeout_s: float) -> bool:
        """Wait until no job waits of a record below an offset of a (topic, partition); False after `timeout_s`."""
        return await self._until(lambda: not self._unfinished_before(before), timeout_s, timeout_s)

    async def _until(self, is_so: Callable[[], bool], timeout_s: float, poll_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            # Before looking, so that nothing that happens meanwhile is missed.
            seen = {(topics.JOBS, partition): end for partition, end in enumerate(await self._log.end(topics.JOBS))}
            if is_so():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self._log.wait_for((topics.JOBS,), seen, min(left, poll_s))

    def _is_finished(self) -> bool:
        return self._one("SELECT 1 FROM knowledge_jobs WHERE state<>'parked' LIMIT 1") is None

    def _unfinished_before(self, before: Offsets) -> bool:
        sql = "SELECT 1 FROM knowledge_jobs WHERE state<>'parked' AND topic=? AND partition=? AND origin<? LIMIT 1"
        return any(self._one(sql, *place, offset) is not None for place, offset in before.items())

    async def unfinished_count(self) -> int:
        """Return how many jobs wait to be done."""
        return int(self._one("SELECT count(*) FROM knowledge_jobs WHERE state<>'parked'") or 0)

    async def first_unfinished(self, topic: str, partition: int) -> int | None:
        """Return the offset of the oldest record of a partition whose document cannot be found yet."""
        return self._one(
            "SELECT min(origin) FROM knowledge_jobs WHERE state<>'parked' AND topic=? AND partition=?", topic, partition
        )

    async def unfinished_since_ms(self, tenant: str, source: str) -> int | None:
        """Return the event time of the oldest change of a source that cannot be found yet."""
        sql = "SELECT min(since_ms) FROM knowledge_jobs WHERE state<>'parked' AND tenant=? AND source=?"
        return self._one(sql, tenant, source)

    def _one(self, sql: str, *parameters: object) -> int | None:
        row = self._database.reader.execute(sql, parameters).fetchone()
        return row[0] if row else None

    async def parked(self, before: Offsets) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs that were given up, of records below the offsets."""
        found = []
        for (topic, partition), offset in before.items():
            rows = self._database.reader.execute(
                f"{_JOINED} WHERE j.state='parked' AND j.topic=? AND j.partition=? AND j.origin<? ORDER BY 1, 2",
                (topic, partition, offset),
            )
            found += [job_proto(tenant, name, _job(fields)) for tenant, name, *fields in rows.fetchall()]
        return found


def _texts(keys: Collection[Hashable]) -> str:
    return parameter(key for key in keys if isinstance(key, int))


def _job(row: Sequence[Any]) -> Job:
    document, version, provider, lane, size, state, attempts, due_at, error = row
    return Job(document, version, provider, Lane(lane), size, JobState(state), attempts, due_at, error)
