"""Touched profiles in, profiles out: a document gets a new version only where the fold of its rows differs. Pure."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import Message, Record
from services.kernel.processor import APPLIED, SUPERSEDED, Decision, Outcome
from services.profile.projection import Folded

PROFILE_TYPE = events_pb2.Profile.DESCRIPTOR.full_name


class Stored(NamedTuple):
    """A stored document.

    Attributes:
        version: grows with every change; no part of `content`, since it tells of the history and not of the rows.
        content: the Profile without its version, encoded.
        identifiers: its identifiers, a JSON list of [kind, value].
        folded_to: the end of the partition of `profile.touched` when it was folded. A row is saved before, or
            together with, its touch: so touches below have been taken into account, and need no second fold.
    """

    version: int
    content: bytes
    identifiers: str
    folded_to: int

    def profile(self) -> events_pb2.Profile:
        """Return the profile with its version."""
        profile = events_pb2.Profile.FromString(self.content)
        profile.version = self.version
        return profile


class Published(NamedTuple):
    """What the topic `profiles` held of a profile when its store was emptied: its version, and a digest of its content.

    It stands for the document until that is there again.
    """

    version: int
    digest: str


@dataclass(slots=True)
class Documents:
    """The working set of a batch; profiles are named by their topic keys, as text.

    Attributes:
        stored: the documents as they are.
        folded: the documents that the rows of the touched profiles make; none for those without rows.
        published: while the store is made again, what had been published.
        touched_end: the end of the batch's partition of `profile.touched` before the rows were read.
        done: profiles that this batch has dealt with.
        written: new documents; `gone`: those without rows.
        head: where the store stood before this was loaded, of stores that need to know it.
    """

    stored: dict[str, Stored] = field(default_factory=dict)
    folded: dict[str, Folded] = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)
    touched_end: int = 0
    done: set[str] = field(default_factory=set)
    written: dict[str, Stored] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    head: Any = None


def decide(state: Documents, record: Record) -> Decision:
    """Bring a touched profile up to date; touches that change nothing are superseded."""
    key = (record.key or b"").decode()
    stored = state.stored.get(key)
    if key in state.done or (stored is not None and record.offset < stored.folded_to):
        return SUPERSEDED
    state.done.add(key)
    folded, published = state.folded.get(key), state.published.get(key)
    if folded is None:
        if stored is None and published is None:
            return SUPERSEDED
        state.gone.add(key)
        return _published(record, None)
    if stored is not None and stored.content == folded.content:
        return SUPERSEDED
    if published is not None and published.digest == digest(folded.content):
        state.written[key] = Stored(published.version, folded.content, folded.identifiers, state.touched_end)
        return APPLIED
    version = max(stored.version if stored else 0, published.version if published else 0) + 1
    state.written[key] = Stored(version, folded.content, folded.identifiers, state.touched_end)
    return _published(record, with_version(folded.content, version))


def with_version(content: bytes, version: int) -> bytes:
    """Return an encoded Profile with its version: two encoded messages, one after the other, are their merge."""
    return content + events_pb2.Profile(version=version).SerializeToString()


def digest(content: bytes) -> str:
    """Return what tells equal documents."""
    return hashlib.sha256(content).hexdigest()


def _published(record: Record, value: bytes | None) -> Decision:
    message = Message(topics.PROFILES, record.key, value, PROFILE_TYPE, record.timestamp_ms)
    return Decision(Outcome.APPLIED, (message,))
