"""Citations: read out of a model's words as they stream, and checked against the cited version. Pure.

A model is asked to write `[n "copied words"]`. The reader of the answer sees `[n]`; the copied words are looked up in
part n, and then in that version of the document. A number that no part has, words that the part does not hold, and
words that the version does not hold any more are each told apart, and none of them passes as verified.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.extract import Quote
from services.rag_gateway.prompt import fused
from services.rag_gateway.words import Span, sentences, terms

_OPEN, _CLOSE = '["\u201c]', '["\u201d]'
_ITEM = rf"\d{{1,3}}(?:\s*:?\s*{_OPEN}.+?{_CLOSE}(?=\s*[\],;]))?"
_MARKER = re.compile(rf"\[\s*{_ITEM}(?:\s*[,;]\s*{_ITEM})*\s*\]", re.DOTALL)
_ONE = re.compile(rf"(\d{{1,3}})(?:\s*:?\s*{_OPEN}(.+?){_CLOSE}(?=\s*[\],;]))?", re.DOTALL)
_BEGUN = re.compile(r"\[\s*(?:\d.*)?", re.DOTALL)
_HELD_MAX = 500  # an opened marker that is not closed within this many characters is none
_QUOTE_MIN = 4  # letters and digits: fewer prove nothing
_SUPPORT_MIN = 0.3  # of the statement's terms, where the model copied no words
_SAME = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-",
    "\u2013": "-", "\u2014": "-", "\u00a0": " ", "\u202f": " ", "*": "", "_": "", "`": "",
})  # fmt: skip


class Mention(NamedTuple):
    """One [n] in an answer.

    Attributes:
        number: the part that it names.
        quote: the words that the model copied; empty when it copied none.
        place: where the mark begins in the answer's text, in characters.
    """

    number: int
    quote: str
    place: int


@dataclass(slots=True)
class CitationReader:
    """Turns a model's stream into the answer's text: copied words are taken out, and kept with their marks.

    Attributes:
        text: the answer's text so far.
        mentions: the marks so far.
    """

    text: str = ""
    mentions: list[Mention] = field(default_factory=list)
    _held: str = ""

    def feed(self, piece: str) -> str:
        """Take the next words of the model; return the next words of the answer, which may be none yet."""
        return self._read(self._held + piece, final=False)

    def close(self) -> str:
        """Return what was held back, at the end of the stream."""
        return self._read(self._held, final=True)

    def _read(self, text: str, *, final: bool) -> str:
        out: list[str] = []
        place = 0
        self._held = ""
        while (opened := text.find("[", place)) >= 0:
            out.append(text[place:opened])
            marker = _MARKER.match(text, opened)
            if marker:
                out.append(self._noted(marker[0], len(self.text) + sum(map(len, out))))
                place = marker.end()
                continue
            rest = text[opened:]
            if not final and len(rest) < _HELD_MAX and _BEGUN.fullmatch(rest):
                self._held = rest
                place = len(text)
                break
            out.append("[")
            place = opened + 1
        out.append(text[place:])
        said = "".join(out)
        self.text += said
        return said

    def _noted(self, marker: str, place: int) -> str:
        shown = ""
        for one in _ONE.finditer(marker):
            self.mentions.append(Mention(int(one[1]), (one[2] or "").strip(), place + len(shown)))
            shown += f"[{int(one[1])}]"
        return shown


class Draft(NamedTuple):
    """A citation on its way to being verified.

    Attributes:
        citation: as far as it is known.
        part: the part that it names; None when there is none.
        problem: why it cannot be verified; empty so far as it can.
    """

    citation: events_pb2.Citation
    part: events_pb2.ContextPart | None
    problem: str = ""


def drafted(text: str, mentions: Sequence[Mention], context: events_pb2.Context) -> list[Draft]:
    """Find the words that each mark of a model's answer rests on, within the part that it names."""
    parts = {part.number: part for part in context.parts if part.number}
    drafts = []
    for mention in mentions:
        part = parts.get(mention.number)
        if part is None:
            unknown = events_pb2.Citation(number=mention.number, quote=mention.quote)
            drafts.append(Draft(unknown, None, f"[{mention.number}] names no part of the context"))
            continue
        span = _supporting(part.text, mention, _claim(text, mention.place))
        if span is None:
            why = "quotes words that the part does not hold" if mention.quote else "does not say what the answer says"
            citation = _citation(part, mention.quote, 0)
            drafts.append(Draft(citation, part, f"[{mention.number}] {part.title or part.reference} {why}"))
        else:
            drafts.append(Draft(_citation(part, part.text[span.start : span.end], span.start), part))
    return _without_repeats(drafts)


