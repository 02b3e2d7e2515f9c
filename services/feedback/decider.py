"""What an event makes of an answer: turns, ratings, classifications and erasures in, touches out. Pure.

A person who was erased is remembered by name, with the time of the request, so that a turn of before that still comes
in is refused whenever it comes. An answer that was erased is remembered by its id, and so is its conversation: what
is said of either is refused from then on. The person may come back, and ask and rate anew.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, assert_never

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import (
    Answer,
    Classified,
    Event,
    Key,
    Rating,
    Turn,
    classified_of,
    conversation_key,
    event_of,
    key_of_event,
    milliseconds,
    names_of_erasure,
    names_of_rater,
    names_of_turn,
    rating_of,
    turn_of,
)
from services.kernel import topics
from services.kernel.log import Message, Record, key_of, message_of
from services.kernel.processor import APPLIED, SUPERSEDED, Decision
from services.kernel.windows import EventTime

FOR_EVER_MS = 1 << 62


class Asker(NamedTuple):
    """That somebody, by a name that an erasure may use, asked what an answer was given to."""

    name: Key
    subject: str
    conversation_id: str


class Found(NamedTuple):
    """Something of a subject that an erasure found: an answer, or a rating that the subject gave (`rater` is set)."""

    key: Key
    conversation_id: str = ""
    rater: str = ""


class Erasure(NamedTuple):
    """An erasure that has been carried out in the tables of answers.

    Attributes:
        request: the request.
        until_ms: what is newer than this is not the request's.
        names: whom it means.
        related: the answers that went, and the conversations of which every turn was the subject's, by id.
        removed: how many turns, ratings and classifications went.
    """

    request: common_pb2.ErasureRequested
    until_ms: int
    names: Sequence[Key]
    related: Sequence[str]
    removed: Mapping[str, int]


@dataclass(slots=True)
class Answers:
    """The working set of a batch.

    Attributes:
        event_time: how lateness is told.
        events: the decoded records by offset; what could not be decoded is not in it.
        known: the answers that the batch is about.
        newest_ms: the newest turn of a tenant in a partition.
        erased_turns: of a tenant in a partition, offset and time of erased turns that come before the batch's last
            record, in order: the log may not hold them any more, but what came after them was late because of them.
        forgotten: what was erased, by name, and until when.
        subjects: what was found of the subjects of erasures, by erasure id.
        sole_conversations: conversations of only the subject, by erasure id.
        askers: who asked for which answer, in which conversation, and when first: of every version of a turn.
        turns, ratings, classified: what is new, with the event that is kept of it; ratings by rater.
        removed: answers and conversations of which nothing may stay; of conversations only what was said of them as a
            whole.
        removed_ratings: ratings of erased raters.
        remembered: what must be remembered as erased, and until when.
        refused: turns that were refused because of an erasure, with their record and time.
        unlogged: what must leave the log too, and does not by the log's own part of an erasure (which knows of answers
            that were there when the erasure came): answers, conversations as a whole, and raters up to a time.
        erasures: the erasures of the batch.
        touched: what has changed, with the time of the event.
    """

    event_time: EventTime
    events: dict[int, Event] = field(default_factory=dict)
    known: dict[Key, Answer] = field(default_factory=dict)
    newest_ms: dict[tuple[str, int], int] = field(default_factory=dict)
    erased_turns: dict[tuple[str, int], deque[tuple[int, int]]] = field(default_factory=dict)
    forgotten: dict[Key, int] = field(default_factory=dict)
    subjects: dict[str, list[Found]] = field(default_factory=dict)
    sole_conversations: dict[str, list[str]] = field(default_factory=dict)
    askers: dict[Asker, int] = field(default_factory=dict)
    turns: dict[Key, tuple[Turn, Record]] = field(default_factory=dict)
    ratings: dict[tuple[Key, str], tuple[Rating, Record]] = field(default_factory=dict)
    classified: dict[Key, tuple[Classified, Record]] = field(default_factory=dict)
    removed: set[Key] = field(default_factory=set)
    removed_ratings: set[tuple[Key, str]] = field(default_factory=set)
    remembered: dict[Key, int] = field(default_factory=dict)
    refused: dict[Key, tuple[Record, int]] = field(default_factory=dict)
    unlogged: dict[Key, int] = field(default_factory=dict)
    erasures: list[Erasure] = field(default_factory=list)
    touched: dict[Key, int] = field(default_factory=dict)

    def answer(self, key: Key) -> Answer:
        """What is known of an answer."""
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = Answer(is_conversation=key.subject.startswith("conversation:"))
        return found

    def take_out_of_log(self, key: Key, until_ms: int) -> None:
        """Remove from the log what a name stands for, up to a time."""
        self.unlogged[key] = max(until_ms, self.unlogged.get(key, -1))

    def remember(self, key: Key, until_ms: int) -> None:
        """Refuse what this names, up to a time, from now on."""
        if until_ms > self.forgotten.get(key, -1):
            self.forgotten[key] = self.remembered[key] = until_ms


def decide(state: Answers, record: Record) -> Decision:
    """Take one record into account; what changes is in the state, and `finish` tells of it."""
    event = state.events.get(record.offset) or event_of(record)
    match event:
        case None:
            return APPLIED  # a tombstone: the log has forgotten it, and so have we
        case gateway_pb2.TurnCompleted():
            return _turn(state, event, record)
        case events_pb2.AnswerRated():
            return _rating(state, event, record)
        case events_pb2.TurnClassified():
            return _classification(state, event, record)
        case common_pb2.ErasureRequested():
            return _erasure(state, event, record)
        case _:
            assert_never(event)


def finish(state: Answers) -> Sequence[Message]:
    """Tell once a batch of each answer that has changed."""
    return [touch_message(key, happened_ms) for key, happened_ms in state.touched.items()]


def touch_message(key: Key, happened_ms: int) -> Message:
    """The message that tells of a change of an answer, or of a rated conversation."""
    kind, _, name = key.subject.partition(":")
    touch = events_pb2.AnswerTouched(tenant=key.tenant)
    if kind == "conversation":
        touch.conversation_id = name
    else:
        touch.answer_id = name
    return message_of(topics.ANSWERS_TOUCHED, key_of(key.tenant), touch, happened_ms)


def _turn(state: Answers, event: gateway_pb2.TurnCompleted, record: Record) -> Decision:
    key = key_of_event(event)
    turn = turn_of(event, record)
    place = (key.tenant, record.partition)
    newest_ms = _newest_ms(state, place, record.offset)
    state.newest_ms[place] = turn.asked_ms if newest_ms is None else max(newest_ms, turn.asked_ms)
    until_ms = -1
    for name in names_of_turn(key.tenant, turn.profile_id, turn.asked_as):
        until_ms = max(until_ms, state.forgotten.get(name, -1))
        if turn.asked_ms > state.forgotten.get(name, -1):
            asker = Asker(name, key.subject, turn.conversation_id)
            state.askers[asker] = min(turn.asked_ms, state.askers.get(asker, turn.asked_ms))
    if key in state.forgotten or turn.asked_ms <= until_ms:
        _refuse(state, key, turn, until_ms, record)
        return SUPERSEDED
    answer = state.answer(key)
    if answer.turn is not None and (turn.asked_ms, turn.digest) <= (answer.turn.asked_ms, answer.turn.digest):
        return SUPERSEDED
    answer.turn = turn._replace(too_late=state.event_time.is_too_late(turn.asked_ms, newest_ms))
    state.turns[key] = answer.turn, record
    state.touched[key] = record.timestamp_ms
    return APPLIED


def _newest_ms(state: Answers, place: tuple[str, int], offset: int) -> int | None:
    """The time of the newest turn of a tenant's before an offset; None when there is none."""
    newest_ms, erased = state.newest_ms.get(place), state.erased_turns.get(place)
    while erased and erased[0][0] < offset:
        newest_ms = max(erased.popleft()[1], -1 if newest_ms is None else newest_ms)
    return newest_ms


