"""What is known of documents, and the working set of one batch of changes. Pure."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.kernel.freshness import Sightings
from services.kernel.jobs import Job, Lane
from services.kernel.log import SEPARATOR
from services.kernel.positions import newer

LIVE_BATCH_MAX = 32  # a batch that brings more comes from a backlog: its work goes behind what changes just now


class Key(NamedTuple):
    """Names a document."""

    tenant: str
    document_id: str


def digest_of(key: Key) -> str:
    """Return the digest by which an erased document is known, once its name must be forgotten."""
    return hashlib.sha256(SEPARATOR.join(key).encode()).hexdigest()


class Entity(NamedTuple):
    """A kind of row of a tenant's source."""

    tenant: str
    source: str
    entity: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was accepted, and as it can be found.

    Attributes:
        key: names it.
        source, entity, partition: where it is from; for a row, its table and its partition in `changes`.
        position: the source's own position of the newest change.
        occurred_ms: when that happened at the source.
        wanted: the version that was accepted: a hash of what is embedded.
        version: the version that can be found; empty until there is one.
        name, uri, metadata, live: as accepted; metadata and live columns are JSON objects.
        access: the labels of which a reader needs one, sorted; none means everyone.
        shown_to: the labels that hold for what can be found: narrower than `access` while a job is open.
        shown_ms: the event time of what can be found.
        row, known_at: of a row, the columns that are needed, and for those that its newest change left out the
            position at which they are known; JSON objects.
        chunks: how many chunks can be found.
        waits: whether a job for `wanted` is open.
        row_id: where it is stored: a number that no other document had before, of the same name neither; 0 when it is
            not yet.
        title: what can be found is called.
    """

    key: Key
    source: str
    entity: str = ""
    partition: int = -1
    position: str = ""
    occurred_ms: int = 0
    wanted: str = ""
    version: str = ""
    name: str = ""
    uri: str = ""
    metadata: str = "{}"
    live: str = ""
    access: tuple[str, ...] = ()
    shown_to: tuple[str, ...] = ()
    shown_ms: int = 0
    row: str = ""
    known_at: str = ""
    chunks: int = 0
    waits: bool = False
    row_id: int = 0
    title: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be made searchable: the content itself, or, when None, that of the record at this place of the log.

    It is known of every document that a batch accepts, also where there is nothing to do: an older place of the log may
    be compacted away.
    """

    content: bytes | None
    media_type: str
    size: int
    lane: Lane
    topic: str
    partition: int
    offset: int


class Erased(NamedTuple):
    """Up to where a record was erased: its source position, where known, and when."""

    position: str
    at_ms: int


@dataclass(slots=True)
class WorkingSet:
    """The state of the documents that a batch is about.

    Attributes:
        documents: those that are there.
        loaded: what they were before the batch.
        fences: positions of documents that are gone, where the source gives them.
        truncated: positions of the newest truncation of an entity in the batch's partition.
        erased: what was erased, of the batch's keys.
        lane: where new work of this batch goes, unless it says otherwise itself.
        sightings: what the batch tells of its sources.
        changed, fenced, truncated_now: what has to be saved.
        removed: stored ones that have to go, by their `row_id`.
        work: what the accepted documents are made of.
        jobs: what became of work that others did.
        told: documents whose results were taken in, wanted or not.
        reshown: documents that the index shows to others than it should.
        tidy: documents of which the index may hold more than can be found.
        head: where the store stood when this was loaded, for stores that need it.
        stored: how the store has the loaded documents, for stores that need it.
    """

    documents: dict[Key, Document] = field(default_factory=dict)
    loaded: dict[Key, Document] = field(default_factory=dict)
    fences: dict[Key, str] = field(default_factory=dict)
    truncated: dict[Entity, str] = field(default_factory=dict)
    erased: dict[Key, Erased] = field(default_factory=dict)
    lane: Lane = Lane.LIVE
    sightings: Sightings = field(default_factory=Sightings)
    changed: set[Key] = field(default_factory=set)
    fenced: set[Key] = field(default_factory=set)
    truncated_now: dict[Entity, int] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    work: dict[Key, Work] = field(default_factory=dict)
    jobs: dict[Key, Job] = field(default_factory=dict)
    told: set[Key] = field(default_factory=set)
    reshown: set[Key] = field(default_factory=set)
    tidy: set[Key] = field(default_factory=set)
    head: Any = None
    stored: dict[Key, Any] = field(default_factory=dict)

    def is_stale(self, key: Key, entity: Entity | None, position: str, occurred_ms: int) -> bool:
        """Whether a change takes no effect: it is older than, or the same as, what is known of its document."""
        if (erased := self.erased.get(key)) is not None and not _after(erased, position, occurred_ms):
            return True
        if entity is not None and not newer(position, self.truncated.get(entity, "")):
            return True
        document = self.documents.get(key)
        stored = document.position if document is not None else self.fences.get(key, "")
        return not newer(position, stored)

    def put(self, document: Document, work: Work) -> None:
        """Accept a document; `work` is what its newest version is made of."""
        self.documents[document.key] = document
        self.changed.add(document.key)
        self.work[document.key] = work
        if self.fences.pop(document.key, None) is not None:
            self.fenced.add(document.key)

    def remove(self, document: Document) -> None:
        """Take a document away, with all that was made of it."""
        del self.documents[document.key]
        self.work.pop(document.key, None)
        self.changed.discard(document.key)
        if document.row_id:
            self.removed.append(document.row_id)

    def fence(self, key: Key, position: str) -> bool:
        """Remember the position of a deletion; False when that says nothing new."""
        if not position or self.fences.get(key) == position:
            return False
        self.fences[key] = position
        self.fenced.add(key)
        return True


def _after(erased: Erased, position: str, occurred_ms: int) -> bool:
    """Whether a change is new data, made after what was erased."""
    if erased.position and position and erased.position.rpartition(":")[0] == position.rpartition(":")[0]:
        return newer(position, erased.position)
    return occurred_ms > erased.at_ms


def narrower(one: tuple[str, ...], other: tuple[str, ...], nobody: str) -> tuple[str, ...]:
    """The labels of readers who may see what both sets of labels allow."""
    if not one or not other:
        return one or other
    return tuple(sorted(set(one) & set(other))) or (nobody,)
