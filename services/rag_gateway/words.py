"""Words, sentences and token counts of a text, with their places: what ranking and quoting need. Pure."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

# A word may hold inner hyphens, dots, colons and slashes; `words` splits it there unless it is a code, a date,
# a time or a number.
_WORD = re.compile(r"[^\W_]+(?:['\u2019\-.:/][^\W_]+)*")
_PART = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_PIECE = re.compile(r"([A-Za-z]+)|(\d+)|[^\sA-Za-z\d]")
_LONG_LETTERS = re.compile(r"(?<![^\W_])[^\W\d_]{3,}(?![^\W_])")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*(?=\s)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|approx|no|nr|dr|mr|mrs|ms|prof|st|vs|incl|excl|max|min|tel|a\.m|p\.m)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_MARKER = re.compile(r"\s*(?:[-*+•|>]|#{1,6}\s|\d{1,3}[.)]\s)\s*")
_LEAD_WORDS = 4
_NAMED_VALUE = re.compile(r"[\w .-]{1,40}: ")
_SINGLE_LETTER = re.compile(r"[^\W\d_]-[^\W\d_]{3,}")  # e-mail, e-visa
_WRAPPED_FROM = 50  # a line at least this long, without an end of its own, goes on in the next line
# Letters that carry no combining mark and so survive decomposition.
_LETTERS = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "ß": "ss",
        "æ": "ae",
        "œ": "oe",
        "đ": "d",
        "ð": "d",
        "þ": "th",
        "\u0131": "i",
        "\u2019": "'",
    }
)

STOP_WORDS = frozenset(
    """
    a about again all also am an and any are as at be been being but by can could did do does doing for
    from get give go had has have having hello hey hi how i if in into is it its itself just know let
    like many may me mine might more much must my need of on one or our ours out please shall she he
    should so some still tell than thank thanks that the their them then there these they this those to
    too up us very want was we were what when where which who whom whose why will with would yes you
    your yours what's i'm i'd i'll i've it's that's there's don't doesn't isn't can't
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        term: the folded and stemmed form, by which words are compared.
        start, end: its place in the text, in characters; `end` is exclusive.
    """

    term: str
    start: int
    end: int


class Span(NamedTuple):
    """A stretch of a text, in characters; `end` is exclusive."""

    start: int
    end: int


def folded(text: str) -> str:
    """Lower case without diacritics: `Norðurljós` and `nordurljos` are the same word."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).lower().translate(_LETTERS))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@lru_cache(maxsize=50_000)
def term_of(word: str) -> str:
    """The form by which a word is compared: folded, English inflections stemmed, hyphens of codes dropped."""
    plain = folded(word)
    if any(letter.isdigit() for letter in plain):
        return plain.replace("-", "")
    return str(_stemmer().stemWord(plain.replace("-", "").removesuffix("'s").removesuffix("'")))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    # Imported at the first use: the package loads every language that it knows.
    import snowballstemmer

    return snowballstemmer.stemmer("english")


def words(text: str) -> Iterator[Word]:
    """Every word of a text but the stop words, in order."""
    for found in _WORD.finditer(text):
        whole = found[0]
        if _is_one(whole):
            if folded(whole) not in STOP_WORDS:
                yield Word(term_of(whole), found.start(), found.end())
            continue
        for part in _PART.finditer(whole):
            if folded(part[0]) not in STOP_WORDS:
                yield Word(term_of(part[0]), found.start() + part.start(), found.start() + part.end())


def terms(text: str) -> list[str]:
    """The terms of a text, in order and with repetitions."""
    return [word.term for word in words(text)]


def _is_one(word: str) -> bool:
    """Whether a run is one word: plain, or a code, date, time or number; `24-hour` and `check-in` are two."""
    if word.isalnum() or _SINGLE_LETTER.fullmatch(word):
        return True
    return any(letter.isdigit() for letter in word) and _LONG_LETTERS.search(word) is None


def sentences(text: str) -> list[Span]:
    """The sentences, list items and lines of a text, without the marks before a list item or heading.

    A line break ends a sentence unless an editor seems to have wrapped the line: long, and going on in words.
    """
    spans: list[Span] = []
    for line in _lines(text):
        start = line.start
        for end in _SENTENCE_END.finditer(text, line.start, line.end):
            if not _is_abbreviation(text[max(start, end.end() - 12) : end.end()]) and not _is_lead(
                text, start, end.end()
            ):
                spans.append(Span(start, end.end()))
                start = end.end()
        spans.append(Span(start, line.end))
    trimmed = (_trimmed(text, span) for span in spans)
    return [span for span in trimmed if any(letter.isalnum() for letter in text[span.start : span.end])]


def _is_abbreviation(words_before: str) -> bool:
    number_of_item = words_before.strip().rstrip(".").isdigit()
    return number_of_item or _ABBREVIATION.search(words_before) is not None


def _is_lead(text: str, start: int, end: int) -> bool:
    """Whether a sentence is only a few words that lead up to the next one: `Illness or injury. With a ...`."""
    return len(text[start:end].split()) <= _LEAD_WORDS and not text[:start].rstrip(" ").endswith((".", "!", "?"))


def _lines(text: str) -> Iterator[Span]:
    """The lines of a text, where lines that were wrapped by an editor count as one."""
    start = place = 0
    while place < len(text):
        end = text.find("\n", place)
        if end < 0:
            break
        if not _goes_on(text, place, end):
            yield Span(start, end)
            start = end + 1
        place = end + 1
    yield Span(start, len(text))


def _goes_on(text: str, start: int, end: int) -> bool:
    line = text[start:end].rstrip()
    if len(line) < _WRAPPED_FROM or line[-1] in ".!?:|":
        return False
    following = text[end + 1 : end + 42]
    if not following.strip() or following.startswith("\n"):
        return False
    return _MARKER.match(following) is None and _NAMED_VALUE.match(following) is None


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] == "|"):
        end -= 1
    marker = _MARKER.match(text, start, end)
    return Span(marker.end() if marker else start, end)


def estimate_tokens(text: str) -> int:
    """How many tokens a language model will count, without its tokenizer: deterministic, and seldom too low.

    A run of Latin letters counts one token for each six letters begun, a run of digits one for each three, and
    every other visible character one. On English prose that is about 1.3 tokens a word, as byte-pair
    vocabularies need.
    """
    count = 0
    for piece in _PIECE.finditer(text):
        width = piece.end() - piece.start()
        if piece[1]:
            count += (width + 5) // 6
        elif piece[2]:
            count += (width + 2) // 3
        else:
            count += 1
    return count
