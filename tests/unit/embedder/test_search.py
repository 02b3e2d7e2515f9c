"""Search where its parts do not fit together."""

import asyncio
import sqlite3
import time

import numpy as np

from services.embedder.decider import Decider
from services.embedder.in_process import InProcess
from services.embedder.index import Reader
from services.embedder.query import word_query
from services.embedder.searcher import Searcher
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.vectors import Entry, VectorIndex
from services.kernel.sqlite import Database
from tests.unit.embedder.examples import HashModel


def searcher_on(database: Database) -> Searcher:
    model, index = HashModel(), VectorIndex()
    SqliteDocuments(database, index, Decider({}, model.model_id), provider=model.model_id, clock=time.time)
    index.put([Entry(1, 1, model.embed("zebra").tobytes())])
    return Searcher(database, index, InProcess(model), 0.8)


def test_a_query_with_a_vector_of_another_model_is_answered_by_words_and_says_so(database: Database) -> None:
    searcher = searcher_on(database)
    found = searcher.candidates("zebra", HashModel().embed("zebra"), [1], 5)
    assert found.cosines.keys() == {1}
    assert not found.missing
    found = searcher.candidates("zebra", np.ones(384, np.float32), [1], 5)
    assert not found.cosines
    assert "of another model" in found.missing[0]
    searcher.close()


async def test_a_query_that_is_being_embedded_during_an_erasure_is_not_remembered(database: Database) -> None:
    searcher = searcher_on(database)
    embedding = asyncio.create_task(searcher.vector("Anna"))
    await asyncio.sleep(0)
    searcher.forget()
    await embedding
    assert not searcher._vectors
    searcher.close()


def test_what_cannot_be_searched_by_words_is_named(database: Database) -> None:
    searcher = searcher_on(database)
    with sqlite3.connect(database.path) as connection:
        connection.execute("DROP TABLE knowledge_words")
    assert "search by words" in searcher.candidates("zebra", None, [1], 5).missing[0]
    searcher.close()
