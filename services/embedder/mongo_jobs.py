"""The retry state of documents in MongoDB: what the enrichment runners of all workers work through.

A worker does the jobs of the partitions that it has. What comes of a job is not written here but told by an event,
which comes back to the worker that has the partition then (`results`). Until it does, the job is left alone. A worker
that was paused and has lost the partition does nothing worse than a job twice.
"""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from headwater.common.v1 import common_pb2
from headwater.embedder.v1 import events_pb2
from services.embedder.events import GROUP, job_proto
from services.embedder.mongo_documents import DOCUMENTS, HINTS, OPEN, key_of_name, name_of
from services.embedder.ports import Assignment
from services.embedder.results import result_message
from services.embedder.state import Key
from services.kernel import topics
from services.kernel.jobs import Job, JobState, Lane, retried
from services.kernel.log import Log, Message, Offsets
from services.kernel.mongo_ledger import PRESENT
from services.kernel.mongodb import Mongo, asked

HANDED_IN_S = 60.0  # a result that did not come back by then is made again
LOOK_AGAIN_S = 1.0  # partitions may have come with jobs that are due
_POLL_S = 0.05
_RETRIED_WITHIN_S = 10.0
_FIELDS = ("tenant", "wanted", "life", "job")
_RETRIABLE = [JobState.PARKED.value, JobState.DEFERRED.value, JobState.RETRYING.value]


class Doing(NamedTuple):
    """The key of a job: a document, and its number."""

    key: Key
    life: int


class HandedIn:
    """Jobs whose results are on their way: left alone until these come back, or are too long away. Pure."""

    def __init__(self) -> None:
        self._until: dict[tuple[Doing, str], float] = {}

    def add(self, job: Job, now: float) -> None:
        """Take note that a result was told at a time, in seconds of any clock."""
        self._until[_doing(job), job.version] = now + HANDED_IN_S

    def came_back(self, keys: Collection[Key]) -> None:
        """Take note of documents whose results have been taken in, or are void."""
        self._until = {each: until for each, until in self._until.items() if each[0].key not in keys}

    def hold(self, job: Job) -> bool:
        """Whether the result of just this work is on its way."""
        return (job.key, job.version) in self._until

    def pending(self, now: float) -> int:
        """Return how many there are; those that are too long away are given up."""
        self._until = {each: until for each, until in self._until.items() if until > now}
        return len(self._until)


