"""Tokens and BM25 outside SQLite are those of its own full-text index."""

import sqlite3
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from services.embedder.lexical import FOLDING, TOKENIZER, Statistics, Tokenizer, bm25
from services.embedder.query import word_query
from services.embedder.schema import SCHEMA

WORDS = (
    "refund",
    "refunds",
    "refunded",
    "policy",
    "policies",
    "hotel",
    "Café",
    "cafe",
    "MT101",
    "the",
    "who",
    "is",
    "é",
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@settings(max_examples=300)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), TEXTS)
def test_scores_are_those_of_the_full_text_index(corpus: Sequence[tuple[str, str]], text: str) -> None:
    query, tokenizer = word_query(text), Tokenizer()
    if not query.expression:
        return
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE VIRTUAL TABLE t USING fts5(context, text, tokenize='{TOKENIZER}')")
    database.executemany("INSERT INTO t (rowid, context, text) VALUES (?, ?, ?)", [
        (number, *columns) for number, columns in enumerate(corpus)
    ])  # fmt: skip
    rows = dict(database.execute("SELECT rowid, -rank FROM t WHERE t MATCH ?", (query.expression,)))
    database.close()
    chunks = [tokenizer.tokens(*columns) for columns in corpus]
    counts = [chunk.counts(query.phrases) for chunk in chunks]
    holders = tuple(sum(each[phrase] > 0 for each in counts) for phrase in range(len(query.phrases)))
    statistics = Statistics(len(chunks), sum(chunk.length for chunk in chunks), holders)
    expected = {
        number: bm25(counts[number], chunk.length, statistics)
        for number, chunk in enumerate(chunks)
        if any(counts[number])
    }
    assert rows == pytest.approx(expected, rel=1e-12)


@given(st.text(max_size=80))
def test_every_word_of_a_query_is_one_token(text: str) -> None:
    query = word_query(text)
    assert {len(phrase) for phrase in query.phrases} <= {1, 2}
    assert sum(len(phrase) == 1 for phrase in query.phrases) == query.terms


@given(st.text(max_size=40))
def test_folded_words_stay_as_they_are(text: str) -> None:
    tokenizer = Tokenizer(FOLDING)
    words = tokenizer.tokens("", text).text
    assert tokenizer.tokens("", " ".join(words)).text == words


def test_the_full_text_index_has_the_same_tokenizer() -> None:
    assert any(f"tokenize='{TOKENIZER}'" in statement for statement in SCHEMA)


def test_no_phrase_goes_from_the_context_to_the_text() -> None:
    assert Tokenizer().tokens("refund", "policy").counts([("refund",), ("refund", "polici")]) == [1, 0]


def test_phrases_may_overlap() -> None:
    assert Tokenizer().tokens("", "go go go").counts([("go", "go")]) == [2]


def test_a_word_that_is_too_long_for_an_engine_is_not_looked_for() -> None:
    assert word_query(f"refund {'x' * 101}").phrases == (("refund",),)
