"""What a context says, cut into statements: sentences, table lines, live values and rows of the person. Pure.

Each statement is words for an answer, a verbatim quote that proves them, and the terms by which a question finds it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from headwater.embedder.v1 import service_pb2 as embedder_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.context import Ingredients, profile_fields, row_title
from services.rag_gateway.fields import Field, Kind, decoded, displayed, fields_of, is_currency, month_of, readable
from services.rag_gateway.question import Asked, kin
from services.rag_gateway.tables import headers, is_record, shown, table_line
from services.rag_gateway.words import Span, sentences, terms

# How much a term counts, by where it stands.
_SAID, _NAMED, _HEADED, _NEARBY = 1.0, 0.85, 0.6, 0.35
_COSINE_FLOOR, _COSINE_RANGE = 0.25, 0.45  # below the floor a vector says nothing; at the top, that it is the same
_BOOKKEEPING = frozenset(["created at", "updated at", "modified at", "last login", "created", "updated"])
_OVER = frozenset(["cancelled", "canceled", "completed", "void", "expired"])
_CONTACT = frozenset(["email", "phone"])
_ID_LINE = re.compile(r"_?(?:id|key|uuid)\b.{0,3}: ?\S+", re.IGNORECASE)
_QUESTION_BODY_MAX = 500  # characters of an answer below a question, as in a list of frequent ones, told as one
_MONEY = re.compile(r"[€$£¥%]|\b(?:euros?|eur|usd|gbp|dollars?|pounds?|free of charge|at no cost)\b", re.IGNORECASE)
_TIME = re.compile(
    r"\b(?:hours?|days?|weeks?|months?|minutes?|years?|\d{1,2}:\d{2}|\d{4}|midnight|noon)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that the context says.

    Attributes:
        text: how an answer tells it.
        number: the part that says it.
        quote: the words of the part that prove it, verbatim.
        start: where the quote begins in the part's text, in characters.
        terms: its terms, each with how much it counts.
        kinds: the kinds of value that it holds.
        own: whether it is about the asker.
        related: whether it is about something that a row of the asker refers to.
        semantic: how near the vectors found it, in 0..1.
        score: how high the search ranked it, in 0..1.
        day: for a row of the person, its date, ISO 8601; else empty.
        amount: the number that it is about, for `cheapest` and the like; None where there is none.
        group: statements of one group answer a question together, as a list; empty for those that stand alone.
        closed: whether it is about something cancelled or over.
        live: whether it is a live value of a row behind a document.
        refers_to: for a row of the person, the parts with the rows that it refers to.
        about: what those say first.
    """

    text: str
    number: int
    quote: str
    start: int
    terms: Mapping[str, float]
    kinds: frozenset[Kind]
    own: bool = False
    related: bool = False
    semantic: float = 0.0
    score: float = 0.0
    day: str = ""
    amount: float | None = None
    group: str = ""
    closed: bool = False
    live: bool = False
    refers_to: tuple[int, ...] = ()
    about: tuple["Statement", ...] = ()


class _Source(NamedTuple):
    part: events_pb2.ContextPart
    hit: embedder_pb2.Hit


def statements(asked: Asked, context: events_pb2.Context, ingredients: Ingredients) -> list[Statement]:
    """Everything that the numbered parts of a context say that may bear on a question."""
    hits = {(hit.document_id, hit.version, hit.ordinal): hit for hit in ingredients.hits}
    sources = [
        _Source(part, hits[part.reference, part.version, part.ordinal])
        for part in context.parts
        if part.kind == events_pb2.PART_KIND_KNOWLEDGE
    ]
    by_key = {source.hit.document_id.rpartition("/")[2]: source for source in reversed(sources)}
    found: list[Statement] = []
    for part in context.parts:
        if part.kind == events_pb2.PART_KIND_PROFILE:
            found.extend(_of_profile(part, ingredients))
        elif part.kind == events_pb2.PART_KIND_LIVE_ROW:
            found.extend(_of_row(asked, part, ingredients, by_key))
    referred = {number for statement in found if not statement.closed for number in statement.refers_to}
    for source in sources:
        related = source.part.number in referred
        found.extend(replace(statement, related=related) for statement in _of_live(asked, source))
        found.extend(replace(statement, related=related) for statement in _of_text(source))
    return found


