"""Conversations of another system, one JSON object a line, as turns and ratings. Pure.

A line has `question`, `answer` and `asked_at`, and may have `conversation_id`, `answer_id`, `answered`, `latency_ms`,
`model`, `cost`, `prompt_tokens`, `answer_tokens`, `profile_id`, `rating` (up, down, or 1 to 5), `text` (in words) and
`rated_at`. Ids that are missing follow from the content, so that the same line is the same turn however often it comes.
Where a line does not say whether there was an answer, there was one if its text is not empty.
"""

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import SCALE_MAX, TIME_MS_MAX, key_of_event
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Message, key_of, message_of

FIELDS = frozenset(
    {
        "question", "answer", "asked_at", "conversation_id", "answer_id", "answered", "latency_ms", "model", "cost",
        "prompt_tokens", "answer_tokens", "profile_id", "rating", "text", "rated_at",
    }
)  # fmt: skip
INT32_MAX = (1 << 31) - 1


class Imported(NamedTuple):
    """A line's turn, and its rating where it has one."""

    turn: Message
    rating: Message | None


def imported(tenant: str, line: str | bytes) -> Imported:
    """Return the messages for `conversations` and `ratings` that a line stands for.

    Args:
        tenant: whose conversations they are; empty means the default tenant.
        line: a JSON object.

    Raises:
        InvalidInputError: it is not a JSON object, or a field is missing, unknown or wrong; the message names it.
    """
    fields = _fields(line)
    asked_ms = _time(fields, "asked_at")
    if asked_ms is None:
        raise InvalidInputError("asked_at is missing: when was the question asked?")
    question, answer = _text(fields, "question"), _text(fields, "answer")
    if not question:
        raise InvalidInputError("question is missing")
    conversation_id = _text(fields, "conversation_id")
    answered = fields.get("answered")
    if answered is not None and not isinstance(answered, bool):
        raise InvalidInputError(f"answered must be true or false, not {answered!r}")
    turn = gateway_pb2.TurnCompleted(
        tenant=tenant,
        answer_id=_text(fields, "answer_id") or _id("answer", conversation_id, question, answer, asked_ms),
        question=question,
        answer=answer,
        profile_id=_text(fields, "profile_id"),
        model=_text(fields, "model"),
        prompt_tokens=int(_number(fields, "prompt_tokens", INT32_MAX)),
        answer_tokens=int(_number(fields, "answer_tokens", INT32_MAX)),
        cost=_number(fields, "cost"),
        latency_ms=_number(fields, "latency_ms"),
        answered=bool(answer) if answered is None else answered,
    )
    turn.conversation_id = conversation_id or _id("conversation", turn.answer_id)
    turn.asked_at.FromMilliseconds(asked_ms)
    key_of_event(turn)  # refuses names that cannot be part of a key
    turn_message = message_of(topics.CONVERSATIONS, key_of(tenant, turn.conversation_id), turn, asked_ms)
    return Imported(turn_message, _rating(tenant, fields, turn, asked_ms))


def _fields(line: str | bytes) -> Mapping[str, Any]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"not a JSON object: {line!r:.60}")
    if unknown := sorted(fields.keys() - FIELDS):
        raise InvalidInputError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(FIELDS))}")
    return fields


def _rating(tenant: str, fields: Mapping[str, Any], turn: gateway_pb2.TurnCompleted, asked_ms: int) -> Message | None:
    value, text = fields.get("rating"), _text(fields, "text")
    if value is None and not text:
        return None
    rated_ms = _time(fields, "rated_at")
    # Nobody rates before the answer is there; where the line does not say when, this is as good as known.
    rated_ms = asked_ms + int(turn.latency_ms) if rated_ms is None else rated_ms
    rated = events_pb2.AnswerRated(
        tenant=tenant, answer_id=turn.answer_id, conversation_id=turn.conversation_id, text=text
    )
    if value in ("up", "down"):
        rated.up = value == "up"
    elif isinstance(value, bool):
        rated.up = value
    elif isinstance(value, int) and 1 <= value <= SCALE_MAX:
        rated.scale = value
    elif value is not None:
        raise InvalidInputError(f"rating must be up, down, or 1 to {SCALE_MAX}, not {value!r}")
    rated.rated_at.FromMilliseconds(rated_ms)
    return message_of(topics.RATINGS, key_of(tenant, turn.answer_id), rated, rated_ms)


def _id(kind: str, *parts: object) -> str:
    return f"{kind}-{hashlib.sha256(orjson.dumps(parts)).hexdigest()[:24]}"


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text, not {value!r:.60}")
    return value


def _number(fields: Mapping[str, Any], name: str, at_most: float = 1e12) -> float:
    value = fields.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInputError(f"{name} must be a number, not {value!r:.60}")
    if not 0 <= value <= at_most:
        raise InvalidInputError(f"{name} must be from 0 to {at_most:g}, not {value!r}")
    return float(value)


def _time(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name} must be a time such as 2026-11-24T17:58:40Z, not {value!r:.60}") from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    time_ms = int(moment.timestamp() * 1000)
    if not 0 < time_ms <= TIME_MS_MAX:
        raise InvalidInputError(f"{name} must be after 1970, not {value}")
    return time_ms
