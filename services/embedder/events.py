"""What the embedder tells the log: how a document's job stands, and what has become searchable. Pure."""

from headwater.embedder.v1 import events_pb2
from services.kernel import topics
from services.kernel.jobs import Job, JobState
from services.kernel.log import Message, key_of, message_of

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