class MongoJobs:
    """Implements `Jobs`."""

    def __init__(self, mongo: Mongo, log: Log, clock: Callable[[], float], *, provider: str) -> None:
        """Wire it.

        Args:
            mongo: the database.
            log: where results go; knows the partitions of this worker.
            clock: unix seconds.
            provider: the embedding model's id.
        """
        self._mongo, self._log, self._clock, self._provider = mongo, log, clock, provider
        self._handed_in = HandedIn()

    def mine(self) -> list[int]:
        """Return the numbers of the partitions that this worker has."""
        return sorted({number for topic, number in self._log.assigned(GROUP) if topic == topics.RESULTS})

    # For the runner ---------------------------------------------------------------------------------------------

    async def due(self, now: float, limit: int, running: Collection[Hashable], blocked: Collection[str]) -> list[Job]:
        """Return waiting jobs whose time has come, at most `limit` of each lane, those due longest first."""
        mine = self.mine()
        if not mine or self._provider in blocked:
            return []
        more = len(running) + self._handed_in.pending(time.monotonic())
        jobs = []
        for lane in Lane:
            wanted = {"slot": {"$in": mine}, "job.lane": lane.value, **OPEN}
            found = await self._first(wanted | {"job.due_at": {"$lte": now}}, limit + more, "job.due_at", _FIELDS)
            jobs += self._idle(found, running)[:limit]
        return jobs

    async def next_due_at(self, running: Collection[Hashable], blocked: Collection[str]) -> float:
        """Return when the next job comes due, or is looked for."""
        mine, again = self.mine(), self._clock() + LOOK_AGAIN_S
        if not mine or self._provider in blocked:
            return again
        more = len(running) + self._handed_in.pending(time.monotonic())
        found = await self._first({"slot": {"$in": mine}, **OPEN}, 1 + more, "job.due_at", _FIELDS)
        return min([job.due_at for job in self._idle(found, running)] + [again])

    def _idle(self, found: Sequence[Mapping[str, Any]], running: Collection[Hashable]) -> list[Job]:
        """Return the jobs that nobody does: of a document whose former life is being worked on, neither."""
        busy = {doing.key for doing in running if isinstance(doing, Doing)}
        return [job for job in map(self._job, found) if _key(job) not in busy and not self._handed_in.hold(job)]

    async def record(self, jobs: Sequence[Job]) -> None:
        """Tell how failed jobs stand."""
        await self._tell(jobs)

    async def _tell(self, jobs: Sequence[Job]) -> common_pb2.Position:
        names = [name_of(_key(job)) for job in jobs]
        found = await self._mongo.find(DOCUMENTS, {"_id": {"$in": names}, **PRESENT}, ["job"])
        quiet = {key_of_name(each["_id"]): bool((each["job"] or {}).get("quiet")) for each in found}
        now_ms = int(self._clock() * 1000)
        messages = [
            result_message(_key(job), job, _doing(job).life, now_ms, quiet=quiet.get(_key(job), True)) for job in jobs
        ]
        return await self._hand_in(messages, jobs)

    async def hand_in(self, message: Message, job: Job) -> None:
        """Tell the result of a job that is done."""
        await self._hand_in([message], [job])

    async def _hand_in(self, messages: Sequence[Message], jobs: Sequence[Job]) -> common_pb2.Position:
        for job in jobs:  # before: a result may come back before its acknowledgement
            self._handed_in.add(job, time.monotonic())
        try:
            return await self._log.append(messages, from_outside=False)
        except BaseException:
            self.came_back([_key(job) for job in jobs])
            raise

    def came_back(self, keys: Collection[Key]) -> None:
        """Take note of documents whose results have been taken in, or are void."""
        self._handed_in.came_back(keys)

    async def assignment(self, job: Job) -> Assignment | None:
        """Return what a job is to do; None when it is not wanted any more."""
        document = await self.wanted(job)
        if document is None:
            return None
        work = document["work"]
        return Assignment(
            _key(job), job.version, document["name"], work["media_type"], work["content"], work["topic"],
            work["partition"], work["offset"],
        )  # fmt: skip

    async def wanted(self, job: Job) -> dict[str, Any] | None:
        """Return the document of a job, as long as it waits for that."""
        found: dict[str, Any] | None = await asked(
            self._mongo.collection(DOCUMENTS).find_one({"_id": name_of(_key(job)), **PRESENT})
        )
        if found is None or not found["job"] or (found["life"], found["wanted"]) != (_doing(job).life, job.version):
            return None
        return found

    async def requeue(self) -> int:
        """Have documents embedded that another model has; return how many."""
        stale = {"version": {"$ne": ""}, "job": None, "model": {"$ne": self._provider}, **PRESENT}
        found = await self._mongo.find(DOCUMENTS, stale, _FIELDS)
        now = self._clock()
        jobs = [
            Job(Doing(key_of_name(each["_id"]), each["life"]), each["wanted"], self._provider, due_at=now)
            for each in found
        ]
        if jobs:
            await self._tell(jobs)
        return len(jobs)

    def _job(self, found: Mapping[str, Any]) -> Job:
        stored = found["job"]
        job = Job(
            Doing(key_of_name(found["_id"]), found["life"]), found["wanted"], self._provider, Lane(stored["lane"]),
            stored["size"], JobState(stored["state"]), stored["attempts"], stored["due_at"], stored["error"],
        )  # fmt: skip
        if stored["provider"] != self._provider and job.state is not JobState.PARKED:
            return replace(job, state=JobState.PENDING, attempts=0)  # what failed there does not count here
        return job

    # For people -------------------------------------------------------------------------------------------------

    async def listed(self, tenant: str, states: Collection[JobState], limit: int) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs of a tenant in any of the states, those due first first."""
        wanted = {"tenant": tenant, "job.state": {"$in": [state.value for state in states]}, **PRESENT}
        return [self._proto(each) for each in await self._first(wanted, limit, "job.due_at", _FIELDS)]

    def _proto(self, found: Mapping[str, Any]) -> events_pb2.EmbeddingJob:
        return job_proto(*key_of_name(found["_id"]), self._job(found))

    async def counts(self, tenant: str) -> dict[JobState, int]:
        """Return how many documents of a tenant are in each state."""
        counts = {state: await self._count({"tenant": tenant, "job.state": state.value}) for state in JobState}
        counts[JobState.DONE] = await self._count({"tenant": tenant, "job": None})
        return counts

    async def retry(self, tenant: str, document_ids: Collection[str]) -> int:
        """Make parked and waiting jobs pending again: the named documents', or all; return how many."""
        wanted: dict[str, Any] = {"tenant": tenant, "job.state": {"$in": _RETRIABLE}, **PRESENT}
        if document_ids:
            wanted["_id"] = {"$in": [name_of(Key(tenant, each)) for each in document_ids]}
        now = self._clock()
        jobs = [
            replace(retried(self._job(each), now), error="")
            for each in await self._mongo.find(DOCUMENTS, wanted, _FIELDS)
        ]
        if jobs:
            position = await self._tell(jobs)
            await self._log.wait_committed([GROUP], position, _RETRIED_WITHIN_S)
        return len(jobs)

    async def open_count(self) -> int:
        """Return how many documents cannot be found yet, or were given up."""
        return await self._count({"job": {"$ne": None}})

    async def unfinished_count(self) -> int:
        """Return how many jobs wait to be done."""
        return await self._count(dict(OPEN))

    async def all_finished(self) -> None:
        """Wait until no job waits to be done; those that were given up do not count."""
        await self._until(self._is_finished, float("inf"))

    async def finished_before(self, before: Offsets, timeout_s: float) -> bool:
        """Wait until no job waits of a record below an offset of a (topic, partition); False after `timeout_s`."""

        async def is_finished() -> bool:
            return not await self._is_unfinished(before)

        return await self._until(is_finished, timeout_s)

    async def _until(self, is_so: Callable[[], Any], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            # Before looking, so that nothing that happens meanwhile is missed.
            seen = {(topics.JOBS, partition): end for partition, end in enumerate(await self._log.end(topics.JOBS))}
            if await is_so():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # What is not told (a rebuild, or who may find a document) is looked for.
            await self._log.wait_for((topics.JOBS,), seen, min(left, _POLL_S))

    async def _is_finished(self) -> bool:
        return not await self._first(dict(OPEN), 1, "job.due_at", ["_id"])

    async def _is_unfinished(self, before: Offsets) -> bool:
        for (topic, partition), offset in before.items():
            place = {"slot": partition, "job.topic": topic, "job.origin": {"$lt": offset}}
            if await self._first({**place, **OPEN}, 1, "job.origin", ["_id"]):
                return True
            shown = {"slot": partition, "show": True, "topic": topic, "origin": {"$lt": offset}, **PRESENT}
            if await asked(self._mongo.collection(HINTS).find_one(shown)):
                return True
        return False

    async def first_unfinished(self, topic: str, partition: int) -> int | None:
        """Return the offset of the oldest record of a partition whose document cannot be found yet."""
        place = {"slot": partition, "job.topic": topic}
        found = await self._first({**place, **OPEN}, 1, "job.origin", ["job"])
        return int(found[0]["job"]["origin"]) if found else None

    async def unfinished_since_ms(self, tenant: str, source: str) -> int | None:
        """Return the event time of the oldest change of a source that cannot be found yet."""
        found = await self._first({"tenant": tenant, "source": source, **OPEN}, 1, "job.since_ms", ["job"])
        return int(found[0]["job"]["since_ms"]) if found else None

    async def parked(self, before: Offsets) -> list[events_pb2.EmbeddingJob]:
        """Return the jobs that were given up, of records below the offsets."""
        found = []
        for (topic, partition), offset in before.items():
            place = {"slot": partition, "job.topic": topic, "job.origin": {"$lt": offset}}
            wanted = {**place, "job.state": JobState.PARKED.value, **PRESENT}
            found += await self._mongo.find(DOCUMENTS, wanted, _FIELDS)
        return [self._proto(each) for each in sorted(found, key=lambda each: str(each["_id"]))]

    async def _count(self, wanted: Mapping[str, Any]) -> int:
        return int(await asked(self._mongo.collection(DOCUMENTS).count_documents({**wanted, **PRESENT})))

    async def _first(
        self, wanted: Mapping[str, Any], count: int, order: str, fields: Collection[str]
    ) -> list[dict[str, Any]]:
        cursor = self._mongo.collection(DOCUMENTS).find(wanted, dict.fromkeys(fields, 1))
        found: list[dict[str, Any]] = await asked(cursor.sort(order, 1).limit(count).to_list(None))
        return found


def _doing(job: Job) -> Doing:
    assert isinstance(job.key, Doing)  # noqa: S101 - all jobs are made here
    return job.key


def _key(job: Job) -> Key:
    return _doing(job).key
