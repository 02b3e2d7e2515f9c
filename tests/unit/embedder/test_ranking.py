"""Queries as full-text expressions, and the fusion of both ways to search."""

import sqlite3

import pytest
from hypothesis import given, strategies as st

from services.embedder.fusion import fused, is_repetition
from services.embedder.query import WordQuery, word_query

PLAIN = WordQuery("", 3, 0.0)


def test_stop_words_are_dropped_and_neighbours_become_phrases() -> None:
    assert word_query("What is the refund policy?") == WordQuery(
        '"refund" OR "policy" OR "refund policy"', 2, 0.0, (("refund",), ("polici",), ("refund", "polici"))
    )


def test_words_apart_make_no_phrase() -> None:
    assert word_query("refund of the hotel").expression == '"refund" OR "hotel"'


def test_a_query_of_stop_words_alone_is_still_a_query() -> None:
    assert word_query("The Who").expression == '"the" OR "who"'


def test_codes_are_counted() -> None:
    assert word_query("flight MT101 delay").codes == pytest.approx(1 / 3)


def test_a_query_without_words_asks_nothing() -> None:
    assert word_query("?!… 🙂").expression == ""


@given(st.text(max_size=60))
def test_whatever_is_asked_is_a_valid_expression(text: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='porter unicode61 remove_diacritics 2')")
    if expression := word_query(text).expression:
        database.execute("SELECT * FROM t WHERE t MATCH ?", (expression,)).fetchall()
    database.close()


def test_both_ways_count_by_their_weights() -> None:
    (first, second) = fused({1: 0.5, 2: 0.9}, {1: 100.0}, PLAIN, weight=0.5, chunks=10)
    assert (first.chunk, first.score) == (1, 0.75)
    assert (second.chunk, second.score) == (2, 0.45)


def test_a_stray_word_does_not_count_as_a_full_match() -> None:
    stray = fused({1: 0.1, 2: 0.5}, {1: 0.5}, WordQuery("", 8, 0.0), weight=0.8, chunks=10_000)
    assert stray[0].chunk == 2


def test_a_code_is_found_by_words_though_the_model_is_blind_to_it() -> None:
    assert fused({1: 0.05, 2: 0.4}, {1: 9.0}, WordQuery("", 1, 1.0), weight=0.8, chunks=1000)[0].chunk == 1


def test_without_vectors_words_count_alone() -> None:
    (hit,) = fused({}, {1: 50.0}, PLAIN, weight=0.8, chunks=10)
    assert hit.score == 1.0


def test_nothing_alike_scores_low() -> None:
    (hit,) = fused({1: 0.1}, {}, PLAIN, weight=0.8, chunks=10)
    assert hit.score < 0.1


def test_equal_scores_keep_the_order_of_the_chunks() -> None:
    assert [hit.chunk for hit in fused({3: 0.5, 1: 0.5}, {}, PLAIN, weight=1.0, chunks=9)] == [1, 3]


@given(st.dictionaries(st.integers(0, 9), st.floats(-1, 1)), st.dictionaries(st.integers(0, 9), st.floats(0, 99)))
def test_scores_are_between_0_and_1(cosines: dict[int, float], bm25: dict[int, float]) -> None:
    assert all(0 <= hit.score <= 1 for hit in fused(cosines, bm25, PLAIN, weight=0.8, chunks=100))


def test_near_duplicates_are_repetitions() -> None:
    assert is_repetition([0.2, 0.97])
    assert not is_repetition([0.2, 0.9])
    assert not is_repetition([])
