"""How a document stands on its way into the index of chunks, and each step that it takes there. Pure.

A document has two owners. What was accepted of it is written by the worker that has its partition, through the ledger.
How far the index is, is its standing: one small document beside it, which any worker changes by compare-and-set, one
step at a time. The standing repeats what was accepted last (`Wanted`), so that everything which follows from both is
told by this one document: whether there is work, and of which kind. Nothing is flagged; what is to do is derived from
what is wanted and what is there, at every write anew. So it does not matter in which order a new change and the end of
a job arrive: whoever looks next finds that what is wanted is not what is there.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

from services.embedder.index import Visibility
from services.embedder.state import Key, digest_of
from services.kernel.jobs import Job, JobState, Lane
from services.kernel.log import Message
from services.kernel.outbox import decode_messages, encode_messages


class Place(NamedTuple):
    """A place of the log."""

    topic: str
    partition: int
    offset: int


NOWHERE = Place("", 0, -1)


class Wanted(NamedTuple):
    """What was accepted of a document.

    Attributes:
        key: names it.
        seq: the number of the batch in the ledger.
        life: the number of the batch that brought it, since it was last gone.
        version: what is to be searchable.
        visibility: who may find it then.
        place: the record that holds it.
        occurred_ms: when it happened.
        lane, size: of the work.
    """

    key: Key
    seq: int
    life: int
    version: str
    visibility: Visibility
    place: Place
    occurred_ms: int
    lane: Lane
    size: int


class Todo(Enum):
    """What is to be done for a document."""

    NOTHING = ""
    EMBED = "embed"  # another version is wanted than can be found
    TIDY = "tidy"  # the index holds more, or shows it to others, than it should, or events are not told yet


class Open(Enum):
    """What cannot be found yet as it should be, and why."""

    NOTHING = ""
    EMBED = "embed"
    SHOW = "show"  # by those to whom it was opened
    PARKED = "parked"  # it was given up


@dataclass(frozen=True, slots=True)
class Standing:
    """How a document stands.

    Attributes:
        wanted: what was accepted last; its version is empty when the document is gone, its life 0.
        lane: of the open work: the more urgent of all that waits.
        origin, since_ms: the oldest record that cannot be found yet, and when it happened.
        version, chunks, title, shown_ms: what can be found; the version is empty when nothing can.
        shown_to: who may find it, as the index has it.
        told: up to where it has been told what became searchable; a replay does not tell it again.
        state, attempts, due_at, error: of the work that is to be done; see `Job`.
        cluttered: whether the index may hold other versions.
        outbox: events that are not published yet.
        owner, leased_until: who works on it, and how long others leave that alone.
        revision: of the stored form, for compare-and-set; 0 when it is not stored.
    """

    wanted: Wanted
    lane: Lane = Lane.LIVE
    origin: Place = NOWHERE
    since_ms: int = 0
    version: str = ""
    chunks: int = 0
    title: str = ""
    shown_ms: int = 0
    shown_to: Visibility = Visibility("")
    told: Place = NOWHERE
    state: JobState = JobState.PENDING
    attempts: int = 0
    due_at: float = 0.0
    error: str = ""
    cluttered: bool = False
    outbox: tuple[Message, ...] = field(default=())
    owner: str = ""
    leased_until: float = 0.0
    revision: int = 0

    @property
    def key(self) -> Key:
        """The document."""
        return self.wanted.key

    @property
    def is_gone(self) -> bool:
        """Whether there is no such document any more."""
        return not self.wanted.version

    @property
    def waits(self) -> bool:
        """Whether another version is wanted than can be found; also when that was given up."""
        return self.wanted.version not in ("", self.version)

    @property
    def is_told(self) -> bool:
        """Whether it has been told already that what is wanted is searchable."""
        return self.told[:2] == self.wanted.place[:2] and self.told.offset >= self.wanted.place.offset

    @property
    def todo(self) -> Todo:
        """What is to be done."""
        if self.waits and self.state is not JobState.PARKED:
            return Todo.EMBED
        if self.outbox or self.is_gone:
            return Todo.TIDY
        # The vectors of what was given up stay for another try.
        is_untidy = not self.waits and (self.cluttered or (self.chunks and self.shown_to != self.wanted.visibility))
        return Todo.TIDY if is_untidy else Todo.NOTHING

    @property
    def open(self) -> Open:
        """What cannot be found yet as it should be."""
        if self.waits:
            return Open.PARKED if self.state is JobState.PARKED else Open.EMBED
        is_shown = self.is_gone or not self.chunks or self.shown_to == self.wanted.visibility
        return Open.NOTHING if is_shown else Open.SHOW

    def job(self, provider: str) -> Job:
        """Return what is to be done as a job."""
        wanted = self.wanted
        return Job(
            digest_of(self.key), wanted.version, provider, self.lane, wanted.size, self.state, self.attempts,
            self.due_at, self.error,
        )  # fmt: skip


def wanting(before: Standing | None, wanted: Wanted, now: float) -> Standing | None:
    """Return the standing after a change was accepted; None when a newer one is known already."""
    if before is None:
        return Standing(wanted, wanted.lane, wanted.place, wanted.occurred_ms, due_at=now)
    if wanted.seq <= before.wanted.seq:
        return None
    after = replace(before, wanted=wanted)
    if wanted.life != before.wanted.life:  # it has been gone meanwhile: what the index holds is not this one's
        after = replace(after, version="", chunks=0, shown_ms=0, cluttered=True)
    if before.open is Open.NOTHING or before.is_gone:
        after = replace(after, origin=wanted.place, since_ms=wanted.occurred_ms, lane=wanted.lane)
    else:
        after = replace(after, lane=min(before.lane, wanted.lane))
    if before.waits and after.waits and wanted.version == before.wanted.version and before.wanted.life == wanted.life:
        return after
    return replace(after, state=JobState.PENDING, attempts=0, due_at=now, error="")


def gone(before: Standing | None, seq: int, now: float) -> Standing | None:
    """Return the standing after the document was taken away; None when nothing changes by that."""
    if before is None or before.is_gone or seq <= before.wanted.seq:
        return None
    wanted = before.wanted._replace(seq=seq, life=0, version="")
    return replace(
        before, wanted=wanted, version="", chunks=0, cluttered=True, outbox=(), state=JobState.PENDING, attempts=0,
        due_at=now, error="",
    )  # fmt: skip


def leased(before: Standing | None, todo: Todo, owner: str, now: float, until: float) -> Standing | None:
    """Return the standing while somebody works on it; None when there is nothing to do, or somebody else does it."""
    if before is None or before.todo is not todo or (before.owner and before.leased_until > now):
        return None
    # From here on the index may hold more than it should, whatever becomes of the worker.
    is_cluttered = before.cluttered or (todo is Todo.EMBED)
    return replace(before, owner=owner, leased_until=until, cluttered=is_cluttered)


def finished(
    before: Standing | None, owner: str, version: "Finished", outbox: tuple[Message, ...], now: float
) -> Standing | None:
    """Return the standing after a version became searchable; None when it is not wanted any more, or not from this one.

    The lease stays: the events are still to be published, and older versions to be removed.
    """
    if before is None or before.owner != owner or version.wanted[1:4] != _identity(before, version):
        return None
    is_told = before.is_told
    return replace(
        before, version=before.wanted.version, chunks=version.chunks, title=version.title,
        shown_ms=before.wanted.occurred_ms, shown_to=version.wanted.visibility, state=JobState.PENDING, attempts=0,
        due_at=now, error="", outbox=before.outbox if is_told else (*before.outbox, *outbox),
        told=before.told if is_told else before.wanted.place,
    )  # fmt: skip
