"""Words as every engine must see them: the tokens of SQLite's full-text index, and its BM25. Pure.

Engines tokenise, stem and score differently. So that all of them give one ranking, the others store the tokens that
SQLite makes of a chunk, find chunks by these, and have them scored here, by the formula of FTS5's `bm25()`.
"""

import hashlib
import math
import sqlite3
import threading
from collections.abc import Sequence
from typing import NamedTuple

FOLDING = "unicode61 remove_diacritics 2"
TOKENIZER = f"porter {FOLDING}"
K1, B = 1.2, 0.75
_IDF_MIN = 1e-6  # a word that more than half of the chunks hold

TERM_MAX = 100  # characters; engines bound the length of a term

Phrase = tuple[str, ...]


class Statistics(NamedTuple):
    """What BM25 needs to know of all chunks.

    Attributes:
        chunks: how many there are.
        tokens: how many tokens they have together.
        holders: how many of them hold each phrase of the query.
    """

    chunks: int
    tokens: int
    holders: tuple[int, ...]

    @property
    def idfs(self) -> list[float]:
        """How much each phrase tells."""
        return [_idf(self.chunks, holders) for holders in self.holders]

    @property
    def mean_length(self) -> float:
        """Tokens of a chunk."""
        return self.tokens / self.chunks if self.chunks else 1.0


class Tokens(NamedTuple):
    """The tokens of a chunk, of both columns of the full-text index: no phrase goes from one to the other."""

    context: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def length(self) -> int:
        """How many there are."""
        return len(self.context) + len(self.text)

    def counts(self, phrases: Sequence[Phrase]) -> list[int]:
        """Return how often each phrase stands here."""
        return [sum(_count(column, phrase) for column in self) for phrase in phrases]


class Tokenizer:
    """SQLite's own tokenizer, asked by way of an index in memory. May be used from several threads."""

    def __init__(self, tokenizer: str = TOKENIZER) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute(
            f"CREATE VIRTUAL TABLE words USING fts5(context, text, content='', tokenize='{tokenizer}')"
        )
        self._connection.execute("CREATE VIRTUAL TABLE instances USING fts5vocab(words, instance)")

    def tokens(self, context: str, text: str) -> Tokens:
        """Return the tokens of a chunk, in order."""
        with self._lock:
            execute = self._connection.execute
            execute("BEGIN")
            execute("INSERT INTO words (rowid, context, text) VALUES (1, ?, ?)", (context, text))
            rows = execute("SELECT col, offset, term FROM instances").fetchall()
            execute("ROLLBACK")
        rows.sort()
        columns: dict[str, list[str]] = {"context": [], "text": []}
        for column, _, term in rows:
            columns[column].append(term)
        return Tokens(tuple(columns["context"]), tuple(columns["text"]))


def term(token: str) -> str:
    """Return a token as every engine takes it: a long one is known by its digest."""
    return token if len(token) <= TERM_MAX else hashlib.sha256(token.encode()).hexdigest()


def bm25(counts: Sequence[int], length: int, statistics: Statistics) -> float:
    """Return the score of a chunk, as FTS5's `bm25()` computes it, but positive; higher is better.

    Args:
        counts: how often the chunk holds each phrase.
        length: its tokens.
        statistics: of all chunks.
    """
    score = 0.0
    relative = length / statistics.mean_length if statistics.tokens else 1.0
    for count, idf in zip(counts, statistics.idfs, strict=True):
        score += idf * (count * (K1 + 1.0) / (count + K1 * (1 - B + B * relative)))
    return score


def _idf(chunks: int, holders: int) -> float:
    return max(_IDF_MIN, math.log((chunks - holders + 0.5) / (holders + 0.5))) if chunks >= holders else _IDF_MIN


def _count(tokens: Phrase, phrase: Phrase) -> int:
    first, size = phrase[0], len(phrase)
    count = tokens.count(first)
    if size == 1 or not count:
        return count
    places = (place for place, token in enumerate(tokens) if token == first)
    return sum(tokens[place : place + size] == phrase for place in places)
