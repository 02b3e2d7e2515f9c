"""The composition of a context: what of all that was found goes into the prompt, in which order, under a budget. Pure.

Parts are chosen by value per token. Nothing is in twice, nothing is in that was not found, and what did not fit is
listed. The same ingredients give the same context.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from headwater.embedder.v1 import service_pb2 as embedder_pb2
from headwater.profile.v1 import events_pb2 as profile_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.fields import Field, decoded, decoded_value, fields_of, readable, singular
from services.rag_gateway.prompt import part_tokens, turn_text
from services.rag_gateway.words import terms

SUSPECT = (
    "personal context: the profile is suspected of holding more than one person, so nothing of it was used; "
    "see why with `headwater identity explain`"
)
# A part costs at least this much in the choice, so that crumbs do not win over a whole answer.
_SMALLEST = 60
_TURNS = 6
_ROWS = 40


@dataclass(frozen=True, slots=True)
class Ingredients:
    """All that was gathered for one question.

    Attributes:
        question: the question, made to stand alone.
        hits: what the search found, best first.
        profile: the profile of the person who asks; None when it is not known.
        turns: earlier turns of the conversation, oldest first.
        missing: what could not be had, in plain words.
    """

    question: str
    hits: Sequence[embedder_pb2.Hit] = ()
    profile: profile_pb2.Profile | None = None
    turns: Sequence[events_pb2.TurnCompleted] = ()
    missing: Sequence[str] = ()

    @property
    def usable_profile(self) -> profile_pb2.Profile | None:
        """The profile, unless it is suspected of holding more than one person: then nothing of it may be used."""
        return self.profile if self.profile is not None and not self.profile.suspect else None


def compose(ingredients: Ingredients, budget_tokens: int) -> events_pb2.Context:
    """Choose, order and number the parts.

    Args:
        ingredients: what was found.
        budget_tokens: the most that all parts together may take, their fences included.

    Returns:
        The context: profile, records, documents, then earlier turns, oldest first. Parts that can be cited are
        numbered from 1 in that order; earlier turns have no number. `freshness` is left to the caller.
    """
    candidates = _distinct(_candidates(ingredients))
    chosen, left_out = _packed(candidates, budget_tokens)
    chosen.sort(key=_place)
    number = 0
    for part in chosen:
        if part.kind != events_pb2.PART_KIND_TURN:
            number += 1
            part.number = number
    for part in left_out:
        part.text = ""
    missing = list(ingredients.missing)
    if ingredients.profile is not None and ingredients.usable_profile is None:
        missing.append(SUSPECT)
    return events_pb2.Context(
        parts=chosen,
        left_out=left_out,
        budget_tokens=budget_tokens,
        used_tokens=sum(part.tokens for part in chosen),
        missing=missing,
    )


def references_only(context: events_pb2.Context) -> events_pb2.Context:
    """The context without the parts' texts: what the log keeps of it."""
    bare = events_pb2.Context()
    bare.CopyFrom(context)
    for part in bare.parts:
        part.text = ""
    return bare


def profile_fields(profile: profile_pb2.Profile) -> list[Field]:
    """The fields of a profile that describe the person, by name.

    By default every column of every row is a field. One that comes from an entity of which the person has several
    rows, such as a booking's status, says nothing of the person: it stays with its row.
    """
    rows = Counter(_entity(record.record) for record in profile.records)
    values = {
        name: decoded_value(profile.fields[name].value_json)
        for name in sorted(profile.fields)
        if rows[_entity(profile.fields[name].record)] < 2
    }
    return fields_of(values)


def _entity(record: str) -> str:
    return "/".join(record.split("/")[:2])


def row_title(record: profile_pb2.ProfileRecord) -> str:
    """What a row is called: one of its entity, and the last part of its key: `booking MB-70401`."""
    return f"{singular(readable(record.entity))} {record.record.rpartition('/')[2]}".strip()


def live_line(hit: embedder_pb2.Hit) -> str:
    """The live columns of the row behind a document, as they are now; empty when it has none."""
    return "; ".join(field.line for field in fields_of(decoded(hit.live_json)))


def _candidates(ingredients: Ingredients) -> list[events_pb2.ContextPart]:
    asked = frozenset(terms(ingredients.question))
    parts = [_knowledge(hit) for hit in ingredients.hits]
    profile = ingredients.usable_profile
    if profile is not None:
        own = frozenset(field.shown for field in profile_fields(profile))
        rows = [_row(record, profile.version, asked, own) for record in profile.records]
        rows.sort(key=lambda part: (-part.score, part.reference))
        parts.extend(rows[:_ROWS])
        parts.extend(_profile(profile))
    for age, turn in enumerate(reversed(ingredients.turns[-_TURNS:])):
        parts.append(_turn(turn, age))
    for part in parts:
        part.tokens = part_tokens(part)
    return [part for part in parts if part.text]


def _knowledge(hit: embedder_pb2.Hit) -> events_pb2.ContextPart:
    now = live_line(hit)
    return events_pb2.ContextPart(
        kind=events_pb2.PART_KIND_KNOWLEDGE,
        reference=hit.document_id,
        version=hit.version,
        ordinal=hit.ordinal,
        text=f"{hit.text}\nNow: {now}" if now else hit.text,
        score=hit.score,
        start=hit.start,
        end=hit.end,
        title=" > ".join([hit.title, *hit.heading_path]) if hit.title else " > ".join(hit.heading_path),
        uri=hit.uri,
        occurred_at=hit.occurred_at if hit.HasField("occurred_at") else None,
    )


