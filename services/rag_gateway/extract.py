"""The extractive answerer: it picks what the context says that answers the question best, word for word. Pure.

It needs no model, makes nothing up, and says that there is no answer when the support is weak.
"""

from dataclasses import dataclass

from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.context import Ingredients
from services.rag_gateway.prompt import NO_ANSWER
from services.rag_gateway.question import analyse, leans_on
from services.rag_gateway.statements import statements
from services.rag_gateway.weighing import Weighing

MODEL = "extractive"


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
    weighing = Weighing(question, asked, statements(asked, context, ingredients), today)
    chosen = weighing.chosen()
    if not chosen:
        return Extract(NO_ANSWER, (), answered=False)
    separator = "\n" if len(chosen) > 1 else ""
    return Extract(
        text=separator.join(f"{statement.text} [{statement.number}]" for statement in chosen),
        quotes=tuple(Quote(s.number, s.quote, s.start) for s in chosen),
        answered=True,
    )
