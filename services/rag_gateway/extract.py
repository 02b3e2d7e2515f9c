"""The extractive answerer: it picks what the context says that answers the question best, word for word. Pure.

It needs no model, makes nothing up, and says that there is no answer when the support is weak. A statement supports a
question by the words that they share, weighed by how rare they are in the context, by the kind of value that it holds,
and by how near the search found it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from headwater.rag_gateway.v1 import events_pb2

from services.rag_gateway.context import Ingredients
from services.rag_gateway.fields import Kind
from services.rag_gateway.prompt import NO_ANSWER
from services.rag_gateway.question import Asked, analyse, is_code, kin, leans_on
from services.rag_gateway.statements import Statement, statements

MODEL = "extractive"

_ENOUGH = 0.55  # support from which on a statement answers
_COVERED = 0.34  # whatever else speaks for it, this much of the question must be in it
_GAIN = 0.22  # what a further statement must add
_ALIKE = 0.04  # statements of a group that are this near to the best are told together
_KIN = 0.75
_STATEMENTS_MAX = 3
_LIST_MAX = 5
_OWN, _OWN_WHEN_ASKING_LEAVE, _WANTED, _NEAR = 0.25, 0.05, 0.12, 0.25
_PAST, _CLOSED, _OUT_OF_RANGE = 0.2, 0.12, 0.35
_LEAVE = re.compile(r"\b(?:can|may|could|should|must|am) (?:i|we)\b|\bdo (?:i|we) (?:need|have|get|pay)\b", re.IGNORECASE)
_CLOSED_ASKED = re.compile(r"\b(?:cancelled|canceled|completed|past|history|all|every)\b", re.IGNORECASE)
_RANGE = re.compile(
    r"(?P<low>\d+(?:\.\d+)?) ?(?:to|-|\u2013|and) ?(?P<high>\d+(?:\.\d+)?)"
    r"|(?P<least>\d+(?:\.\d+)?)(?: \w+)? or more|(?:at least|from|over|above) (?P<from>\d+(?:\.\d+)?)"
    r"|(?:up to|at most|no more than|less than|under|below|within) (?P<most>\d+(?:\.\d+)?)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quote:
    """The words of a part that an answer rests on.

    Attributes:
        number: the part.
        quote: the words.
        start: where they begin in the part's text, in characters.
    """

    number: int
    quote: str
    start: int


@dataclass(frozen=True, slots=True)
class Extract:
    """An answer.

    Attributes:
        text: the answer, with [n] after each statement.
        quotes: what it rests on, in the order of the text.
        answered: whether there is an answer.
    """

    text: str
    quotes: tuple[Quote, ...]
    answered: bool


def answer(question: str, context: events_pb2.Context, ingredients: Ingredients, today: str) -> Extract:
    """Answer from the context alone.

    Args:
        question: as it was asked.
        context: the composed context.
        ingredients: what the context was composed from.
        today: the date, ISO 8601.
    """
    earlier = ingredients.turns[-1].question if ingredients.turns else ""
    asked = analyse(question, leans_on(question, earlier))
    weighing = _Weighing(question, asked, statements(asked, context, ingredients), today)
    chosen = weighing.chosen()
    if not chosen:
        return Extract(NO_ANSWER, (), answered=False)
    separator = "\n" if len(chosen) > 1 else ""
    return Extract(
        text=separator.join(f"{statement.text} [{statement.number}]" for statement in chosen),
        quotes=tuple(Quote(s.number, s.quote, s.start) for s in chosen),
        answered=True,
    )
