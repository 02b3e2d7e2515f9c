"""A job of durable enrichment, pure: where it stands, what may go wrong, and what a failure makes of it.

pending ──▶ (running) ──▶ done
   ▲            ├─ rate limited ─▶ deferred   until the provider's own time; no attempt is charged
   │            ├─ transient ────▶ retrying   exponential back-off with full jitter; in the end parked
   │            └─ permanent ────▶ parked     a person must look; `retry` makes it pending again
   └── retry ◀──────┘
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import assert_never

from services.kernel.breaker import BreakerPolicy
from services.kernel.errors import HeadwaterError
from services.kernel.retry import backoff_s


class JobState(Enum):
    """Where a job stands. Running is no state: a process that dies leaves its jobs as they were."""

    PENDING = "pending"
    DEFERRED = "deferred"
    RETRYING = "retrying"
    PARKED = "parked"
    DONE = "done"


WAITING = frozenset({JobState.PENDING, JobState.DEFERRED, JobState.RETRYING})


class Lane(IntEnum):
    """Which queue a job is in: what changed just now goes ahead of what was there when capture began."""

    LIVE = 0
    BACKFILL = 1


class EnrichmentError(HeadwaterError):
    """Base of what a job's work may raise."""


class RateLimited(EnrichmentError):  # noqa: N818 - it is no fault, and reads so where it is raised
    """The provider asks to come back after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(0.0, retry_after_s)


class TransientError(EnrichmentError):
    """The provider failed in a way that may pass: a timeout, a refused connection, a server error."""


class PermanentError(EnrichmentError):
    """It can never succeed as it is: the message says what is wrong, and the cure."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to be done, with its durable retry state.

    Attributes:
        key: names it; at most one job of a key runs at a time.
        version: what of it: a failure is recorded only while the job is still about this version.
        provider: whose health it depends on.
        lane: its queue.
        size: bytes of memory that it holds while it runs, about.
        state, attempts, due_at, error: where it stands; attempts that failed, unix seconds, the last error.
    """

    key: Hashable
    version: str
    provider: str
    lane: Lane = Lane.LIVE
    size: int = 0
    state: JobState = JobState.PENDING
    attempts: int = 0
    due_at: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when to try again, and how much at once.

    Attributes:
        attempts_max: parked after this many failed attempts.
        base_s, cap_s: the longest wait after the first failure, and at all; waits are drawn evenly from 0 on.
        slots: batches that run at a time.
        live_slots: of these, how many backfill leaves to live jobs.
        batch_size: jobs that one call takes; a job that has failed before is always alone in its call.
        bytes_max: memory of all running jobs together; a larger job runs alone.
        breaker: when a provider is held to be broken.
    """

    attempts_max: int = 8
    base_s: float = 1.0
    cap_s: float = 300.0
    slots: int = 3
    live_slots: int = 1
    batch_size: int = 1
    bytes_max: int = 64 << 20
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)


def after_failure(
    job: Job, error: EnrichmentError, now: float, policy: RetryPolicy, *, charged: bool, chance: float
) -> Job:
    """Return what a failure makes of a job.

    Args:
        job: the job as it was when it started.
        error: why it failed.
        now: unix seconds.
        policy: the schedule.
        charged: False when the provider is known to be broken: the attempt is then not the job's fault.
        chance: a number in 0..1 for the jitter.
    """
    words = str(error) or type(error).__name__
    if isinstance(error, RateLimited):
        return replace(job, state=JobState.DEFERRED, due_at=now + error.retry_after_s, error=words)
    if isinstance(error, PermanentError):
        return replace(job, state=JobState.PARKED, attempts=job.attempts + 1, error=words)
    if not charged:
        return replace(job, state=JobState.DEFERRED, due_at=now, error=words)
    attempts = job.attempts + 1
    if attempts >= policy.attempts_max:
        return replace(job, state=JobState.PARKED, attempts=attempts, error=words)
    wait = backoff_s(attempts, base_s=policy.base_s, cap_s=policy.cap_s, chance=chance)
    return replace(job, state=JobState.RETRYING, attempts=attempts, due_at=now + wait, error=words)


def retried(job: Job, now: float) -> Job:
    """Return the job as a person's `retry` makes it: pending at once, with all its attempts again."""
    match job.state:
        case JobState.DEFERRED | JobState.RETRYING | JobState.PARKED:
            return replace(job, state=JobState.PENDING, attempts=0, due_at=now)
        case JobState.PENDING | JobState.DONE:
            return job
        case _:
            assert_never(job.state)
