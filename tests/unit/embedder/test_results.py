"""What the work of others on a document leads to, whichever of work and changes comes first."""

from dataclasses import replace
from typing import Any

import pytest

from headwater.embedder.v1 import events_pb2
from services.embedder import results
from services.embedder.mongo_jobs import HANDED_IN_S, Doing, HandedIn
from services.embedder.state import Document, Key, WorkingSet
from services.kernel import topics
from services.kernel.jobs import Job, JobState
from services.kernel.processor import Decision, Outcome

KEY = Key("default", "docs/a")
WAITING = Document(
    KEY, "docs", occurred_ms=5, wanted="v2", version="v1", title="Old", chunks=3, access=("staff",),
    shown_to=("nobody",), shown_ms=2, waits=True, row_id=7,
)  # fmt: skip
FOUND = replace(WAITING, version="v2", waits=False)


def take_in(
    document: Document | None, state: JobState = JobState.DONE, *, life: int = 7, version: str = "v2", **fields: Any
) -> tuple[WorkingSet, Decision]:
    """Take in a result of a document that was loaded."""
    told = {"title": "New", "chunks": 2, "embedded": 1, "source": "docs", "access": ("staff",), "quiet": False}
    job = Job(None, version, "hash/1", state=state, attempts=2, due_at=9.0, error="why" if state else "")
    message = results.result_message(KEY, job, life, 100, **{**told, **fields})
    assert message.topic == topics.RESULTS
    working = WorkingSet(documents={} if document is None else {KEY: document})
    event = events_pb2.EmbeddingResult.FromString(message.value or b"")
    return working, results.decide(working, event, message.timestamp_ms)


def test_a_version_that_is_done_is_what_can_be_found() -> None:
    state, decision = take_in(WAITING)
    found = state.documents[KEY]
    assert (found.version, found.title, found.chunks, found.waits) == ("v2", "New", 2, False)
    assert (found.shown_to, found.shown_ms) == (("staff",), 5)
    assert [message.topic for message in decision.outputs] == [topics.JOBS, topics.INDEXED]
    assert decision.outcome is Outcome.APPLIED
    assert KEY in state.tidy  # the older version's chunks
    assert KEY not in state.reshown


def test_a_first_version_leaves_nothing_to_be_tidied() -> None:
    state, _ = take_in(replace(WAITING, version=""))
    assert not state.tidy


def test_what_others_may_see_meanwhile_is_shown_to_them() -> None:
    state, _ = take_in(replace(WAITING, access=("all", "staff")))
    assert KEY in state.reshown


@pytest.mark.parametrize(
    ("document", "life", "version"),
    [(None, 7, "v2"), (WAITING, 6, "v2"), (WAITING, 7, "v1"), (FOUND, 7, "v2")],
    ids=["gone", "came back under its name", "another version is wanted", "done already"],
)
def test_what_nobody_wants_any_more_changes_nothing_and_is_removed(
    document: Document | None, life: int, version: str
) -> None:
    state, decision = take_in(document, life=life, version=version)
    assert decision == (Outcome.SUPERSEDED, ())
    assert state.documents.get(KEY) == document
    assert not state.changed
    assert KEY in state.tidy


@pytest.mark.parametrize("job_state", [JobState.RETRYING, JobState.PARKED, JobState.DEFERRED])
def test_a_failure_is_kept_and_told(job_state: JobState) -> None:
    state, decision = take_in(WAITING, job_state)
    kept = state.jobs[KEY]
    assert (kept.state, kept.attempts, kept.error) == (job_state, 2, "why")
    assert kept.due_at == (0 if job_state is JobState.PARKED else 9.0)
    assert [message.topic for message in decision.outputs] == [topics.JOBS]
    assert state.documents[KEY] == WAITING


def test_a_failure_of_what_was_done_meanwhile_is_nothing() -> None:
    state, decision = take_in(FOUND, JobState.RETRYING)
    assert decision.outcome is Outcome.SUPERSEDED
    assert not state.jobs
    assert not state.tidy


def test_another_model_has_what_can_be_found_done_again() -> None:
    state, _ = take_in(FOUND, JobState.PENDING)
    assert state.documents[KEY].waits
    state, _ = take_in(state.documents[KEY])
    assert not state.documents[KEY].waits


def test_what_is_made_again_from_the_log_is_not_told_again() -> None:
    state, decision = take_in(WAITING, quiet=True)
    assert state.documents[KEY].version == "v2"
    assert not decision.outputs


def test_only_the_work_whose_result_is_on_its_way_is_left_alone() -> None:
    handed_in, job = HandedIn(), Job(Doing(KEY, 7), "v1", "hash/1")
    handed_in.add(job, 0.0)
    assert handed_in.hold(job)
    assert not handed_in.hold(replace(job, version="v2"))  # another change came in between
    assert not handed_in.hold(replace(job, key=Doing(KEY, 8)))
    handed_in.came_back([Key("default", "docs/b")])
    assert handed_in.hold(job)
    handed_in.came_back([KEY])
    assert not handed_in.hold(job)


def test_a_result_that_does_not_come_back_is_made_again() -> None:
    handed_in, job = HandedIn(), Job(Doing(KEY, 7), "v1", "hash/1")
    handed_in.add(job, 0.0)
    assert handed_in.pending(HANDED_IN_S - 1) == 1
    assert handed_in.pending(HANDED_IN_S) == 0
    assert not handed_in.hold(job)
