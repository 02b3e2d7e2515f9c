"""Durable calls to slow and failing APIs: no job is lost, none blocks another, none is tried in vain.

The `Scheduler` is pure: it decides which jobs may start. The `Runner` is the thin shell that asks a store for
due jobs, runs them and records failures. A job's *success* is recorded by the work itself, in the transaction
that writes its result: done comes last. What a job is, and what a failure makes of it, is in `jobs`.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from typing import Protocol

import structlog

from services.kernel.breaker import Breaker, BreakerPolicy
from services.kernel.errors import UnavailableError
from services.kernel.jobs import (
    WAITING,
    EnrichmentError,
    Job,
    JobState,
    Lane,
    PermanentError,
    RateLimited,
    RetryPolicy,
    TransientError,
    after_failure,
    retried,
)

__all__ = [
    "WAITING",
    "BreakerPolicy",
    "EnrichmentError",
    "Job",
    "JobState",
    "JobStore",
    "Lane",
    "PermanentError",
    "RateLimited",
    "RetryPolicy",
    "Runner",
    "Scheduler",
    "TransientError",
    "after_failure",
    "retried",
]

log = structlog.get_logger(__name__)


class Scheduler:
    """Decides which jobs may start. Pure: knows what runs and how the providers are, does nothing itself."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self.running: dict[Hashable, Job] = {}
        self._batches = {Lane.LIVE: 0, Lane.BACKFILL: 0}
        self._breakers: dict[str, Breaker] = {}

    def breaker(self, provider: str) -> Breaker:
        """The circuit breaker of a provider."""
        return self._breakers.setdefault(provider, Breaker(self.policy.breaker))

    def blocked(self, now: float) -> frozenset[str]:
        """Providers of which nothing may start just now."""
        return frozenset(name for name, breaker in self._breakers.items() if breaker.blocks(now))

    def unblocks_at(self) -> float:
        """When the next paused provider may be tried again; infinity when none is paused."""
        times = [b.paused_until for b in self._breakers.values() if b.probing is None]
        return min(times, default=float("inf"))

    def admit(self, due: Sequence[Job], now: float) -> list[list[Job]]:
        """Choose what starts, and hold it as running.

        Args:
            due: jobs whose time has come, in the order of their queue.
            now: unix seconds.

        Returns:
            Batches of jobs of one provider and lane. Whoever runs one calls `ended` for it, whatever happens.
        """
        lanes = {lane: [job for job in due if job.lane is lane] for lane in Lane}
        batches = []
        for lane in Lane:
            queue = [job for job in lanes[lane] if job.key not in self.running]
            while queue and self._has_slot(lane, backfill_waits=bool(lanes[Lane.BACKFILL])):
                batch = self._take(queue, now)
                if not batch:
                    break
                for job in batch:
                    self.running[job.key] = job
                self._batches[lane] += 1
                batches.append(batch)
                queue = [job for job in queue if job.key not in self.running]
        return batches

    def _has_slot(self, lane: Lane, *, backfill_waits: bool) -> bool:
        slots, live, backfill = self.policy.slots, self._batches[Lane.LIVE], self._batches[Lane.BACKFILL]
        if live + backfill >= slots:
            return False
        if lane is Lane.BACKFILL:
            return backfill < max(1, slots - self.policy.live_slots)
        # An endless stream of live jobs must not starve the backfill either.
        return not (backfill_waits and backfill == 0 and slots > 1 and live >= slots - 1)

    def _take(self, queue: Sequence[Job], now: float) -> list[Job]:
        """The next batch of a queue, or nothing while its head waits for memory or for its provider."""
        held = sum(job.size for job in self.running.values())
        for head in queue:
            breaker = self.breaker(head.provider)
            if breaker.blocks(now):
                continue
            if self.running and held + head.size > self.policy.bytes_max:
                return []  # later, smaller ones must not push past for ever
            if breaker.is_open:
                mates = [job for job in queue if job.provider == head.provider]
                fresh = [job for job in mates if job.key not in breaker.probed]
                probe = min(fresh or [head], key=lambda job: job.attempts)
                breaker.probing = probe.key
                return [probe]
            return self._fill(head, queue, held)
        return []

    def _fill(self, head: Job, queue: Sequence[Job], held: int) -> list[Job]:
        batch, size = [head], held + head.size
        if head.attempts:
            return batch
        for job in queue:
            if len(batch) >= self.policy.batch_size or size + job.size > self.policy.bytes_max:
                break
            if job.key != head.key and job.provider == head.provider and not job.attempts:
                batch.append(job)
                size += job.size
        return batch

    def succeeded(self, jobs: Sequence[Job]) -> None:
        """The work of these jobs went through."""
        for provider in {job.provider for job in jobs}:
            self.breaker(provider).succeeded()

    def failed(self, jobs: Sequence[Job], error: EnrichmentError, now: float, chances: Iterator[float]) -> list[Job]:
        """Return what the failure of a batch makes of its jobs, and learn about their provider."""
        failed = []
        for job in jobs:
            breaker = self.breaker(job.provider)
            charged = not breaker.is_open
            if isinstance(error, RateLimited):
                breaker.rate_limited(now + error.retry_after_s)
            elif not isinstance(error, PermanentError):
                breaker.failed(job.key, now)
            failed.append(after_failure(job, error, now, self.policy, charged=charged, chance=next(chances)))
        return failed

    def ended(self, batch: Sequence[Job]) -> None:
        """A batch that `admit` returned does not run any more."""
        self._batches[batch[0].lane] -= 1
        for job in batch:
            del self.running[job.key]
            self.breaker(job.provider).ended(job.key)