def _refuse(state: Answers, key: Key, turn: Turn, until_ms: int, record: Record) -> None:
    """Leave nothing of a turn that was erased before it came in, nor of what came in before it."""
    state.refused[key] = record, turn.asked_ms
    _remove(state, key, record)
    state.take_out_of_log(key, FOR_EVER_MS)
    if turn.conversation_id and turn.asked_ms <= until_ms:
        _remove_conversation(state, conversation_key(key.tenant, turn.conversation_id), record)


def _remove(state: Answers, key: Key, record: Record) -> Counter[str]:
    """Remove all that is known of an answer, for ever; return how many of what went."""
    answer = state.answer(key)
    removed = Counter(
        turns=int(answer.turn is not None),
        ratings=len(answer.ratings),
        classifications=int(answer.classified is not None),
    )
    answer.turn, answer.classified = None, None
    answer.ratings.clear()
    state.remember(key, FOR_EVER_MS)
    state.removed.add(key)
    state.touched[key] = record.timestamp_ms
    return removed


def _remove_conversation(state: Answers, key: Key, record: Record) -> Counter[str]:
    """Remove what was said of a conversation as a whole, in which an erased person took part."""
    state.take_out_of_log(key, FOR_EVER_MS)
    return _remove(state, key, record)


def _rating(state: Answers, event: events_pb2.AnswerRated, record: Record) -> Decision:
    key = key_of_event(event)
    rating = rating_of(event, record)
    for name in [key, *names_of_rater(key.tenant, event.rater)]:
        until_ms = state.forgotten.get(name, -1)
        if rating.rated_ms <= until_ms:
            place = key if name == key else Key(key.tenant, f"rater:{event.rater}")
            state.take_out_of_log(place, until_ms)
            return SUPERSEDED
    answer = state.answer(key)
    known = answer.ratings.get(event.rater)
    if known is not None and (rating.rated_ms, rating.digest) <= (known.rated_ms, known.digest):
        return SUPERSEDED
    answer.ratings[event.rater] = rating
    state.ratings[key, event.rater] = rating, record
    state.touched[key] = record.timestamp_ms
    return APPLIED