def _of_profile(part: events_pb2.ContextPart, ingredients: Ingredients) -> Iterator[Statement]:
    profile = ingredients.usable_profile
    fields = profile_fields(profile) if profile is not None else []
    for field in fields:
        if field.name == "id" or field.name in _BOOKKEEPING:
            continue
        yield Statement(
            text=f"Your {field.name}: {displayed(field, fields)}",
            number=part.number,
            quote=field.line,
            start=max(0, part.text.find(field.line)),
            terms=_weighed((field.name, _SAID), (field.shown, _NAMED), ("profile", _HEADED)),
            kinds=frozenset([field.kind]),
            own=True,
            group="profile",
        )


def _of_row(
    asked: Asked, part: events_pb2.ContextPart, ingredients: Ingredients, by_key: Mapping[str, _Source]
) -> Iterator[Statement]:
    """One statement a row: the fields that the question names, or else all that is worth telling."""
    profile = ingredients.usable_profile
    record = next((r for r in profile.records if r.record == part.reference), None) if profile else None
    if record is None or profile is None:
        return
    row = fields_of(decoded(record.row_json))
    key = record.record.rpartition("/")[2]
    linked = [by_key[field.shown] for field in row if field.shown in by_key]
    named = _named(asked, row)
    # What a key refers to is told by its title.
    told = named or [f for f in row if f.shown != key and f.shown not in by_key and _worth_telling(f)]
    if not told:
        return
    about = ", ".join(shown(source.hit.title) for source in linked if source.hit.title)
    quote, start = _quoted(part.text, told)
    yield Statement(
        text=f"{_capital(row_title(record))}{f' ({about})' if about else ''}: {_told(told, row)}",
        number=part.number,
        quote=quote,
        start=start,
        terms=_weighed(
            *((field.name, _SAID if named else _HEADED) for field in told),
            *((field.shown, _SAID) for field in told),
            *((f"{field.shown} {month_of(field)}", _NAMED) for field in row),
            (row_title(record), _NAMED),
            *((f"{source.hit.title} {' '.join(source.hit.heading_path)}", _NAMED) for source in linked),
            *((source.hit.text, _NEARBY) for source in linked),
        ),
        kinds=frozenset(field.kind for field in told) | ({Kind.PLACE} if linked else set()),
        own=True,
        day=min((field.shown[:10] for field in row if _is_event(field)), default=""),
        amount=_amount(named),
        group=f"row {record.source}/{record.entity}",
        closed=any(field.shown in _OVER for field in row),
        refers_to=tuple(source.part.number for source in linked),
        about=tuple(_first_sentence(source) for source in linked),
    )


def _first_sentence(source: _Source) -> Statement:
    """What a document says first: in a row's document, what the row is."""
    span = next(iter(sentences(source.hit.text)), Span(0, len(source.hit.text)))
    words = source.hit.text[span.start : span.end]
    return Statement(
        text=shown(words), number=source.part.number, quote=words, start=span.start, terms={}, kinds=frozenset()
    )


def _of_live(asked: Asked, source: _Source) -> Iterator[Statement]:
    """The live columns that the question asks for, told with the name of what they belong to."""
    part, hit = source
    row = fields_of(decoded(hit.live_json))
    named = _named(asked, row) or [field for field in row if field.kind is asked.wants is not Kind.OTHER]
    if not named:
        return
    first, _, rest = hit.text.partition("\n")
    name = hit.title or hit.document_id.rpartition("/")[2]
    quote, start = _naming(hit)
    yield Statement(
        text=f"{name}: {_told(named, row)}",
        number=part.number,
        quote=quote,
        start=start,
        terms=_weighed(
            *((field.name, _SAID) for field in named),
            *((field.shown, _NAMED) for field in named),
            (name, _SAID),
            (readable(hit.document_id.replace("/", " ")), _NAMED),
            (f"{' '.join(hit.heading_path)} {first}", _NAMED),
            (rest, _NEARBY),
        ),
        kinds=frozenset(field.kind for field in named),
        semantic=_semantic(hit),
        score=hit.score,
        amount=_amount(named),
        live=True,
        group=f"live {named[0].name} {next((field.shown for field in row if is_currency(field)), '')}",
    )


def _of_text(source: _Source) -> Iterator[Statement]:
    """The sentences and table lines of a chunk."""
    part, hit = source
    headings = {" ".join(heading.split()).casefold() for heading in (hit.title, *hit.heading_path)}
    # All that stands in the document of a row is about that row; a heading only says what its section is about.
    titled = _NAMED if hit.live_json else _HEADED
    around = _weighed(
        (" ".join((hit.title, *hit.heading_path)), titled),
        (hit.text, _NEARBY),
        (readable(hit.document_id.replace("/", " ")), _HEADED),
    )
    yield from _of_question(source)
    spans = sentences(hit.text)
    for span, header in zip(spans, headers(hit.text, spans), strict=True):
        words = hit.text[span.start : span.end]
        skipped = words.endswith("?") or words.isupper() or _ID_LINE.fullmatch(words) or header == words
        if skipped or " ".join(words.split()).casefold() in headings:
            continue
        listed = bool(header) or is_record(words)
        yield Statement(
            text=table_line(header, words) if header else f"{_subject(hit, words)}{shown(words)}",
            number=part.number,
            quote=words,
            start=span.start,
            terms=_merged(around, _weighed((header, _NAMED), (words, _SAID))),
            kinds=_kinds_in(words) | ({Kind.PLACE} if hit.live_json else set()),
            semantic=_semantic(hit),
            score=hit.score,
            group=f"line {part.reference}" if listed else "",
        )


