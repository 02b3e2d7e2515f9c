"""How well statements support a question, and which of them answer it together. Pure.

A statement supports a question by the terms that they share, weighed by how rare they are in the context; by the kind
of value that it holds; by whose it is; and by how near the search found it. The constants were chosen by trial on the
demo's questions; `tests` hold what they achieve.
"""

import math
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache

from services.rag_gateway.fields import MONTHS, Kind
from services.rag_gateway.question import Asked, kin
from services.rag_gateway.ranges import counted, is_number, ranges
from services.rag_gateway.statements import Statement
from services.rag_gateway.words import term_of

_ENOUGH = 0.55  # support from which on a statement answers
_COVERED = 0.34  # whatever else speaks for it, this much of the question must be in it
_COVERED_LIVE = 0.6  # a live value of the wrong thing looks as good as one of the right thing: be strict
_GAIN = 0.22  # what a further statement must add
_ALIKE = 0.04  # statements of a group that are this near to the best are told together
_KIN = 0.85
_STATEMENTS_MAX = 3
_LIST_MAX = 5
_PROFILE_MAX = 8
_OWN, _OWN_WHEN_ASKING_LEAVE, _RELATED = 0.4, 0.05, 0.15
_WANTED, _UNWANTED, _NEAR, _RANKED = 0.12, 0.06, 0.25, 0.05
_PAST, _CLOSED, _OUT_OF_RANGE, _NAMELESS = 0.2, 0.12, 0.35, 0.15
_SAID = 0.7  # a term that counts more than this is said, and not only somewhere near
# Words that are in many questions and say little of what is asked.
_FAINT_WORDS = """
    happen happens ask say mean work find use make take takes bring carry see show keep come possible there
    currently now today moment current company people person thing way kind information detail details
    exactly maximum minimum limit max min limited usual usually normally include includes included sort type
    order time date long soon
"""
_FAINT = 0.3
_CLOSED_ASKED = re.compile(r"\b(?:cancelled|canceled|completed|past|history|all|every)\b", re.IGNORECASE)


