"""Search where its parts do not fit together, and which of what was found counts."""

import asyncio
import sqlite3
import time

import numpy as np
import pytest

from services.embedder.decider import Decider
from services.embedder.in_process import InProcess
from services.embedder.index import Candidate, Candidates, Reader, Shown
from services.embedder.query import word_query
from services.embedder.searcher import Searcher, ranked
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.state import Key
from services.embedder.vectors import Entry, VectorIndex
from services.kernel.sqlite import Database
from tests.unit.embedder.examples import HashModel

READER = Reader("default", frozenset({"staff"}))
ZEBRA = word_query("zebra")


def search_on(database: Database) -> SqliteSearch:
    """An index that holds a vector, and a group of readers who may find it, but no words."""
    model, index = HashModel(), VectorIndex()
    SqliteDocuments(database, index, Decider({}, model.model_id), provider=model.model_id, clock=time.time)
    with sqlite3.connect(database.path) as connection:
        connection.execute("INSERT INTO knowledge_visibility VALUES (1, 'default', 'docs', '[]')")
    index.put([Entry(1, 1, model.embed("zebra").tobytes())])
    return SqliteSearch(database, index)


def test_a_query_with_a_vector_of_another_model_is_answered_by_words_and_says_so(database: Database) -> None:
    search = search_on(database)
    found = search.candidates(ZEBRA, HashModel().embed("zebra"), READER, 5)
    assert found.by_vectors
    assert not found.missing
    found = search.candidates(ZEBRA, np.ones(384, np.float32), READER, 5)
    assert not found.by_vectors
    assert "of another model" in found.missing[0]
    search.close()


async def test_a_query_that_is_being_embedded_during_an_erasure_is_not_remembered(database: Database) -> None:
    search = search_on(database)
    searcher = Searcher(search, search, InProcess(HashModel()), 0.8)
    embedding = asyncio.create_task(searcher.vector("Anna"))
    await asyncio.sleep(0)
    searcher.forget()
    await embedding
    assert not searcher._vectors
    search.close()


def test_what_cannot_be_searched_by_words_is_named(database: Database) -> None:
    search = search_on(database)
    with sqlite3.connect(database.path) as connection:
        connection.execute("DROP TABLE knowledge_words")
    assert "search by words" in search.candidates(ZEBRA, None, READER, 5).missing[0]
    search.close()


def candidate(document_id: str, cosine: float, bm25: float = 0.0, **fields: object) -> Candidate:
    made = Candidate(Key("default", document_id), "v1", 0, 0, 5, document_id, (), "", cosine, bm25, None)
    return made._replace(**fields)  # type: ignore[arg-type]


def found_of(*chunks: Candidate, cosine_rest: float = -1.0, bm25_rest: float = 0.0) -> Candidates:
    return Candidates([*chunks], cosine_rest, bm25_rest, 1000, [], by_vectors=True)


def shown_of(*chunks: Candidate, **fields: object) -> dict[Key, Shown]:
    shown = Shown("v1", "docs", (), "", "", "{}", "", 0)._replace(**fields)  # type: ignore[arg-type]
    return {chunk.key: shown for chunk in chunks}


ONE, OTHER = candidate("a", 0.9), candidate("b", 0.8)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": "v2"}, "it is a version that is not current"),
        ({"version": ""}, "no version is current yet"),
        ({"access": ("board",)}, "it was closed to the reader after it was found"),
    ],
)
def test_what_was_found_is_not_shown_when(fields: dict[str, object], why: str) -> None:
    shown = shown_of(ONE) | shown_of(OTHER, **fields)
    ranking = ranked(found_of(ONE, OTHER), shown, ZEBRA, READER, weight=0.8, top_k=5)
    assert [chunk for chunk, _ in ranking.chunks] == [ONE], why


def test_what_is_of_another_tenant_is_not_shown_whatever_the_index_says() -> None:
    foreign = candidate("a", 0.9, key=Key("other", "a"))
    assert not ranked(found_of(foreign), shown_of(foreign), ZEBRA, READER, weight=0.8, top_k=5).chunks


def test_a_document_that_got_another_version_meanwhile_is_looked_for_again() -> None:
    assert not ranked(found_of(ONE), shown_of(ONE, version="v2"), ZEBRA, READER, weight=0.8, top_k=5).is_settled
    in_flight = candidate("a", 0.9, version="v2")
    assert ranked(found_of(ONE, in_flight), shown_of(ONE), ZEBRA, READER, weight=0.8, top_k=5).is_settled


def test_it_is_settled_once_nothing_else_can_score_as_much() -> None:
    def settled(cosine_rest: float, bm25_rest: float = 0.0) -> bool:
        found = found_of(ONE, OTHER, cosine_rest=cosine_rest, bm25_rest=bm25_rest)
        return ranked(found, shown_of(ONE, OTHER), ZEBRA, READER, weight=0.8, top_k=2).is_settled

    assert settled(0.7)
    assert not settled(0.8), "an equal one might come before it by name"
    assert not settled(0.7, bm25_rest=20.0)


def test_equal_scores_are_in_the_order_of_the_documents() -> None:
    same = [candidate(name, 0.5) for name in ("c", "a", "b")]
    ranking = ranked(found_of(*same), shown_of(*same), ZEBRA, READER, weight=0.8, top_k=2)
    assert [chunk.key.document_id for chunk, _ in ranking.chunks] == ["a", "b"]


def test_a_chunk_that_repeats_a_better_one_of_its_document_is_left_out() -> None:
    vector = HashModel().embed("zebra")
    better = candidate("a", 0.9, ordinal=1, vector=vector)
    repeated = candidate("a", 0.8, ordinal=2, text="Zebra.", vector=vector)
    elsewhere = candidate("b", 0.7, vector=vector)
    chunks = (better, repeated, elsewhere)
    ranking = ranked(found_of(*chunks), shown_of(*chunks), ZEBRA, READER, weight=0.8, top_k=5)
    assert [chunk for chunk, _ in ranking.chunks] == [better, elsewhere]
