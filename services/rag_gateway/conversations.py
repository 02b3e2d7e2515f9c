"""The read model of conversations, and what an erasure takes from it: the decisions. Pure."""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import DEFAULT_TENANT, Message, Record, message_of
from services.kernel.processor import APPLIED, SUPERSEDED, Decision

SERVICE = "rag_gateway"
TURNS_GROUP, ERASURE_GROUP = "gateway-turns", "gateway-erasure"
TURN_TYPE = events_pb2.TurnCompleted.DESCRIPTOR.full_name


class TurnRow(NamedTuple):
    """A turn as it is stored.

    Attributes:
        tenant, conversation_id, answer_id: its key.
        asked_ms: when it was asked, milliseconds since the epoch.
        profile_id: whose it is; empty when not known.
        asked_as: the identifier that it was asked under; empty when none.
        content: the event.
        subjects: the profiles and records that it draws on.
    """

    tenant: str
    conversation_id: str
    answer_id: str
    asked_ms: int
    profile_id: str
    asked_as: str
    content: bytes
    subjects: tuple[str, ...]


@dataclass(slots=True)
class Turns:
    """The working set of a batch of turns.

    Attributes:
        known: the answers, as (tenant, answer id), that are stored already.
        erased: digests of answers that an erasure removed: they do not come back.
        new: what is to be stored.
    """

    known: set[tuple[str, str]]
    erased: set[str]
    new: dict[tuple[str, str], TurnRow] = field(default_factory=dict)


class Erased(NamedTuple):
    """What the store did with a request.

    Attributes:
        request: the request.
        removed: how many of each kind of thing went.
        remaining: how many a search found afterwards.
        related: the answers that went, and the conversations that went whole.
        done_ms: when, milliseconds since the epoch.
    """

    request: common_pb2.ErasureRequested
    removed: dict[str, int]
    remaining: dict[str, int]
    related: tuple[str, ...]
    done_ms: int


@dataclass(slots=True)
class Erasures:
    """The working set of a batch of erasures: what was done, by offset."""

    done: dict[int, Erased] = field(default_factory=dict)


def decide_turn(state: Turns, record: Record) -> Decision:
    """Store a turn once; whatever else is on the topic is not ours."""
    if record.type != TURN_TYPE or record.value is None:
        return SUPERSEDED
    row = row_of(events_pb2.TurnCompleted.FromString(record.value))
    key = (row.tenant, row.answer_id)
    if key in state.known or key in state.new or digest_of(*key) in state.erased:
        return SUPERSEDED
    state.new[key] = row
    return APPLIED


def decide_erasure(state: Erasures, record: Record) -> Decision:
    """Acknowledge what the store did with an erasure."""
    erased = state.done.get(record.offset)
    if erased is None:
        raise ValueError(f"{record.topic}/{record.partition}/{record.offset} is not a {record.type}")
    answer = common_pb2.ErasureDone(
        erasure_id=erased.request.erasure_id, service=SERVICE, removed=erased.removed, remaining=erased.remaining,
        related_ids=erased.related,
    )  # fmt: skip
    answer.done_at.FromMilliseconds(erased.done_ms)
    output: Message = message_of(topics.ERASURES_DONE, record.key or b"", answer, erased.done_ms)
    return Decision(APPLIED.outcome, [output])


def row_of(turn: events_pb2.TurnCompleted) -> TurnRow:
    """A turn as it is stored."""
    return TurnRow(
        tenant=turn.tenant or DEFAULT_TENANT,
        conversation_id=turn.conversation_id,
        answer_id=turn.answer_id,
        asked_ms=turn.asked_at.ToMilliseconds(),
        profile_id=turn.profile_id,
        asked_as=turn.asked_as.casefold(),
        content=turn.SerializeToString(deterministic=True),
        subjects=tuple(sorted(_subjects(turn))),
    )


def decoded(records: Iterable[Record]) -> list[TurnRow]:
    """The turns among some records; what cannot be decoded is left to `decide`, which gives it up."""
    rows = []
    for record in records:
        if record.type == TURN_TYPE and record.value is not None:
            with contextlib.suppress(DecodeError):
                rows.append(row_of(events_pb2.TurnCompleted.FromString(record.value)))
    return rows


def drawing_on(
    rows: Iterable[TurnRow], request: common_pb2.ErasureRequested, names: Iterable[str]
) -> tuple[set[str], set[str]]:
    """What of some turns an erasure means.

    Args:
        rows: turns of the request's tenant.
        request: the request.
        names: identifiers under which the subject is known to have asked.

    Returns:
        All identifiers under which the subject asked, and the answers that draw on the subject, or were given under
        one of these identifiers while the profile could not be had.
    """
    rows, subjects = list(rows), {*request.profile_ids, *request.records}
    known = {*names, *(row.asked_as for row in rows if row.profile_id in request.profile_ids)} - {""}
    answers = {
        row.answer_id
        for row in rows
        if not subjects.isdisjoint(row.subjects) or (not row.profile_id and row.asked_as in known)
    }
    return known, answers


def digest_of(tenant: str, answer_id: str) -> str:
    """What is kept of an erased answer, so that it does not come back: nothing that can be read."""
    return hashlib.sha256(f"{tenant}\x1f{answer_id}".encode()).hexdigest()


def same_person(
    turns: Iterable[events_pb2.TurnCompleted], asked_as: str, profile_ids: Iterable[str] = ()
) -> list[events_pb2.TurnCompleted]:
    """The turns that the asker may be reminded of: asked under the same identifier, and by the same person still.

    Args:
        turns: the turns of a conversation.
        asked_as: who asks now, as kind:value; empty when nobody is named.
        profile_ids: the asker's profile and its former ids, where it is known. A turn of another profile is left out:
            the two were taken apart since.
    """
    mine = frozenset(profile_ids)
    return [
        turn
        for turn in turns
        if turn.asked_as.casefold() == asked_as.casefold()
        and (not mine or not turn.profile_id or turn.profile_id in mine)
    ]


def _subjects(turn: events_pb2.TurnCompleted) -> set[str]:
    parts = (*turn.context.parts, *turn.context.left_out)
    return {turn.profile_id, *(part.reference for part in parts), *(c.document_id for c in turn.citations)} - {""}
