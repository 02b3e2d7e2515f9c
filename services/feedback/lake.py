"""Rows of the lake: what is known of a turn, as a plain value for JSON and Parquet. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import RATING_UNIT, milliseconds, rating_value

DAY_MS = 24 * 60 * 60 * 1000
Row = dict[str, Any]


def row_of(
    turn: gateway_pb2.TurnCompleted,
    tenant: str,
    asked_ms: int,
    *,
    ratings: Iterable[events_pb2.AnswerRated],
    conversation_ratings: Iterable[events_pb2.AnswerRated],
    classified: events_pb2.TurnClassified | None,
) -> Row:
    """Return the row of a turn; times are milliseconds since the epoch, and what is not known is None."""
    tone = classified.sentiment if classified is not None else events_pb2.SENTIMENT_UNSPECIFIED
    return {
        "tenant": tenant,
        "conversation_id": turn.conversation_id,
        "answer_id": turn.answer_id,
        "asked_at": asked_ms,
        "profile_id": turn.profile_id or None,
        "question": turn.question,
        "answer": turn.answer,
        "answered": turn.answered,
        "model": turn.model,
        "prompt_tokens": turn.prompt_tokens,
        "answer_tokens": turn.answer_tokens,
        "cost": turn.cost,
        "latency_ms": turn.latency_ms,
        "context": [*_parts(turn.context.parts, used=True), *_parts(turn.context.left_out, used=False)],
        "citations": [_citation(citation) for citation in turn.citations],
        "ratings": _ratings(ratings),
        "conversation_ratings": _ratings(conversation_ratings),
        "sentiment": _name(events_pb2.Sentiment, "SENTIMENT_", tone),
        "sentiment_score": classified.score if classified is not None else None,
        "satisfaction": classified.category or None if classified is not None else None,
        "classifier": classified.classifier or None if classified is not None else None,
    }


def _parts(parts: Iterable[gateway_pb2.ContextPart], *, used: bool) -> list[Row]:
    return [
        {
            "kind": _name(gateway_pb2.PartKind, "PART_KIND_", part.kind),
            "reference": part.reference,
            "version": part.version,
            "ordinal": part.ordinal,
            "number": part.number,
            "used": used,
        }
        for part in parts
    ]


def _citation(citation: gateway_pb2.Citation) -> Row:
    return {
        "number": citation.number,
        "document_id": citation.document_id,
        "version": citation.version,
        "start": citation.start,
        "end": citation.end,
        "quote": citation.quote,
        "verified": citation.verified,
    }


def _ratings(ratings: Iterable[events_pb2.AnswerRated]) -> list[Row]:
    rows = []
    for rating in ratings:
        value = rating_value(rating)
        rows.append(
            {
                "rater": rating.rater or None,
                "rating": None if value is None else value / RATING_UNIT,
                "scale": rating.scale if rating.WhichOneof("rating") == "scale" else None,
                "text": rating.text or None,
                "rated_at": milliseconds(rating.rated_at, 0) or None,
            }
        )
    return sorted(rows, key=lambda row: (row["rater"] or "", row["rated_at"] or 0))


def _name(enum: Any, prefix: str, number: int) -> str | None:
    return enum.Name(number).removeprefix(prefix).lower() if number in enum.values() and number else None


def day_of(time_ms: int) -> str:
    """The day of a moment in UTC, for example 2026-11-24."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).date().isoformat()


def with_text_times(row: Row) -> Row:
    """A row as JSON has it: times are RFC 3339 texts in UTC."""
    return {
        **row,
        "asked_at": _text(row["asked_at"]),
        **{
            name: [{**rating, "rated_at": rating["rated_at"] and _text(rating["rated_at"])} for rating in row[name]]
            for name in ("ratings", "conversation_ratings")
        },
    }


def _text(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns, all of the same length."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
