"""Lines of history as turns and ratings."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.history import imported
from services.kernel.errors import InvalidInputError

DEMO = Path(__file__).parents[3] / "demo" / "conversations.jsonl"
LINE = {
    "conversation_id": "c-1", "question": "Fee?", "answer": "65 euros.", "asked_at": "2026-10-02T08:14:09Z",
    "latency_ms": 840, "model": "small", "rating": "up", "text": "thanks",
}  # fmt: skip


def parsed(**changes: Any) -> tuple[gateway_pb2.TurnCompleted, events_pb2.AnswerRated | None]:
    turn, rating = imported("t", orjson.dumps({**LINE, **changes}))
    return (
        gateway_pb2.TurnCompleted.FromString(turn.value or b""),
        events_pb2.AnswerRated.FromString(rating.value or b"") if rating else None,
    )


def test_a_line_is_a_turn_and_its_rating() -> None:
    turn, rating = parsed()
    assert (turn.question, turn.answer, turn.model, turn.latency_ms, turn.answered) == (
        "Fee?",
        "65 euros.",
        "small",
        840,
        True,
    )
    assert turn.asked_at.ToJsonString() == "2026-10-02T08:14:09Z"
    assert rating is not None
    assert (rating.answer_id, rating.up, rating.text) == (turn.answer_id, True, "thanks")
    assert rating.rated_at.ToJsonString() == "2026-10-02T08:14:09.840Z"


def test_ids_follow_from_the_content() -> None:
    assert imported("t", orjson.dumps(LINE)) == imported("t", orjson.dumps(dict(reversed(LINE.items()))))
    assert parsed()[0].answer_id != parsed(answer="66 euros.")[0].answer_id
    assert parsed(answer_id="a-7")[0].answer_id == "a-7"
    assert parsed(conversation_id=None)[0].conversation_id.startswith("conversation-")


def test_a_line_without_a_rating_is_a_turn_alone() -> None:
    assert parsed(rating=None, text=None)[1] is None


@pytest.mark.parametrize(
    ("given", "which", "value"), [("down", "up", False), (True, "up", True), (4, "scale", 4), (None, None, None)]
)
def test_ratings_are_read_as_they_are_written(given: object, which: str | None, value: object) -> None:
    rating = parsed(rating=given)[1]
    assert rating is not None
    assert rating.WhichOneof("rating") == which
    assert which is None or getattr(rating, which) == value


def test_an_empty_answer_is_none_unless_the_line_says_otherwise() -> None:
    assert not parsed(answer="")[0].answered
    assert not parsed(answer="I could not find this.", answered=False)[0].answered


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"asked_at": None}, "asked_at"),
        ({"asked_at": "yesterday"}, "asked_at"),
        ({"asked_at": "1960-01-01"}, "asked_at"),
        ({"question": None}, "question"),
        ({"question": 5}, "question"),
        ({"rating": 6}, "rating"),
        ({"rating": "good"}, "rating"),
        ({"latency_ms": "fast"}, "latency_ms"),
        ({"cost": -1}, "cost"),
        ({"prompt_tokens": 1e10}, "prompt_tokens"),
        ({"answered": "yes"}, "answered"),
        ({"colour": "red"}, "colour"),
        ({"conversation_id": "a\x1fb"}, "control character"),
    ],
)
def test_refuses_a_wrong_line_and_names_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        parsed(**changes)


@pytest.mark.parametrize("line", ["", "[]", "{", '"x"'])
def test_refuses_what_is_no_json_object(line: str) -> None:
    with pytest.raises(InvalidInputError, match="JSON"):
        imported("", line)


def test_the_demonstration_can_be_imported() -> None:
    lines = DEMO.read_bytes().splitlines()
    found = [imported("", line) for line in lines]
    assert len({turn.value for turn, _ in found}) == len(lines)
