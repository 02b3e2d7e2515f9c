"""Fuses what was found by meaning and by words into one ranking. Pure.

score = w * cosine + (1 - w) * BM25 / ceiling, both parts in 0..1. The cosine is taken as it is, and the ceiling is at
least what a query of so many words would reach by a fair match: with normalisation by the best hit alone, a stray word
that one chunk happens to hold would count as much as a full match. The model is blind to codes such as flight numbers,
so the more of the query's words are such, the more words count. Measured in docs/decisions/0005-retrieval.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from services.embedder.query import WordQuery

# The score of a fair match is about this much for each word of the query, times the logarithm of the corpus.
_FAIR_SHARE = 0.4
_CODES_TO_WORDS = 0.5  # the part of the vectors' weight that a query of codes alone gives to words
NEAR_DUPLICATE = 0.96  # cosine of two chunks of a document that say the same

Name = TypeVar("Name", int, tuple[str, int])
"""What a chunk is called: equal scores are put in the order of names, which every engine must know alike."""


class Scored(NamedTuple, Generic[Name]):
    """A chunk with its fused score, and the parts that it is made of."""

    chunk: Name
    score: float
    cosine: float
    bm25: float


class Scale(NamedTuple):
    """How the parts of a score are put together, for one query.

    Attributes:
        share: what the cosine counts, 0 to 1; the words count the rest.
        top: the BM25 score that counts as 1.
    """

    share: float
    top: float

    def score(self, cosine: float, bm25: float) -> float:
        """Return the fused score of a chunk."""
        # Rounded, so that the last bits of a sum, which depend on the machine, do not decide.
        return round(self.share * min(1.0, max(0.0, cosine)) + (1 - self.share) * bm25 / self.top, 6)


def ceiling(bm25_best: float, terms: int, chunks: int) -> float:
    """Return the BM25 score that counts as 1.

    Args:
        bm25_best: the best that was found.
        terms: how many different words the query has.
        chunks: how many chunks there are.
    """
    return max(bm25_best, _FAIR_SHARE * terms * math.log1p(chunks), 1e-9)


def scale(bm25_best: float, query: WordQuery, *, weight: float, chunks: int) -> Scale:
    """Return how the parts of the scores of a query are put together.

    Args:
        bm25_best: the best score by words that was found.
        query: what was looked for.
        weight: the share of the cosine for a query in plain words, 0 to 1; 0 when nothing has a cosine.
        chunks: how many chunks there are.
    """
    return Scale(weight * (1 - _CODES_TO_WORDS * query.codes), ceiling(bm25_best, query.terms, chunks))


def fused(
    cosines: Mapping[Name, float], bm25: Mapping[Name, float], query: WordQuery, *, weight: float, chunks: int
) -> list[Scored[Name]]:
    """Return all candidates, best first.

    Args:
        cosines: of every candidate that has a vector.
        bm25: of those that hold a word of the query; higher is better.
        query: what was looked for.
        weight: the share of the cosine for a query in plain words, 0 to 1. With no cosines at all, words count alone.
        chunks: how many chunks there are.
    """
    by = scale(max(bm25.values(), default=0.0), query, weight=weight if cosines else 0.0, chunks=chunks)
    scored = []
    for chunk in cosines.keys() | bm25.keys():
        cosine, words = cosines.get(chunk, 0.0), bm25.get(chunk, 0.0)
        scored.append(Scored(chunk, by.score(cosine, words), round(cosine, 6), round(words, 6)))
    return sorted(scored, key=lambda hit: (-hit.score, hit.chunk))


def is_repetition(cosines: Sequence[float]) -> bool:
    """Whether a chunk says nothing beside better ones of its document, by its cosines to them."""
    return any(cosine >= NEAR_DUPLICATE for cosine in cosines)
