"""What events make of answers: given what is known, when an event comes, then this is told."""

from collections import deque

import pytest

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import Answer, Key, Turn, event_of, key_of_event, rating_value
from services.feedback.decider import FOR_EVER_MS, Answers, Found, decide, finish
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Record
from services.kernel.processor import APPLIED, SUPERSEDED
from services.kernel.windows import EventTime

A1, CONVERSATION = Key("default", "answer:a1"), Key("default", "conversation:c1")
PERSON = Key("default", "profile:p1")


def record(event: object, at_ms: int = 1_000, offset: int = 0) -> Record:
    value = event.SerializeToString()  # type: ignore[attr-defined]
    return Record("x", 0, offset, None, value, event.DESCRIPTOR.full_name, "", at_ms)  # type: ignore[attr-defined]


def turn(**fields: object) -> gateway_pb2.TurnCompleted:
    return gateway_pb2.TurnCompleted(**{"answer_id": "a1", "conversation_id": "c1", "profile_id": "p1", **fields})  # type: ignore[arg-type]


def rated(**fields: object) -> events_pb2.AnswerRated:
    return events_pb2.AnswerRated(**{"answer_id": "a1", **fields})  # type: ignore[arg-type]


def state(**fields: object) -> Answers:
    return Answers(EventTime(), **fields)  # type: ignore[arg-type]


def test_a_turn_is_kept_and_told_once() -> None:
    answers = state()
    assert decide(answers, record(turn())) == APPLIED
    assert decide(answers, record(turn(), offset=1)) == SUPERSEDED
    assert list(answers.turns) == [A1]
    (touch,) = finish(answers)
    assert (touch.topic, touch.key) == (topics.ANSWERS_TOUCHED, b"default")
    assert events_pb2.AnswerTouched.FromString(touch.value or b"").answer_id == "a1"


def test_the_newest_rating_of_a_rater_counts_whichever_comes_first() -> None:
    for order in ((1_000, 2_000), (2_000, 1_000)):
        answers = state()
        for offset, at_ms in enumerate(order):
            decide(answers, record(rated(scale=at_ms // 500), at_ms, offset))
        assert [rating.value for rating, _ in answers.ratings.values()] == [750_000]


def test_a_turn_of_an_erased_person_leaves_nothing_and_is_taken_out_of_the_log() -> None:
    answers = state(forgotten={PERSON: 5_000})
    decide(answers, record(rated(up=True), 900))
    assert decide(answers, record(turn(), offset=1)) == SUPERSEDED
    assert answers.removed == {A1, CONVERSATION}
    assert answers.unlogged == {A1: FOR_EVER_MS, CONVERSATION: FOR_EVER_MS}
    assert answers.known[A1] == Answer()
    assert decide(answers, record(rated(up=False), 9_000, 2)) == SUPERSEDED


def test_an_erased_person_may_come_back() -> None:
    answers = state(forgotten={PERSON: 5_000})
    assert decide(answers, record(turn(), 5_001)) == APPLIED


def test_an_erasure_removes_what_was_found_and_tells_of_it() -> None:
    known = Answer(turn=Turn("c1", "p1", "", 10, "d", False, "m", True, None, 1.0, 0.0))
    answers = state(
        known={A1: known, CONVERSATION: Answer(is_conversation=True)},
        subjects={"e": [Found(A1, "c1")]},
        sole_conversations={"e": ["c1"]},
    )
    event = common_pb2.ErasureRequested(erasure_id="e", profile_ids=["p1"])
    assert decide(answers, record(event)) == APPLIED
    (erasure,) = answers.erasures
    assert (erasure.related, erasure.removed) == (["a1", "c1"], {"turns": 1, "ratings": 0, "classifications": 0})
    assert answers.remembered == {PERSON: 1_000, A1: FOR_EVER_MS, CONVERSATION: FOR_EVER_MS}
    assert len(finish(answers)) == 2


def test_what_an_erased_person_said_of_the_answers_of_others_is_removed() -> None:
    answers = state(subjects={"e": [Found(A1, rater="p1")]})
    decide(answers, record(common_pb2.ErasureRequested(erasure_id="e", profile_ids=["p1"])))
    assert answers.removed_ratings == {(A1, "p1")}
    assert decide(answers, record(rated(up=True, rater="p1"), 900, 1)) == SUPERSEDED
    assert decide(answers, record(rated(up=True, rater="p2"), 900, 2)) == APPLIED


def test_erased_turns_that_the_log_has_forgotten_still_tell_how_late_it_was() -> None:
    answers = state()
    answers.event_time = EventTime(allowed_lateness_ms=100)
    answers.erased_turns = {("default", 0): deque([(3, 900_000)])}
    decide(answers, record(turn(answer_id="before"), 1_000, 2))
    decide(answers, record(turn(answer_id="after"), 1_000, 4))
    late = {key.subject: kept.too_late for key, (kept, _) in answers.turns.items()}
    assert late == {"answer:before": False, "answer:after": True}


def test_a_tombstone_is_no_news() -> None:
    assert decide(state(), Record("x", 0, 0, b"k", None, "", "", 0)) == APPLIED


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (turn(answer_id=""), "answer_id"),
        (turn(answer_id="a\n"), "control character"),
        (turn(tenant="a\x1fb"), "control character"),
        (rated(scale=7), "1 to 5"),
        (events_pb2.AnswerRated(up=True), "answer_id"),
        (events_pb2.TurnClassified(answer_id="a1", score=float("nan")), "score"),
        (events_pb2.KpiComputed(), "KpiComputed"),
    ],
)
def test_refuses_what_cannot_be_about_an_answer(event: object, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        decide(state(), record(event))


def test_refuses_a_damaged_event() -> None:
    damaged = record(turn())._replace(value=b"\xff\xff")
    with pytest.raises(InvalidInputError, match="damaged"):
        event_of(damaged)


def test_a_conversation_is_rated_as_a_whole_when_no_answer_is_named() -> None:
    assert key_of_event(events_pb2.AnswerRated(conversation_id="c1", up=True)) == CONVERSATION
    assert key_of_event(events_pb2.AnswerRated(conversation_id="c1", answer_id="a1", up=True)) == A1


@pytest.mark.parametrize(
    ("event", "value"),
    [
        (rated(up=True), 1_000_000),
        (rated(up=False), 0),
        (rated(scale=1), 0),
        (rated(scale=4), 750_000),
        (rated(), None),
    ],
)
def test_ratings_are_mapped_to_one_scale(event: events_pb2.AnswerRated, value: int | None) -> None:
    assert rating_value(event) == value
