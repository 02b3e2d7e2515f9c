"""What the embedder tells the log: how a document's job stands, and what has become searchable. Pure."""

from headwater.embedder.v1 import events_pb2
from services.embedder.ports import Making
from services.kernel import topics
from services.kernel.jobs import Job, JobState
from services.kernel.log import Message, key_of, message_of

GROUP = "embedder"
STATES = {
    JobState.PENDING: events_pb2.JOB_STATE_PENDING,
    JobState.DEFERRED: events_pb2.JOB_STATE_DEFERRED,
    JobState.RETRYING: events_pb2.JOB_STATE_RETRYING,
    JobState.PARKED: events_pb2.JOB_STATE_PARKED,
    JobState.DONE: events_pb2.JOB_STATE_DONE,
}


def job_proto(tenant: str, document_id: str, job: Job) -> events_pb2.EmbeddingJob:
    """Return a job's state as the contract has it."""
    proto = events_pb2.EmbeddingJob(
        tenant=tenant,
        document_id=document_id,
        version=job.version,
        state=STATES[job.state],
        attempts=job.attempts,
        last_error=job.error,
        provider=job.provider,
    )
    if job.state in {JobState.DEFERRED, JobState.RETRYING}:
        proto.next_attempt_at.FromMilliseconds(int(job.due_at * 1000))
    return proto


def job_event(tenant: str, document_id: str, job: Job, at_ms: int) -> Message:
    """Return the event that a job has come into a state."""
    return message_of(topics.JOBS, key_of(tenant, document_id), job_proto(tenant, document_id, job), at_ms)


def indexed_event(
    tenant: str, document_id: str, version: str, *, chunks: int, embedded: int, model_id: str, occurred_ms: int
) -> Message:
    """Return the event that a version is searchable; an empty version means that the document is gone."""
    event = events_pb2.DocumentIndexed(
        tenant=tenant, document_id=document_id, version=version, chunks=chunks, embedded=embedded, model_id=model_id
    )
    event.occurred_at.FromMilliseconds(occurred_ms)
    return message_of(topics.INDEXED, key_of(tenant, document_id), event, occurred_ms)


def finished_events(
    making: Making, *, embedded: int, occurred_ms: int, model_id: str, suffix: str = ""
) -> list[Message]:
    """Return the events that a version is searchable, and its job done.

    Args:
        making: the version.
        embedded: how many chunks had to be embedded for it.
        occurred_ms: when its change happened.
        model_id: the model.
        suffix: of the events' ids, where others make the same version searchable elsewhere.
    """
    job, assignment = making.job, making.assignment
    done = Job(job.key, job.version, job.provider, state=JobState.DONE, attempts=job.attempts)
    indexed = indexed_event(
        *assignment.key,
        job.version,
        chunks=len(making.cut.chunks),
        embedded=embedded,
        model_id=model_id,
        occurred_ms=occurred_ms,
    )
    # Work that no record caused (another model has come) gets ids from the log.
    place = f"{GROUP}:{assignment.topic}/{assignment.partition}/{assignment.offset}" if assignment.topic else ""
    return [
        job_event(*assignment.key, done, occurred_ms)._replace(event_id=place and f"{place}#done{suffix}"),
        indexed._replace(event_id=place and f"{place}#indexed{suffix}"),
    ]
