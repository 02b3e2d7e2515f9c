"""Durable enrichment: a failure's consequences, what may start, and a whole run against a scripted provider."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from dataclasses import replace
from itertools import repeat

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.kernel.breaker import BreakerPolicy
from services.kernel.enrichment import (
    WAITING,
    EnrichmentError,
    Job,
    JobState,
    Lane,
    PermanentError,
    RateLimited,
    RetryPolicy,
    Runner,
    Scheduler,
    TransientError,
    after_failure,
    retried,
)

Keys = Collection[Hashable]
Work = Callable[[Sequence[Job]], Awaitable[None]]
POLICY = RetryPolicy(attempts_max=3, base_s=10, cap_s=30)


def failed(job: Job, error: EnrichmentError, *, now: float = 100.0, charged: bool = True) -> Job:
    return after_failure(job, error, now, POLICY, charged=charged, chance=0.5)


def test_a_rate_limit_defers_by_the_providers_own_time_and_charges_nothing() -> None:
    job = failed(Job("a", "1", "p", attempts=1), RateLimited("429", 7.5))
    assert (job.state, job.attempts, job.due_at) == (JobState.DEFERRED, 1, 107.5)


def test_a_transient_failure_backs_off_exponentially_to_a_cap_with_full_jitter() -> None:
    waits = [after_failure(Job("a", "1", "p", attempts=n), TransientError("x"), 0, replace(POLICY, attempts_max=99),
                           charged=True, chance=1.0).due_at for n in range(4)]  # fmt: skip
    assert waits == [10, 20, 30, 30]
    assert failed(Job("a", "1", "p"), TransientError("x")).due_at == 105


def test_a_job_is_parked_when_its_attempts_are_used_up() -> None:
    job = failed(Job("a", "1", "p", attempts=2), TransientError("still down"))
    assert (job.state, job.attempts, job.error) == (JobState.PARKED, 3, "still down")


def test_a_permanent_failure_parks_at_once() -> None:
    assert failed(Job("a", "1", "p"), PermanentError("encrypted")).state is JobState.PARKED


def test_a_failure_of_a_provider_known_to_be_broken_is_not_charged_to_the_job() -> None:
    job = failed(Job("a", "1", "p", attempts=2), TransientError("down"), charged=False)
    assert (job.state, job.attempts) == (JobState.DEFERRED, 2)


def test_retry_makes_a_parked_job_pending_with_all_its_attempts() -> None:
    parked = Job("a", "1", "p", state=JobState.PARKED, attempts=3, due_at=5)
    assert retried(parked, 9) == replace(parked, state=JobState.PENDING, attempts=0, due_at=9)


def test_live_jobs_start_before_backfill_and_backfill_leaves_them_a_slot() -> None:
    scheduler = Scheduler(RetryPolicy(slots=3, live_slots=1))
    backfill = [Job(f"b{n}", "1", "p", Lane.BACKFILL) for n in range(5)]
    assert len(scheduler.admit(backfill, 0)) == 2
    assert scheduler.admit([*backfill[2:], Job("live", "1", "p")], 0) == [[Job("live", "1", "p")]]


def test_an_endless_stream_of_live_jobs_leaves_a_slot_for_backfill() -> None:
    scheduler = Scheduler(RetryPolicy(slots=3, live_slots=1))
    live = [Job(f"l{n}", "1", "p") for n in range(9)]
    started = scheduler.admit([*live, Job("b", "1", "p", Lane.BACKFILL)], 0)
    assert [batch[0].lane for batch in started] == [Lane.LIVE, Lane.LIVE, Lane.BACKFILL]


def test_running_jobs_stay_within_the_byte_budget_but_a_larger_one_runs_alone() -> None:
    scheduler = Scheduler(RetryPolicy(slots=9, bytes_max=100))
    jobs = [Job("a", "1", "p", size=60), Job("big", "1", "p", size=500), Job("c", "1", "p", size=10)]
    assert [b[0].key for b in scheduler.admit(jobs, 0)] == ["a"]  # and c does not push past big
    scheduler.ended([jobs[0]])
    assert [b[0].key for b in scheduler.admit(jobs[1:], 0)] == ["big"]


def test_a_job_that_has_failed_is_alone_in_its_batch() -> None:
    scheduler = Scheduler(RetryPolicy(slots=9, batch_size=4))
    jobs = [Job("a", "1", "p"), Job("bad", "1", "p", attempts=1), Job("c", "1", "p"), Job("d", "1", "q")]
    assert [[j.key for j in b] for b in scheduler.admit(jobs, 0)] == [["a", "c"], ["bad"], ["d"]]


def test_a_broken_provider_pauses_only_its_own_jobs_and_one_probe_reopens_it() -> None:
    scheduler = Scheduler(RetryPolicy(slots=9, breaker=BreakerPolicy(failures=2, pause_s=10)))
    down = [Job(f"d{n}", "1", "down") for n in range(4)]
    for job in down[:2]:
        scheduler.admit([job], 0)
        scheduler.failed([job], TransientError("refused"), 0, repeat(1.0))
        scheduler.ended([job])
    assert scheduler.blocked(5) == {"down"}
    assert [b[0].key for b in scheduler.admit([*down, Job("up", "1", "up")], 5)] == ["up"]
    assert [b[0].key for b in scheduler.admit(down, 10)] == ["d0"]  # the probe, alone
    assert scheduler.admit(down, 10) == []
    scheduler.succeeded([down[0]])
    scheduler.ended([down[0]])
    assert len(scheduler.admit(down, 10)) == 4


def test_a_failed_probe_opens_the_circuit_for_longer_and_another_job_probes_next() -> None:
    scheduler = Scheduler(RetryPolicy(slots=9, breaker=BreakerPolicy(failures=1, pause_s=10)))
    jobs = [Job("poison", "1", "p"), Job("good", "1", "p")]
    scheduler.admit(jobs[:1], 0)
    scheduler.failed(jobs[:1], TransientError("x"), 0, repeat(1.0))
    scheduler.ended(jobs[:1])
    assert [b[0].key for b in scheduler.admit(jobs[:1], 10)] == ["poison"]
    (again,) = scheduler.failed(jobs[:1], TransientError("x"), 10, repeat(1.0))
    scheduler.ended(jobs[:1])
    assert again.attempts == 0  # the provider's fault, as far as anybody knows
    assert scheduler.blocked(29) == {"p"}
    assert [b[0].key for b in scheduler.admit(jobs, 30)] == ["good"]


def test_one_poisonous_job_never_opens_the_circuit() -> None:
    scheduler = Scheduler(RetryPolicy(breaker=BreakerPolicy(failures=2)))
    for _ in range(9):
        scheduler.admit([Job("poison", "1", "p")], 0)
        scheduler.failed([Job("poison", "1", "p")], TransientError("x"), 0, repeat(1.0))
        scheduler.ended([Job("poison", "1", "p")])
    assert not scheduler.blocked(0)


class MemoryJobs:
    """A store of jobs in memory; `done` is called by the work, as a real one does in its own transaction."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.results: Counter[Hashable] = Counter()
        self.settled = asyncio.Event()

    def _open(self, running: Collection[Hashable], blocked: Collection[str]) -> list[Job]:
        return sorted(
            (j for j in self.jobs.values()
             if j.state in WAITING and j.key not in running and j.provider not in blocked),
            key=lambda job: job.due_at,
        )  # fmt: skip

    async def due(self, now: float, limit: int, running: Keys, blocked: Collection[str]) -> list[Job]:
        due = [job for job in self._open(running, blocked) if job.due_at <= now]
        return [job for lane in Lane for job in [j for j in due if j.lane is lane][:limit]]

    async def next_due_at(self, running: Keys, blocked: Collection[str]) -> float:
        return min((job.due_at for job in self._open(running, blocked)), default=float("inf"))

    async def record(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self.jobs[job.key].version == job.version:
                self.jobs[job.key] = job
        self._check()

    def done(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.results[job.key] += 1
            self.jobs[job.key] = replace(job, state=JobState.DONE)
        self._check()

    def _check(self) -> None:
        if not any(job.state in WAITING for job in self.jobs.values()):
            self.settled.set()


async def run_to_the_end(store: MemoryJobs, work: Work, policy: RetryPolicy) -> None:
    runner = Runner(store, work, policy)
    task = asyncio.create_task(runner.run())
    await asyncio.wait_for(store.settled.wait(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


FAULTS = st.lists(st.sampled_from(["ok", "429", "503", "bug"]), max_size=3)


@given(
    st.lists(st.tuples(FAULTS, st.booleans(), st.sampled_from(Lane)), min_size=1, max_size=25),
    st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
async def test_no_job_is_lost_done_twice_or_blocked_whatever_the_provider_does(
    scripts: list[tuple[list[str], bool, Lane]], batch_size: int
) -> None:
    jobs = [Job(n, "1", "p", lane) for n, (_, _, lane) in enumerate(scripts)]
    store = MemoryJobs(jobs)
    poison = {n for n, (_, poisonous, _) in enumerate(scripts) if poisonous}
    faults: dict[Hashable, list[str]] = {n: list(script) for n, (script, _, _) in enumerate(scripts)}

    async def work(batch: Sequence[Job]) -> None:
        await asyncio.sleep(0)
        for job in batch:
            match faults[job.key].pop() if faults[job.key] else "ok":
                case "429":
                    raise RateLimited("slow down", 0.001)
                case "503":
                    raise TransientError("unavailable")
                case "bug":
                    raise KeyError("oops")
        if any(job.key in poison for job in batch):
            raise PermanentError("poison")
        store.done(batch)

    policy = RetryPolicy(base_s=0.001, cap_s=0.002, attempts_max=99, batch_size=batch_size,
                         breaker=BreakerPolicy(failures=3, pause_s=0.001, pause_max_s=0.002))  # fmt: skip
    await run_to_the_end(store, work, policy)
    for n in range(len(scripts)):
        assert store.jobs[n].state is (JobState.PARKED if n in poison else JobState.DONE)
        assert store.results[n] == (0 if n in poison else 1)


async def test_a_job_that_becomes_pending_starts_at_once_when_woken() -> None:
    store = MemoryJobs([])

    async def work(batch: Sequence[Job]) -> None:
        store.done(batch)

    runner = Runner(store, work, RetryPolicy())
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    store.jobs["new"] = Job("new", "1", "p")
    runner.wake()
    await asyncio.wait_for(store.settled.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_comes_together_with_a_wake_ends_the_runner(turns: int) -> None:
    async def work(batch: Sequence[Job]) -> None:
        raise AssertionError

    runner = Runner(MemoryJobs([Job("a", "1", "p", due_at=9e12)]), work, RetryPolicy())
    task = asyncio.create_task(runner.run())
    for _ in range(5):
        await asyncio.sleep(0)
    runner.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done


async def test_a_newer_version_that_arrives_while_the_older_one_fails_is_not_charged() -> None:
    store = MemoryJobs([Job("a", "1", "p")])

    async def work(batch: Sequence[Job]) -> None:
        if batch[0].version == "1":
            store.jobs["a"] = Job("a", "2", "p")
            raise PermanentError("broken")
        store.done(batch)

    await run_to_the_end(store, work, RetryPolicy())
    assert store.jobs["a"].state is JobState.DONE
    assert store.jobs["a"].version == "2"


class Conservation(RuleBasedStateMachine):
    """Every job is in exactly one state, attempts only count charged failures, and no bound is passed."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.policy = RetryPolicy(attempts_max=3, slots=4, live_slots=1, batch_size=2, bytes_max=100,
                                  breaker=BreakerPolicy(failures=2, pause_s=5))  # fmt: skip
        self.scheduler = Scheduler(self.policy)
        self.store: dict[Hashable, Job] = {}
        self.batches: list[list[Job]] = []
        self.charged: Counter[Hashable] = Counter()
        self.now = 0.0

    @rule(target=jobs, provider=st.sampled_from("pq"), lane=st.sampled_from(Lane), size=st.integers(0, 150))
    def arrives(self, provider: str, lane: Lane, size: int) -> Hashable:
        job = Job(len(self.store), "1", provider, lane, size)
        self.store[job.key] = job
        return job.key

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def starts(self) -> None:
        blocked = self.scheduler.blocked(self.now)
        due = [j for j in self.store.values() if j.state in WAITING and j.due_at <= self.now
               and j.provider not in blocked and j.key not in self.scheduler.running]  # fmt: skip
        started = self.scheduler.admit(due, self.now)
        assert not any(job.provider in blocked for batch in started for job in batch)
        if due and not self.batches:
            assert started  # nothing runs, something may: it does
        self.batches += started

    @rule(outcome=st.sampled_from(["ok", "429", "503", "poison"]), pick=st.integers(0, 9))
    def ends(self, outcome: str, pick: int) -> None:
        if not self.batches:
            return
        batch = self.batches.pop(pick % len(self.batches))
        if outcome == "ok":
            self.scheduler.succeeded(batch)
            self.store.update({j.key: replace(j, state=JobState.DONE) for j in batch})
        else:
            error: EnrichmentError = {
                "429": RateLimited("", 3),
                "503": TransientError(""),
                "poison": PermanentError(""),
            }[outcome]
            after = self.scheduler.failed(batch, error, self.now, repeat(0.5))
            self.store.update({j.key: j for j in after})
            self.charged.update(j.key for j, b in zip(after, batch, strict=True) if j.attempts > b.attempts)
        self.scheduler.ended(batch)

    @rule(key=jobs)
    def is_retried_by_a_person(self, key: Hashable) -> None:
        if key not in self.scheduler.running:
            before, after = self.store[key], retried(self.store[key], self.now)
            self.store[key] = after
            if after != before:
                self.charged[key] = 0

    @invariant()
    def attempts_are_what_was_charged(self) -> None:
        for key, job in self.store.items():
            assert job.attempts == self.charged[key]
            assert job.attempts <= self.policy.attempts_max or job.state is JobState.PARKED

    @invariant()
    def bounds_hold(self) -> None:
        running = self.scheduler.running
        assert set(running) == {job.key for batch in self.batches for job in batch}
        assert len(self.batches) <= self.policy.slots
        assert len(running) <= 1 or sum(j.size for j in running.values()) <= self.policy.bytes_max


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
