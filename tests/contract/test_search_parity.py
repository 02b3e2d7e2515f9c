"""Every engine gives the hits of the embedded index, in the same order and with the same scores.

2,000 documents, some of them copies of others, of two tenants and several labels; the real model's vectors.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest

from headwater.embedder.v1 import service_pb2 as pb
from services.embedder.app import default_model
from services.embedder.in_process import InProcess
from services.embedder.index import ChunkIndex, IndexedChunk, Reader, Visibility
from services.embedder.opensearch_client import OpenSearchSettings
from services.embedder.opensearch_index import OpenSearchIndex
from services.embedder.pgvector_client import PostgresSettings
from services.embedder.pgvector_index import PgvectorIndex
from services.embedder.ports import Vector
from services.embedder.searcher import Found, Searcher
from services.embedder.state import Key
from services.kernel.errors import UnavailableError
from services.kernel.sqlite import Database
from tests.contract.chunk_indexes import TITLE, EmbeddedIndex
from tests.engines.opensearch import OpenSearch, opensearch_engine
from tests.engines.postgresql import Postgres, postgres_engine

__all__ = ["opensearch_engine", "postgres_engine"]

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(600)]
DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "cranfield"
DOCUMENTS, QUERIES, TOP_K = 2000, 200, 10
AT_ONCE = 50  # documents that are written
CHUNKS, WORDS = 2, 40  # of each document
READERS = [
    Reader("default", frozenset()),
    Reader("default", frozenset({"staff"})),
    Reader("default", frozenset({"staff", "board"}), frozenset({"wiki"})),
    Reader("other", frozenset()),
]

Corpus = list[tuple[Key, Visibility, list[IndexedChunk]]]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    model = default_model()
    abstracts = [orjson.loads(line)["text"].split() for line in (DATA / "corpus.jsonl").read_bytes().splitlines()]
    vectors: dict[str, bytes] = {}
    documents = []
    for number in range(DOCUMENTS):
        words = abstracts[number % len(abstracts)]
        chunks = []
        for ordinal in range(CHUNKS):
            text = " ".join(words[ordinal * WORDS : (ordinal + 1) * WORDS])
            if not text:
                continue
            if text not in vectors:
                vectors[text] = model.embed(text).tobytes()
            hash_ = hashlib.sha256(text.encode()).digest()[:16]
            chunks.append(IndexedChunk(ordinal, 0, len(text), text, TITLE, (TITLE,), "", hash_, vectors[text]))
        key = Key("other" if number % 10 == 0 else "default", f"docs/{number * 7919 % DOCUMENTS}")
        labels = [(), (), ("staff",), ("board", "staff"), ("board",)][number % 5]
        documents.append((key, Visibility("wiki" if number % 3 else "files", labels), chunks))
    return documents


@pytest.fixture(scope="session")
def queries() -> list[str]:
    lines = (DATA / "queries.jsonl").read_bytes().splitlines()
    return [orjson.loads(line)["text"] for line in lines[:QUERIES]]


@pytest.fixture(params=["opensearch", "opensearch of 3 shards", "pgvector"])
def engine(request: pytest.FixtureRequest) -> ChunkIndex:
    model = default_model()
    name = f"t{uuid.uuid4().hex[:20]}"
    if request.param == "pgvector":
        server: Postgres = request.getfixturevalue("postgres_engine")
        return PgvectorIndex(PostgresSettings(server.uri, prefix=name), model_id="m", dimensions=model.dimensions)
    node: OpenSearch = request.getfixturevalue("opensearch_engine")
    settings = OpenSearchSettings(node.url, prefix=name, replicas=0, shards=3 if "3" in request.param else 1)
    return OpenSearchIndex(settings, model_id="m", dimensions=model.dimensions)


async def test_every_engine_gives_the_same_hits(
    database: Database, engine: ChunkIndex, corpus: Corpus, queries: Sequence[str]
) -> None:
    model = InProcess(default_model())
    embedded = EmbeddedIndex(database, model.dimensions)
    await engine.start()
    for start in range(0, DOCUMENTS, AT_ONCE):
        documents = corpus[start : start + AT_ONCE]
        # One in five is replaced: what was there before must not count.
        await asyncio.gather(
            *(engine.put(key, "v0", visibility, chunks[:1]) for key, visibility, chunks in documents[::5])
        )
        await asyncio.gather(*(engine.put(key, "v1", visibility, chunks) for key, visibility, chunks in documents))
        await asyncio.gather(*(engine.remove(key, but="v1") for key, _, _ in documents[::5]))
        for key, visibility, chunks in documents[::5]:
            await embedded.put(key, "v0", visibility, chunks[:1])
            await embedded.remove(key)
        for key, visibility, chunks in documents:
            await embedded.put(key, "v1", visibility, chunks)
    expected = Searcher(embedded, embedded.store, model, 0.8)
    actual = Searcher(engine, embedded.store, model, 0.8)
    for number, query in enumerate(queries):
        reader = READERS[number % len(READERS)]
        one, other = await expected.search(query, reader, TOP_K), await actual.search(query, reader, TOP_K)
        assert len(one.hits) == TOP_K
        assert one.missing == []
        assert_same(one, other)
    by_words = [Searcher(each, embedded.store, Silent(), 0.8) for each in (embedded, engine)]
    for query in queries[:: len(READERS)]:
        one, other = [await each.search(query, READERS[1], TOP_K) for each in by_words]
        assert one.hits
        assert "the model rests" in one.missing[0]
        assert_same(one, other)
    await embedded.close()
    await engine.close()
    await model.close()


class Silent(InProcess):
    """A model that embeds no query, so that words alone are searched."""

    def __init__(self) -> None:
        super().__init__(default_model())

    async def embed_query(self, text: str) -> Vector:
        raise UnavailableError(f"the model rests, and takes no {text!r}")


def assert_same(one: Found, other: Found) -> None:
    assert list(parts(other.hits)) == list(parts(one.hits))
    for left, right in zip(one.hits, other.hits, strict=True):
        assert (left.score, left.text_score, left.vector_score) == pytest.approx(
            (right.score, right.text_score, right.vector_score), abs=1e-6
        )
    assert other.missing == one.missing


def parts(hits: Sequence[pb.Hit]) -> Iterator[tuple[str, str, int, str]]:
    return ((hit.document_id, hit.version, hit.ordinal, hit.text) for hit in hits)
