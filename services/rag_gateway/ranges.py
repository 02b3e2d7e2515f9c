"""Numbers and ranges of numbers in words: `7 to 13 days` answers a question about `10 days`. Pure."""

import math
import re
from functools import lru_cache
from typing import NamedTuple

from services.rag_gateway.words import term_of

_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), start=2
    )
}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)
_N = r"(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)"
_UNIT = r"[^\W\d_]+"
_RANGE = re.compile(
    rf"(?P<low>{_N}) ?(?:to|-|\u2013|and) ?(?P<high>{_N}) ?(?P<unit>{_UNIT})?"
    rf"|(?P<least>{_N}) ?(?P<least_unit>{_UNIT})? or more"
    rf"|(?P<word>at least|from|over|above|up to|at most|no more than|less than|under|below|within) (?P<bound>{_N})"
    rf" ?(?P<bound_unit>{_UNIT})?",
    re.IGNORECASE,
)
_COUNTED = re.compile(rf"({_N}) ?({_UNIT})?")
_LOWER_BOUNDS = frozenset(["at least", "from", "over", "above"])
_BELOW = frozenset(["less than", "under", "below"])
_EMPHASIS = re.compile(r"\*\*")


class Range(NamedTuple):
    """A range of numbers, ends included, and the term of what they count; empty where that is not said."""

    low: float
    high: float
    unit: str

    def holds(self, number: float, unit: str) -> bool:
        """Whether so many of a unit are within it."""
        return self.low <= number <= self.high and self.counts(unit)

    def counts(self, unit: str) -> bool:
        """Whether it may be about that unit."""
        return not self.unit or not unit or self.unit == unit


@lru_cache(maxsize=2_000)
def ranges(words: str) -> tuple[Range, ...]:
    """The ranges in some words: `7 to 13 days`, `30 days or more`, `less than two`."""
    found = []
    for match in _RANGE.finditer(_in_digits(_EMPHASIS.sub("", words))):
        unit = term_of(match["unit"] or match["least_unit"] or match["bound_unit"] or "")
        if match["low"]:
            found.append(Range(_value(match["low"]), _value(match["high"]), unit))
        elif match["least"]:
            found.append(Range(_value(match["least"]), math.inf, unit))
        elif match["word"].lower() in _LOWER_BOUNDS:
            found.append(Range(_value(match["bound"]), math.inf, unit))
        else:
            below = 1e-9 if match["word"].lower() in _BELOW else 0.0
            found.append(Range(0.0, _value(match["bound"]) - below, unit))
    return tuple(found)


def counted(question: str) -> list[tuple[float, str]]:
    """The numbers of a question, each with the term of what it counts: `10 days`."""
    return [(_value(number), term_of(unit)) for number, unit in _COUNTED.findall(_in_digits(question))]


def is_number(term: str) -> bool:
    """Whether a term is a number, in digits or as a word."""
    return term in _NUMBER_WORDS or term.replace(".", "", 1).isdecimal()


def _in_digits(words: str) -> str:
    return _NUMBER_WORD.sub(lambda word: str(_NUMBER_WORDS[word[0].lower()]), words)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