def _classification(state: Answers, event: events_pb2.TurnClassified, record: Record) -> Decision:
    key = key_of_event(event)
    classified = classified_of(event, record)
    if key in state.forgotten:
        state.take_out_of_log(key, FOR_EVER_MS)
        return SUPERSEDED
    answer = state.answer(key)
    if answer.classified is not None and classified.order <= answer.classified.order:
        return SUPERSEDED
    answer.classified = classified
    state.classified[key] = classified, record
    state.touched[key] = record.timestamp_ms
    return APPLIED


def _erasure(state: Answers, event: common_pb2.ErasureRequested, record: Record) -> Decision:
    until_ms = milliseconds(event.requested_at, record.timestamp_ms)
    names = names_of_erasure(event)
    for name in names:
        state.remember(name, until_ms)
    removed: Counter[str] = Counter(turns=0, ratings=0, classifications=0)
    answers = []
    for thing in state.subjects.get(event.erasure_id, ()):
        if thing.rater:
            removed["ratings"] += _remove_rating(state, thing, until_ms, record)
            continue
        answers.append(
            thing.key.subject.removeprefix("answer:")
        )  # as often as it was asked for, by one name or another
        removed.update(_remove(state, thing.key, record))
        if thing.conversation_id:
            conversation = conversation_key(event.tenant, thing.conversation_id)
            removed.update(_remove_conversation(state, conversation, record))
    related = [*answers, *state.sole_conversations.get(event.erasure_id, ())]
    state.erasures.append(Erasure(event, until_ms, names, list(dict.fromkeys(related)), removed))
    return APPLIED


def _remove_rating(state: Answers, thing: Found, until_ms: int, record: Record) -> int:
    """Remove what an erased person said of somebody else's answer."""
    state.take_out_of_log(Key(thing.key.tenant, f"rater:{thing.rater}"), until_ms)
    state.removed_ratings.add((thing.key, thing.rater))
    state.touched[thing.key] = record.timestamp_ms
    return int(state.answer(thing.key).ratings.pop(thing.rater, None) is not None)