class Weighing:
    """How well each statement supports the question."""

    def __init__(self, question: str, asked: Asked, found: Sequence[Statement], today: str) -> None:
        self._asked = asked
        self._today = today
        self._closed_asked = _CLOSED_ASKED.search(question) is not None
        self._numbers = counted(question)
        self._weights = {term: weight * _rarity(term, asked, found) for term, weight in asked.weights.items()}
        self._total = sum(self._weights.values()) or 1.0
        self._covers: dict[int, dict[str, float]] = {}
        self._eligible = [statement for statement in found if self._may_answer(statement)]

    def chosen(self) -> list[Statement]:
        """The statements that answer together, at most a few; none when the support is weak."""
        ranked = self._ranked
        if self._asked.own and not self._weights:  # `Who am I?`: there is nothing to choose by
            mine = [statement for _, statement in ranked if statement.group == "profile"]
            return sorted(mine, key=lambda s: "name" not in s.text.partition(":")[0])[:_PROFILE_MAX]
        if not ranked or not self._answers(*ranked[0]):
            return []
        chosen = self._with_alike(*ranked[0])
        if self._asked.wants is Kind.PLACE:
            chosen += [about for statement in chosen for about in statement.about]
        for _, statement in ranked:
            if len(chosen) >= _STATEMENTS_MAX:
                break
            if statement not in chosen and self._adds(statement, chosen):
                chosen.append(statement)
        return chosen

    @cached_property
    def _ranked(self) -> list[tuple[float, Statement]]:
        weighed = [(self._support(statement), statement) for statement in self._eligible]
        return sorted(weighed, key=lambda pair: (-round(pair[0], 6), pair[1].number, pair[1].start, len(pair[1].text)))

    def _answers(self, support: float, statement: Statement) -> bool:
        enough = _COVERED_LIVE if statement.live else _COVERED
        return support >= _ENOUGH and self._coverage(statement) >= enough

    def _may_answer(self, statement: Statement) -> bool:
        """A code must be met exactly, and rows of the person answer only questions about the person's own data."""
        if any(statement.terms.get(code, 0.0) == 0.0 for code in self._asked.codes):
            return False
        if statement.own:
            return self._asked.own or bool(self._asked.codes)
        # What somebody has cannot be told from the rules for everyone, unless the question says more than one word.
        return (
            not self._asked.possessive
            or self._asked.leave
            or sum(weight > _FAINT for weight in self._weights.values()) > 1
        )

    def _support(self, statement: Statement) -> float:
        support = self._coverage(statement) + _NEAR * statement.semantic + _RANKED * statement.score
        if self._asked.wants is not Kind.OTHER:
            support += _WANTED if self._asked.wants in statement.kinds else -_UNWANTED
        if statement.own and self._asked.own:
            support += _OWN_WHEN_ASKING_LEAVE if self._asked.leave else _OWN
        if statement.related and self._asked.own:
            support += _RELATED
        if statement.day and (statement.day < self._today) != self._asked.past:
            support -= _PAST
        if statement.closed and not self._closed_asked:
            support -= _CLOSED
        if self._out_of_range(statement):
            support -= _OUT_OF_RANGE
        if self._namable and not all(self._covered(name, statement) > _SAID for name in self._namable):
            support -= _NAMELESS
        return support

    def _coverage(self, statement: Statement) -> float:
        """How much of the question is in a statement, in 0..1."""
        covers = self._covers_of(statement)
        return sum(covers[term] * weight for term, weight in self._weights.items()) / self._total

    def _covered(self, term: str, statement: Statement) -> float:
        return self._covers_of(statement)[term]

    def _covers_of(self, statement: Statement) -> dict[str, float]:
        covers = self._covers.get(id(statement))
        if covers is None:
            covers = {term: self._cover(term, statement) for term in self._weights}
            self._covers[id(statement)] = covers
        return covers

    def _cover(self, term: str, statement: Statement) -> float:
        said = statement.terms
        exact = said.get(term, 0.0)
        if exact < 1.0 and is_number(term) and self._in_range(statement):
            return 1.0
        return max(exact, *(_KIN * said.get(other, 0.0) for other in kin(term)))

    def _in_range(self, statement: Statement) -> bool:
        return any(span.holds(number, unit) for span in ranges(statement.quote) for number, unit in self._numbers)

    def _out_of_range(self, statement: Statement) -> bool:
        """Whether it has ranges of what the question counts, and the question's number is in none of them."""
        spans = ranges(statement.quote)
        return any(span.counts(unit) for span in spans for _, unit in self._numbers) and not self._in_range(statement)

    @cached_property
    def _namable(self) -> list[str]:
        """The names of the question that the context knows: who has one should be told by it."""
        return [
            name
            for name in self._asked.names
            if name in self._weights and any(self._covered(name, statement) > _SAID for statement in self._eligible)
        ]

    def _with_alike(self, support: float, best: Statement) -> list[Statement]:
        """The best statement, with those of its group that answer as well; or the one of them that was asked for."""
        if not best.group:
            return [best]
        alike = [s for value, s in self._ranked if s.group == best.group and value >= support - _ALIKE]
        if self._asked.every and best.own:
            alike = [s for value, s in self._ranked if s.group == best.group and value >= support - _PAST - _CLOSED]
        if self._asked.extreme and all(s.day for s in alike):
            return [(min if self._asked.extreme < 0 else max)(alike, key=lambda s: s.day)]
        if self._asked.extreme and all(s.amount is not None for s in alike):
            return [(min if self._asked.extreme < 0 else max)(alike, key=lambda s: s.amount or 0.0)]
        return sorted(alike[:_LIST_MAX], key=lambda s: (s.day, s.number, s.start))

    def _adds(self, statement: Statement, chosen: Sequence[Statement]) -> bool:
        """Whether a further statement covers enough of the question that the chosen ones leave open."""
        gain = sum(
            weight * max(0.0, self._covered(term, statement) - max(self._covered(term, s) for s in chosen))
            for term, weight in self._weights.items()
        )
        return gain / self._total >= _GAIN and self._answers(self._support(statement), statement)


@lru_cache(maxsize=1)
def _faint() -> frozenset[str]:
    return frozenset(map(term_of, _FAINT_WORDS.split()))


@lru_cache(maxsize=1)
def _months() -> frozenset[str]:
    return frozenset(map(term_of, MONTHS))


def _rarity(term: str, asked: Asked, found: Sequence[Statement]) -> float:
    """How much a term tells: little when half the context has it, much when nearly nothing has."""
    if term in _faint():
        return _FAINT
    having = sum(any(s.terms.get(other, 0.0) > 0.5 for other in kin(term)) for s in found)
    if having == 0 and (is_number(term) or term in _months()):
        return _FAINT  # a date of the asker's own, as in `can I swim there in July`
    rarity = math.log(1.0 + len(found) / max(1, having))
    return rarity * 1.5 if term in asked.codes or term in asked.names else rarity