class JobStore(Protocol):
    """Where the jobs are."""

    async def due(
        self, now: float, limit: int, running: Collection[Hashable], blocked: Collection[str]
    ) -> Sequence[Job]:
        """Return waiting jobs whose time has come, at most `limit` of each lane, those due longest first.

        Jobs with a key in `running` or a provider in `blocked` are left out.
        """

    async def next_due_at(self, running: Collection[Hashable], blocked: Collection[str]) -> float:
        """Return when the next job that `due` chooses among comes due; infinity when there is none."""

    async def record(self, jobs: Sequence[Job]) -> None:
        """Make the state of failed jobs last, of those that are still about the same version."""


class Runner:
    """Runs due jobs until cancelled; wakes by itself when a job comes due, and by `wake` when one is new."""

    def __init__(
        self,
        store: JobStore,
        work: Callable[[Sequence[Job]], Awaitable[None]],
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Wire the runner.

        Args:
            store: where the jobs are.
            work: does a batch and makes results and `done` last in one transaction, or raises one of
                the errors above.
            policy: how often, when, and how much at once.
            clock: unix seconds.
            chance: numbers in 0..1 for the jitter.
        """
        self.scheduler = Scheduler(policy)
        self._store = store
        self._work = work
        self._clock = clock
        self._chances = iter(chance, None)
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """A job may have become due."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled. Jobs that run then are abandoned; the store still has them as they were."""
        try:
            while True:
                self._woken.clear()
                try:
                    wait_s = await self._start_due()
                except Exception:  # whatever the store's driver raises: an outage must not end the service
                    log.exception("enrichment.store_failed")
                    wait_s = 1.0
                # Not `wait_for`: it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s if wait_s < float("inf") else None):
                        await self._woken.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_due(self) -> float:
        """Start what may start; return for how long nothing else can happen by itself, in seconds."""
        now, scheduler = self._clock(), self.scheduler
        limit = scheduler.policy.slots * scheduler.policy.batch_size
        due = await self._store.due(now, limit, set(scheduler.running), scheduler.blocked(now))
        for batch in scheduler.admit(due, now):
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        at = await self._store.next_due_at(set(scheduler.running), scheduler.blocked(now))
        # What is due and did not start waits for a slot or for memory: the end of a batch wakes us.
        times = [time for time in (at, scheduler.unblocks_at()) if time > now]
        return min(times, default=float("inf")) - now

    async def _run(self, batch: list[Job]) -> None:
        try:
            await self._attempt(batch)
        except Exception:  # the store failed: the jobs are as they were, and due again
            log.exception("enrichment.record_failed")
            await asyncio.sleep(1.0)
        finally:
            self.scheduler.ended(batch)
            self.wake()

    async def _attempt(self, jobs: Sequence[Job]) -> None:
        try:
            await self._work(jobs)
        except PermanentError as error:
            if len(jobs) > 1:  # halve until the culprit stands alone
                middle = len(jobs) // 2
                await self._attempt(jobs[:middle])
                await self._attempt(jobs[middle:])
                return
            await self._failed(jobs, error)
        except EnrichmentError as error:
            await self._failed(jobs, error)
        except UnavailableError as error:  # something that the work needs is not there yet
            await self._failed(jobs, TransientError(str(error)))
        except Exception as error:  # a bug in the work: the jobs must not be lost, and are parked in the end
            log.exception("enrichment.work_failed", keys=[job.key for job in jobs])
            await self._failed(jobs, TransientError(f"{type(error).__name__}: {error}"))
        else:
            self.scheduler.succeeded(jobs)

    async def _failed(self, jobs: Sequence[Job], error: EnrichmentError) -> None:
        failed = self.scheduler.failed(jobs, error, self._clock(), self._chances)
        keys = [job.key for job in jobs]
        log.info("enrichment.failed", keys=keys, state=failed[0].state.value, error=str(error))
        await self._store.record(failed)