def _profile(profile: profile_pb2.Profile) -> Iterable[events_pb2.ContextPart]:
    lines = [field.line for field in profile_fields(profile)]
    if lines:
        yield events_pb2.ContextPart(
            kind=events_pb2.PART_KIND_PROFILE,
            reference=profile.profile_id,
            version=str(profile.version),
            text="\n".join(lines),
            score=0.8,  # who asks bears on most questions, and a profile is short
            title="profile",
            occurred_at=_time(profile, "as_of"),
        )


def _row(
    record: profile_pb2.ProfileRecord, version: int, asked: frozenset[str], known: frozenset[str]
) -> events_pb2.ContextPart:
    """A row of the person. One that tells nothing beyond the profile's fields is worth little."""
    fields = fields_of(decoded(record.row_json))
    text = "\n".join(field.line for field in fields)
    news = sum(field.shown not in known for field in fields) / max(1, len(fields))
    named = frozenset(terms(f"{readable(record.entity)} {text}"))
    overlap = len(asked & named) / max(1, len(asked))
    return events_pb2.ContextPart(
        kind=events_pb2.PART_KIND_LIVE_ROW,
        reference=record.record,
        version=str(version),
        text=text,
        score=round(0.4 * news + 0.6 * overlap, 6),
        title=row_title(record),
        occurred_at=_time(record, "occurred_at"),
    )


def _turn(turn: events_pb2.TurnCompleted, age: int) -> events_pb2.ContextPart:
    return events_pb2.ContextPart(
        kind=events_pb2.PART_KIND_TURN,
        reference=turn.answer_id,
        text=turn_text(turn.question, turn.answer),
        score=round(0.6 * 0.7**age, 6),
        occurred_at=_time(turn, "asked_at"),
    )


def _time(
    message: "profile_pb2.Profile | profile_pb2.ProfileRecord | events_pb2.TurnCompleted", field: str
) -> Timestamp | None:
    value: Timestamp = getattr(message, field)
    return value if value.seconds or value.nanos else None


def _distinct(parts: Sequence[events_pb2.ContextPart]) -> list[events_pb2.ContextPart]:
    """Drop what is said by another part already: the same words, a stretch within another, an old version."""
    current = _current_versions(parts)
    ranked = sorted(parts, key=lambda part: (-part.score, _place(part)))
    kept: list[events_pb2.ContextPart] = []
    words_seen: set[str] = set()
    rows = {part.reference for part in parts if part.kind == events_pb2.PART_KIND_LIVE_ROW}
    for part in ranked:
        words = " ".join(part.text.split())
        if part.kind == events_pb2.PART_KIND_KNOWLEDGE:
            if part.version != current[part.reference] or part.reference in rows or words in words_seen:
                continue
            if any(_overlap(part, other) for other in kept):
                continue
            words_seen.add(words)
        kept.append(part)
    return kept


def _current_versions(parts: Sequence[events_pb2.ContextPart]) -> dict[str, str]:
    """Per document the version to use: the newest by its source's time, the best-ranked of equals."""
    newest: dict[str, tuple[tuple[int, int], str]] = {}
    for part in parts:
        if part.kind == events_pb2.PART_KIND_KNOWLEDGE:
            when = (part.occurred_at.seconds, part.occurred_at.nanos)
            if part.reference not in newest or when > newest[part.reference][0]:
                newest[part.reference] = (when, part.version)
    return {reference: version for reference, (_, version) in newest.items()}


def _overlap(part: events_pb2.ContextPart, other: events_pb2.ContextPart) -> bool:
    """Whether more than half of a part's stretch of a document is in another part already."""
    if other.kind != events_pb2.PART_KIND_KNOWLEDGE or part.reference != other.reference:
        return False
    if part.ordinal == other.ordinal:
        return True
    common = min(part.end, other.end) - max(part.start, other.start)
    return common * 2 > part.end - part.start


def _packed(
    parts: Sequence[events_pb2.ContextPart], budget: int
) -> tuple[list[events_pb2.ContextPart], list[events_pb2.ContextPart]]:
    """Fill the budget by value per token, or begin with the most valuable part where that is worth more."""
    ranked = sorted(parts, key=lambda part: (-part.score / (part.tokens + _SMALLEST), _place(part)))
    greedy = _filled(ranked, budget)
    best = max((part for part in parts if part.tokens <= budget), key=lambda part: part.score, default=None)
    if best is not None and best not in greedy:
        from_best = _filled([best, *(part for part in ranked if part is not best)], budget)
        if sum(part.score for part in from_best) > sum(part.score for part in greedy):
            greedy = from_best
    chosen = {id(part) for part in greedy}
    return greedy, sorted(
        (part for part in parts if id(part) not in chosen), key=lambda part: (-part.score, _place(part))
    )


def _filled(ranked: Iterable[events_pb2.ContextPart], budget: int) -> list[events_pb2.ContextPart]:
    chosen = []
    for part in ranked:
        if part.tokens <= budget:
            chosen.append(part)
            budget -= part.tokens
    return chosen


_ORDER = {
    events_pb2.PART_KIND_PROFILE: 0,
    events_pb2.PART_KIND_LIVE_ROW: 1,
    events_pb2.PART_KIND_KNOWLEDGE: 2,
    events_pb2.PART_KIND_TURN: 3,
}


def _place(part: events_pb2.ContextPart) -> tuple[int, float, str, int]:
    """Where a part stands in the prompt: by kind; documents by value, turns by time."""
    if part.kind == events_pb2.PART_KIND_TURN:
        return 3, part.score, part.reference, 0  # a newer turn has the higher score
    return _ORDER.get(part.kind, 2), -part.score, part.reference, part.ordinal