def _subject(hit: embedder_pb2.Hit, words: str) -> str:
    """What a sentence of a row's document is about, where the sentence does not say it."""
    return f"{hit.title}: " if hit.live_json and hit.title and hit.title not in words else ""


def _of_question(source: _Source) -> Iterator[Statement]:
    """The whole text below a heading that is a question: it was written as the answer to that."""
    part, hit = source
    question = hit.heading_path[-1] if hit.heading_path else hit.title
    body = [
        span
        for span in sentences(hit.text)
        if not _ID_LINE.fullmatch(words := hit.text[span.start : span.end]) and " ".join(words.split()) != question
    ]
    if not question.endswith("?") or not body or body[-1].end - body[0].start > _QUESTION_BODY_MAX:
        return
    words = hit.text[body[0].start : body[-1].end]
    yield Statement(
        text=shown(words),
        number=part.number,
        quote=words,
        start=body[0].start,
        terms=_weighed((question, _SAID), (words, _NAMED)),
        kinds=_kinds_in(words),
        semantic=_semantic(hit),
        score=hit.score,
    )


def _named(asked: Asked, row: Sequence[Field]) -> list[Field]:
    """The fields whose names a question mentions."""
    wanted = frozenset().union(*(kin(term) for term in asked.weights))
    return [field for field in row if wanted & set(terms(field.name)) and not is_currency(field)]


def _worth_telling(field: Field) -> bool:
    return field.name not in _BOOKKEEPING and not _CONTACT & set(field.name.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _told(fields: Iterable[Field], row: list[Field]) -> str:
    return ", ".join(f"{field.name} {displayed(field, row)}" for field in fields if not is_currency(field))


def _quoted(text: str, fields: Sequence[Field]) -> tuple[str, int]:
    """The stretch of a row's text from the first of some fields to the last, if it is not much longer than they are."""
    places = [(text.find(field.line), field) for field in fields]
    places = [(place, field) for place, field in places if place >= 0]
    if not places:
        return text, 0
    first = min(place for place, _ in places)
    last = max(place + len(field.line) for place, field in places)
    if last - first > 2 * sum(len(field.line) for _, field in places):
        first, last = places[0][0], places[0][0] + len(places[0][1].line)
    return text[first:last], first


def _naming(hit: embedder_pb2.Hit) -> tuple[str, int]:
    """The words of a document that say what its live columns belong to: its title, or its first sentence."""
    place = hit.text.find(hit.title) if hit.title else -1
    if place >= 0:
        return hit.title, place
    first = next(iter(sentences(hit.text)), Span(0, len(hit.text)))
    return hit.text[first.start : first.end], first.start


def _is_event(field: Field) -> bool:
    return field.kind is Kind.TIME and field.name not in _BOOKKEEPING


def _amount(fields: Iterable[Field]) -> float | None:
    for field in fields:
        if field.kind in (Kind.MONEY, Kind.NUMBER):
            return float(field.shown)
    return None


def _semantic(hit: embedder_pb2.Hit) -> float:
    return min(1.0, max(0.0, (hit.vector_score - _COSINE_FLOOR) / _COSINE_RANGE))


def _kinds_in(words: str) -> frozenset[Kind]:
    found = {Kind.OTHER}
    if _MONEY.search(words):
        found.add(Kind.MONEY)
    if _TIME.search(words):
        found.add(Kind.TIME)
    if any(letter.isdigit() for letter in words):
        found.add(Kind.NUMBER)
    return frozenset(found)


def _weighed(*texts: tuple[str, float]) -> dict[str, float]:
    """The terms of some texts, each with the highest of its texts' weights."""
    found: dict[str, float] = {}
    for text, weight in texts:
        for term in terms(text):
            if found.get(term, 0.0) < weight:
                found[term] = weight
    return found


def _merged(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {term: max(one.get(term, 0.0), other.get(term, 0.0)) for term in (*one, *other)}
