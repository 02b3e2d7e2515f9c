"""A query in plain words as a full-text expression: stop words dropped, everything quoted, phrases rewarded. Pure."""

import functools
import itertools
from typing import NamedTuple

from services.embedder.lexical import FOLDING, TERM_MAX, Phrase, Tokenizer

TERMS_MAX = 32

STOP_WORDS = frozenset(
    """
    a about above after again all also am an and any are aren as at be because been before being below between
    both but by can could couldn d did didn do does doesn doing don down during each few for from further had hadn
    has hasn have having he her here hers him his how i if in into is isn it its itself just ll m may me might
    more most must my no nor not now o of off on once only or other our ours out over own please re s same shall
    she should shouldn so some such t than that the their theirs them then there these they this those through to
    too under until up us ve very was wasn we were weren what when where which while who whom whose why will with
    won would wouldn you your yours
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)


class WordQuery(NamedTuple):
    """What the full-text index is asked.

    Attributes:
        expression: in the language of FTS5; empty when there is nothing to look for.
        terms: how many different words are looked for.
        codes: the share of them that hold a digit: flight numbers, product codes, amounts.
        phrases: the same as the expression, as the tokens that are looked for: words, and pairs of words.
    """

    expression: str
    terms: int
    codes: float
    phrases: tuple[Phrase, ...] = ()


def word_query(text: str) -> WordQuery:
    """Return the expression for a query: any of its words, and more for words that stand side by side.

    Whatever the user wrote becomes quoted words, so that nothing of it is an operator.
    """
    folding, stemming = _tokenizers()
    # The index takes pictographs for words, but nobody asks for them.
    words = [word for word in folding.tokens("", text).text if len(word) <= TERM_MAX and any(map(str.isalnum, word))]
    kept = [word for word in words if word not in STOP_WORDS]
    pairs = [
        (one, other) for one, other in itertools.pairwise(words) if one not in STOP_WORDS and other not in STOP_WORDS
    ]
    # Nothing but stop words, such as "the who", is still a query.
    terms = list(dict.fromkeys(kept or words))[:TERMS_MAX]
    asked = [*((term,) for term in terms), *list(dict.fromkeys(pairs))[:TERMS_MAX]]
    codes = sum(any(letter.isdigit() for letter in term) for term in terms) / max(1, len(terms))
    stem = dict(zip(words, stemming.tokens("", " ".join(words)).text, strict=True))
    return WordQuery(
        " OR ".join(f'"{" ".join(phrase)}"' for phrase in asked),
        len(terms),
        codes,
        tuple(tuple(stem[word] for word in phrase) for phrase in asked),
    )


@functools.cache
def _tokenizers() -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer(FOLDING), Tokenizer()