def drafted_from(quotes: Iterable[Quote], context: events_pb2.Context) -> list[Draft]:
    """The citations of an extractive answer, which knows its words' places."""
    parts = {part.number: part for part in context.parts if part.number}
    return _without_repeats([Draft(_citation(parts[q.number], q.quote, q.start), parts[q.number]) for q in quotes])


def verified(draft: Draft, texts: Mapping[tuple[str, str], str | None]) -> Draft:
    """Check a citation against the cited version.

    Args:
        draft: the citation.
        texts: the whole texts of documents by id and version; None for a version that is not to be had (any more).

    Returns:
        The draft with `verified` set, and with the quote's place in the document's text; or with the problem.
        Records and profiles are checked against what their store answered for this very question. Words of live
        columns are in no text: their place is 0 to 0.
    """
    citation, part, problem = draft
    if problem or part is None:
        return draft
    if part.kind != events_pb2.PART_KIND_KNOWLEDGE:
        citation.verified = citation.quote in part.text
        return draft
    text = texts.get((citation.document_id, citation.version))
    name = part.title or part.reference
    if text is None:
        return draft._replace(problem=f"[{citation.number}] {name} has changed or gone since it was read")
    place = _nearest(text, citation.quote, citation.start)
    if place >= 0:
        citation.start, citation.end, citation.verified = place, place + len(citation.quote), True
    elif citation.quote in part.text[max(0, part.text.rfind("\nNow: ")) :] and "\nNow: " in part.text:
        citation.start, citation.end, citation.verified = 0, 0, True
    else:
        return draft._replace(problem=f"[{citation.number}] {name} does not hold the quoted words")
    return draft


def locate(quote: str, text: str) -> Span | None:
    """Where a quote stands in a text, letting white space, emphasis marks and typographic variants differ."""
    place = text.find(quote)
    if place >= 0:
        return Span(place, place + len(quote))
    wanted, _ = _plain(quote.strip(" .\u2026"))
    if not wanted:
        return None
    plain, places = _plain(text)
    found = plain.find(wanted)
    if found < 0:
        return None
    return Span(places[found], places[found + len(wanted) - 1] + 1)


def _plain(text: str) -> tuple[str, list[int]]:
    """The text without what may differ, and for each character its place in the original."""
    letters: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(text):
        same = letter.translate(_SAME)
        if not same or (same.isspace() and (not letters or letters[-1] == " ")):
            continue
        letters.append(" " if same.isspace() else same.lower()[:1])
        places.append(place)
    return "".join(letters), places


def _supporting(text: str, mention: Mention, claim: str) -> Span | None:
    quote = fused(mention.quote)
    if quote and sum(letter.isalnum() for letter in quote) >= _QUOTE_MIN:
        return locate(quote, text)
    claimed = set(terms(f"{claim} {quote}"))
    if not claimed:
        return None
    spans = sentences(text)
    shares = [len(claimed & set(terms(text[span.start : span.end]))) / len(claimed) for span in spans]
    best = max(range(len(spans)), key=lambda index: (shares[index], -index), default=None)
    return spans[best] if best is not None and shares[best] >= _SUPPORT_MIN else None


def _claim(text: str, place: int) -> str:
    """The statement before a mark: back to the end of the sentence before, or to the mark before."""
    before = re.sub(r"(?:\[\d{1,3}\])+\s*$", "", text[:place].rstrip())
    spans = sentences(before)
    return before[spans[-1].start : spans[-1].end] if spans else before


def _citation(part: events_pb2.ContextPart, quote: str, start: int) -> events_pb2.Citation:
    begin = part.start + start if part.kind == events_pb2.PART_KIND_KNOWLEDGE else start
    return events_pb2.Citation(
        number=part.number, document_id=part.reference, version=part.version, start=begin, end=begin + len(quote),
        quote=quote, title=part.title, uri=part.uri,
    )  # fmt: skip


def _nearest(text: str, quote: str, expected: int) -> int:
    """Where the quote stands in the text: at the expected place, or the first place it has; -1 when nowhere."""
    if text.startswith(quote, expected):
        return expected
    return text.find(quote)


def _without_repeats(drafts: Sequence[Draft]) -> list[Draft]:
    seen: set[tuple[int, str]] = set()
    kept = []
    for draft in drafts:
        key = (draft.citation.number, draft.citation.quote)
        if key not in seen:
            seen.add(key)
            kept.append(draft)
    return kept
