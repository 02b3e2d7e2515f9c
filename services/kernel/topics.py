"""The topics of Headwater, and how long each keeps what it holds."""

from enum import Enum
from typing import NamedTuple

DAY_MS = 24 * 60 * 60 * 1000


class Cleanup(Enum):
    """What happens to old records of a topic."""

    KEEP = "keep"  # for ever
    DELETE = "delete"  # after a time, or beyond a size
    COMPACT = "compact"  # all but the newest of each key, not before a lag


class TopicSpec(NamedTuple):
    """How a topic is made.

    Attributes:
        name: the topic's name.
        cleanup: what happens to old records.
        partitions: how many; None takes the installation's number.
        retention_ms: for DELETE, how long a record stays after it was appended; None means no limit in time.
        retention_bytes: for DELETE, how many bytes of keys and values a partition may hold; None means no limit.
        compaction_lag_ms: for COMPACT, how long a superseded record (or a tombstone) stays at least.
    """

    name: str
    cleanup: Cleanup
    partitions: int | None = None
    retention_ms: int | None = None
    retention_bytes: int | None = None
    compaction_lag_ms: int = DAY_MS


CHANGES = "changes"
ASSIGNMENTS = "identity.assignments"
DECISIONS = "identity.decisions"
TOUCHED = "profile.touched"
PROFILES = "profiles"
DOCUMENTS = "documents"
JOBS = "embedder.jobs"
RESULTS = "embedder.results"
INDEXED = "knowledge.indexed"
CONVERSATIONS = "conversations"
RATINGS = "ratings"
CLASSIFIED = "feedback.classified"
ANSWERS_TOUCHED = "feedback.touched"
KPIS = "kpis"
ALERTS = "alerts"
ERASURES = "erasures"
ERASURES_DONE = "erasures.done"
DEAD_LETTERS = "dead_letters"

TOPICS: tuple[TopicSpec, ...] = (
    # The longest window of a KPI or an aggregate is 90 days: until then every change stays.
    TopicSpec(CHANGES, Cleanup.COMPACT, compaction_lag_ms=90 * DAY_MS),
    TopicSpec(ASSIGNMENTS, Cleanup.COMPACT),
    TopicSpec(DECISIONS, Cleanup.KEEP),
    TopicSpec(TOUCHED, Cleanup.DELETE, retention_ms=DAY_MS),
    TopicSpec(PROFILES, Cleanup.COMPACT),
    TopicSpec(DOCUMENTS, Cleanup.COMPACT),
    TopicSpec(JOBS, Cleanup.COMPACT),
    # From a worker of the embedder to the one that keeps the document; the embedded installation needs no such way.
    TopicSpec(RESULTS, Cleanup.DELETE, retention_ms=DAY_MS),
    TopicSpec(INDEXED, Cleanup.COMPACT),
    TopicSpec(CONVERSATIONS, Cleanup.KEEP),
    TopicSpec(RATINGS, Cleanup.KEEP),
    TopicSpec(CLASSIFIED, Cleanup.COMPACT),
    TopicSpec(ANSWERS_TOUCHED, Cleanup.DELETE, retention_ms=DAY_MS),
    TopicSpec(KPIS, Cleanup.COMPACT),
    TopicSpec(ALERTS, Cleanup.DELETE, retention_ms=30 * DAY_MS),
    # One partition each: few records, and their order among themselves matters.
    TopicSpec(ERASURES, Cleanup.KEEP, partitions=1),
    TopicSpec(ERASURES_DONE, Cleanup.KEEP, partitions=1),
    TopicSpec(DEAD_LETTERS, Cleanup.KEEP, partitions=1),
)
