"""What the work on a document came to, where another worker may keep the document: the event, and what it leads to.

Outside the local database, whoever embeds a document does not write it. The worker that has the document's partition
does, through the ledger, as it does with changes of the document: so there is one writer, in one order, and a version
becomes searchable, and is told to be, once. Pure.
"""

from collections.abc import Sequence
from dataclasses import replace

from headwater.embedder.v1 import events_pb2
from services.embedder.events import STATES, indexed_event, job_event, job_proto
from services.embedder.state import Key, WorkingSet
from services.kernel import topics
from services.kernel.jobs import Job, JobState
from services.kernel.log import Message, key_of, message_of
from services.kernel.processor import SUPERSEDED, Decision, Outcome

RESULT = events_pb2.EmbeddingResult.DESCRIPTOR.full_name
_STATE_OF = {proto: state for state, proto in STATES.items()}


def result_message(
    key: Key,
    job: Job,
    document: int,
    at_ms: int,
    *,
    quiet: bool,
    title: str = "",
    chunks: int = 0,
    embedded: int = 0,
    source: str = "",
    access: Sequence[str] = (),
) -> Message:
    """Return the event that the work on a document came to something; see `EmbeddingResult` for what is told."""
    event = events_pb2.EmbeddingResult(
        job=job_proto(*key, job), document=document, title=title, chunks=chunks, embedded=embedded, source=source,
        access=access, quiet=quiet,
    )  # fmt: skip
    return message_of(topics.RESULTS, key_of(*key), event, at_ms)


def decide(state: WorkingSet, result: events_pb2.EmbeddingResult, at_ms: int) -> Decision:
    """Take a result in, where its version is still wanted; what was put into the index otherwise has to go."""
    told = result.job
    key, job = Key(told.tenant, told.document_id), _job(told)
    document = state.documents.get(key)
    state.told.add(key)
    is_done = job.state is JobState.DONE
    wanted = document is not None and (document.row_id, document.wanted) == (result.document, job.version)
    # What can be found already is only embedded again where another model has come.
    if document is None or not wanted or not (document.waits or job.state is JobState.PENDING):
        if is_done and not result.quiet:
            state.tidy.add(key)
        return SUPERSEDED
    state.jobs[key] = job
    state.changed.add(key)
    if not is_done:
        state.documents[key] = replace(document, waits=True)
        return Decision(Outcome.APPLIED, [] if result.quiet else [job_event(*key, job, at_ms)])
    state.documents[key] = replace(
        document, version=job.version, chunks=result.chunks, title=result.title, shown_to=document.access,
        shown_ms=document.occurred_ms, waits=False,
    )  # fmt: skip
    if (result.source, tuple(result.access)) != (document.source, document.access):
        state.reshown.add(key)
    if document.version:
        state.tidy.add(key)
    indexed = indexed_event(
        *key, job.version, chunks=result.chunks, embedded=result.embedded, model_id=job.provider,
        occurred_ms=document.occurred_ms,
    )  # fmt: skip
    return Decision(Outcome.APPLIED, [] if result.quiet else [job_event(*key, job, document.occurred_ms), indexed])


def _job(told: events_pb2.EmbeddingJob) -> Job:
    return Job(
        None, told.version, told.provider, state=_STATE_OF[told.state], attempts=told.attempts,
        due_at=told.next_attempt_at.ToMilliseconds() / 1000, error=told.last_error,
    )  # fmt: skip
