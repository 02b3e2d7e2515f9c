"""The read model of conversations: decisions."""

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import Record, key_of, message_of
from services.kernel.processor import Outcome
from services.rag_gateway.conversations import (
    Erased,
    Erasures,
    Turns,
    decide_erasure,
    decide_turn,
    digest_of,
    row_of,
    same_person,
)


def turn(answer_id: str = "a1", **fields: str) -> events_pb2.TurnCompleted:
    return events_pb2.TurnCompleted(tenant="default", conversation_id="c1", answer_id=answer_id, **fields)  # type: ignore[arg-type]


def record(event: events_pb2.TurnCompleted | common_pb2.ErasureRequested, topic: str = topics.CONVERSATIONS) -> Record:
    message = message_of(topic, key_of("", "c1"), event, 5)
    return Record(topic, 0, 7, message.key, message.value, message.type, "e", 5)


def test_a_turn_is_stored_once() -> None:
    state = Turns(known=set(), erased=set())
    assert decide_turn(state, record(turn())).outcome is Outcome.APPLIED
    assert decide_turn(state, record(turn())).outcome is Outcome.SUPERSEDED
    assert list(state.new) == [("default", "a1")]
    known = Turns(known={("default", "a1")}, erased=set())
    assert decide_turn(known, record(turn())).outcome is Outcome.SUPERSEDED


def test_an_erased_turn_does_not_come_back() -> None:
    state = Turns(known=set(), erased={digest_of("default", "a1")})
    assert decide_turn(state, record(turn())).outcome is Outcome.SUPERSEDED
    assert decide_turn(state, record(turn("a2"))).outcome is Outcome.APPLIED


def test_what_else_is_on_the_topic_is_passed_over() -> None:
    other = record(turn())._replace(type="something.else.v1.Event")
    assert decide_turn(Turns(known=set(), erased=set()), other).outcome is Outcome.SUPERSEDED


def test_a_turn_knows_whom_and_what_it_draws_on() -> None:
    event = turn(profile_id="p1", asked_as="email:Ada@Example.com")
    event.context.parts.add(reference="bookings/bookings/1")
    event.context.left_out.add(reference="bookings/bookings/2")
    event.citations.add(document_id="policies/a.md")
    row = row_of(event)
    assert row.subjects == ("bookings/bookings/1", "bookings/bookings/2", "p1", "policies/a.md")
    assert row.asked_as == "email:ada@example.com"


def test_an_erasure_is_acknowledged_with_what_went_and_what_is_left() -> None:
    request = common_pb2.ErasureRequested(erasure_id="e1", tenant="default")
    done = Erased(request, removed={"turns": 3}, remaining={"turns": 0}, related=("a1", "c1"), done_ms=9)
    decision = decide_erasure(Erasures({7: done}), record(request, topics.ERASURES))
    (message,) = decision.outputs
    answer = common_pb2.ErasureDone.FromString(message.value or b"")
    assert message.topic == topics.ERASURES_DONE
    assert (answer.service, answer.removed["turns"], answer.remaining["turns"]) == ("rag_gateway", 3, 0)
    assert list(answer.related_ids) == ["a1", "c1"]


def test_the_asker_is_reminded_of_own_turns_only() -> None:
    turns = [
        turn("mine", asked_as="email:ada@example.com", profile_id="p1"),
        turn("before the merge", asked_as="email:Ada@example.com", profile_id="p0"),
        turn("profile away", asked_as="email:ada@example.com"),
        turn("of another", asked_as="email:eve@example.com", profile_id="p2"),
        turn("taken apart since", asked_as="email:ada@example.com", profile_id="p9"),
        turn("nobody's"),
    ]

    def reminded(asked_as: str, *profile_ids: str) -> list[str]:
        return [kept.answer_id for kept in same_person(turns, asked_as, profile_ids)]

    assert reminded("email:ada@example.com", "p1", "p0") == ["mine", "before the merge", "profile away"]
    assert reminded("") == ["nobody's"]
    assert "of another" not in reminded("email:ada@example.com")
