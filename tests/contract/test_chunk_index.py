"""What every index of chunks promises: the embedded one, as far as it answers, OpenSearch, and pgvector.

They differ in how they find candidates, not in what a candidate scores, who may find it, and what is refused.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from services.embedder import pgvector_client
from services.embedder.engines import remote_index
from services.embedder.in_process import InProcess
from services.embedder.index import Candidates, ChunkIndex, Reader, Shown, Visibility
from services.embedder.lexical import Statistics, Tokenizer, bm25
from services.embedder.opensearch_client import OpenSearchSettings
from services.embedder.opensearch_index import OpenSearchIndex
from services.embedder.pgvector_client import PostgresSettings
from services.embedder.pgvector_index import PgvectorIndex
from services.embedder.ports import Vector
from services.embedder.query import word_query
from services.embedder.searcher import Searcher
from services.embedder.state import Key
from services.embedder.vectors import cosines
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.jobs import PermanentError
from services.kernel.sqlite import Database
from tests.contract.chunk_indexes import MODEL, TITLE, EmbeddedIndex, chunk
from tests.engines import free_ports
from tests.engines.opensearch import OpenSearch, opensearch_engine
from tests.engines.postgresql import Postgres, postgres_engine

__all__ = ["opensearch_engine", "postgres_engine"]

Any: TypeAlias = "EmbeddedIndex | ChunkIndex"
ENGINE = [pytest.mark.slow, pytest.mark.engine]
ALL = Visibility("docs")
READER = Reader("default", frozenset())
KEY = Key("default", "docs/1")


def opensearch_on(url: str, model_id: str = MODEL.model_id, dimensions: int = MODEL.dimensions) -> OpenSearchIndex:
    settings = OpenSearchSettings(url, prefix=f"t{uuid.uuid4().hex}", replicas=0)
    return OpenSearchIndex(settings, model_id=model_id, dimensions=dimensions)


@pytest.fixture
async def opensearch(opensearch_engine: OpenSearch) -> AsyncIterator[OpenSearchIndex]:
    index = opensearch_on(opensearch_engine.url)
    await index.start()
    yield index
    await index.close()


def pgvector_on(uri: str, model_id: str = MODEL.model_id, dimensions: int = MODEL.dimensions) -> PgvectorIndex:
    settings = PostgresSettings(uri, prefix=f"t{uuid.uuid4().hex[:20]}")
    return PgvectorIndex(settings, model_id=model_id, dimensions=dimensions)


@pytest.fixture
async def pgvector(postgres_engine: Postgres) -> AsyncIterator[PgvectorIndex]:
    index = pgvector_on(postgres_engine.uri)
    await index.start()
    yield index
    await index.close()


@pytest.fixture(params=[pytest.param("opensearch", marks=ENGINE), pytest.param("pgvector", marks=ENGINE)])
def index(request: pytest.FixtureRequest) -> ChunkIndex:
    """An index outside the local database."""
    found: ChunkIndex = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def engine(index: ChunkIndex, request: pytest.FixtureRequest) -> OpenSearch | Postgres:
    """What the index is on."""
    name = "opensearch_engine" if isinstance(index, OpenSearchIndex) else "postgres_engine"
    found: OpenSearch | Postgres = request.getfixturevalue(name)
    return found


@pytest.fixture
async def embedded(database: Database) -> AsyncIterator[EmbeddedIndex]:
    index = EmbeddedIndex(database)
    yield index
    await index.close()


@pytest.fixture(params=["embedded", pytest.param("opensearch", marks=ENGINE), pytest.param("pgvector", marks=ENGINE)])
def answering(request: pytest.FixtureRequest) -> Any:
    """Any index."""
    found: Any = request.getfixturevalue(request.param)
    return found


async def find(
    index: Any, query: str, reader: Reader = READER, count: int = 10, *, by_words: bool = False
) -> Candidates:
    return await index.search(word_query(query), None if by_words else MODEL.embed(query), reader, count)


def ids(found: Candidates) -> set[str]:
    return {each.key.document_id for each in found.chunks}


# Answering ------------------------------------------------------------------------------------------------------


async def test_candidates_have_their_true_scores_whichever_way_they_were_found(answering: Any) -> None:
    texts = ["The refund policy of hotels.", "Refunds take a week.", "Dogs are welcome, policy or not.", "Breakfast."]
    for number, text in enumerate(texts):
        await answering.put(Key("default", f"docs/{number}"), "v1", ALL, [chunk(0, text)])
    query, tokenizer = word_query("refund policy"), Tokenizer()
    tokens = [tokenizer.tokens(TITLE, text) for text in texts]
    counts = [each.counts(query.phrases) for each in tokens]
    holders = tuple(sum(each[phrase] > 0 for each in counts) for phrase in range(len(query.phrases)))
    statistics = Statistics(len(texts), sum(each.length for each in tokens), holders)
    found = await find(answering, "refund policy")
    assert (found.total, found.cosine_rest, found.bm25_rest, found.by_vectors) == (4, -1.0, 0.0, True)
    for each in found.chunks:
        number = int(each.key.document_id[-1])
        expected = bm25(counts[number], tokens[number].length, statistics) if any(counts[number]) else 0.0
        assert each.bm25 == pytest.approx(expected, rel=1e-9)
        assert each.cosine == pytest.approx(
            cosines(MODEL.embed("refund policy"), [MODEL.embed(texts[number])])[0], abs=1e-9
        )
        assert each.vector is not None
        assert each.vector.tobytes() == MODEL.embed(texts[number]).tobytes()
    assert len(found.chunks) == 4


async def test_a_candidate_is_the_chunk_as_it_was_put(answering: Any) -> None:
    put = chunk(3, "Größe: 10 µm — naïve 🙂\nsecond line", start=7, end=41)
    await answering.put(KEY, "v1", ALL, [put])
    (found,) = (await find(answering, "naive", by_words=True)).chunks
    assert (found.key, found.version, found.ordinal, found.start, found.end) == (KEY, "v1", 3, 7, 41)
    assert (found.text, found.headings, found.label) == (put.text, put.headings, put.label)


async def test_what_is_of_another_tenant_is_not_found_and_takes_no_place(answering: Any) -> None:
    for number in range(20):
        await answering.put(Key("other", f"docs/{number}"), "v1", ALL, [chunk(0, "refund policy")])
    await answering.put(KEY, "v1", ALL, [chunk(0, "The refund takes a week of patience.")])
    found = await find(answering, "refund policy", count=1)
    assert {each.key for each in found.chunks} == {KEY}
    assert {each.key for each in (await find(answering, "refund policy", count=1, by_words=True)).chunks} == {KEY}


async def test_who_may_find_a_chunk_is_decided_by_one_label_of_any(answering: Any) -> None:
    for name, labels in {"open": (), "staff": ("staff",), "both": ("board", "staff"), "board": ("board",)}.items():
        await answering.put(Key("default", name), "v1", Visibility("docs", labels), [chunk(0, "refund policy")])
    for held, expected in [((), {"open"}), (("staff",), {"open", "staff", "both"}), (("other",), {"open"})]:
        reader = Reader("default", frozenset(held))
        assert ids(await find(answering, "refund", reader)) == expected
        assert ids(await find(answering, "refund", reader, by_words=True)) == expected


async def test_only_the_sources_that_are_asked_for_are_searched(answering: Any) -> None:
    for source in ("docs", "wiki"):
        await answering.put(Key("default", source), "v1", Visibility(source), [chunk(0, "refund policy")])
    assert ids(await find(answering, "refund", READER._replace(sources=frozenset({"wiki"})))) == {"wiki"}


async def test_as_many_are_found_as_are_wanted_however_few_a_reader_may_see(answering: Any) -> None:
    nearer = [chunk(n, "refund policy") for n in range(300)]
    await answering.put(Key("default", "closed"), "v1", Visibility("docs", ("board",)), nearer)
    farther = [chunk(n, f"refund of number {n} for the patient traveller") for n in range(12)]
    await answering.put(Key("default", "staff"), "v1", Visibility("docs", ("staff",)), farther)
    reader = Reader("default", frozenset({"staff"}))
    for by_words in (False, True):
        found = await find(answering, "refund policy", reader, count=10, by_words=by_words)
        assert ids(found) == {"staff"}
        assert len(found.chunks) >= 10


async def test_what_was_not_found_scores_no_more_than_is_said(answering: Any) -> None:
    texts = [f"refund {'policy ' * (n % 13)}{'word ' * n}" for n in range(40)]
    await answering.put(KEY, "v1", ALL, [chunk(n, text) for n, text in enumerate(texts)])
    whole = {each.ordinal: each for each in (await find(answering, "refund policy", count=50)).chunks}
    found = await find(answering, "refund policy", count=5)
    rest = [each for each in whole.values() if each.ordinal not in {some.ordinal for some in found.chunks}]
    assert rest
    assert max(each.cosine for each in rest) <= found.cosine_rest + 1e-5
    assert max(each.bm25 for each in rest) <= found.bm25_rest + 1e-5


async def test_a_query_with_a_vector_of_another_length_is_answered_by_words_and_says_so(answering: Any) -> None:
    await answering.put(KEY, "v1", ALL, [chunk(0, "refund policy")])
    found = await answering.search(word_query("refund"), np.ones(7, np.float32), READER, 5)
    assert ids(found) == {"docs/1"}
    assert not found.by_vectors
    assert "of another model" in found.missing[0]


async def test_an_empty_index_finds_nothing(answering: Any) -> None:
    found = await find(answering, "refund")
    assert (found.chunks, found.total) == ([], 0)


async def test_a_query_of_no_words_is_answered_by_meaning(answering: Any) -> None:
    await answering.put(KEY, "v1", ALL, [chunk(0, "refund policy")])
    assert ids(await find(answering, "?!")) == {"docs/1"}


async def test_the_first_chunk_of_a_version_opens_a_document(answering: Any) -> None:
    await answering.put(KEY, "v1", ALL, [chunk(0, "refund policy"), chunk(1, "more")])
    found = await answering.openings({KEY: "v1", Key("default", "docs/2"): "v1"})
    assert {key: each.text for key, each in found.items()} == {KEY: "refund policy"}
    assert await answering.openings({KEY: "v2"}) == {}


# Keeping --------------------------------------------------------------------------------------------------------


async def test_a_new_version_is_there_before_the_old_one_goes(index: ChunkIndex) -> None:
    await index.put(KEY, "v1", ALL, [chunk(0, "refund policy"), chunk(1, "refund later")])
    await index.put(KEY, "v2", ALL, [chunk(0, "refund now")])
    assert {each.version for each in (await find(index, "refund")).chunks} == {"v1", "v2"}
    assert await index.remains(KEY) == 3
    assert await index.remove(KEY, but="v2") == 2
    assert {each.version for each in (await find(index, "refund")).chunks} == {"v2"}
    assert [each.text for each in await index.stored(KEY, "v2")] == ["refund now"]
    assert await index.stored(KEY, "v1") == []


async def test_a_document_that_is_replaced_is_found_at_any_moment_in_one_version(index: ChunkIndex) -> None:
    shown: dict[Key, Shown] = {}
    model = InProcess(MODEL)

    class Documents:
        async def shown(self, keys: Collection[Key]) -> Mapping[Key, Shown]:
            return {key: shown[key] for key in keys if key in shown}

    async def replace(number: int) -> None:
        version = f"v{number}"
        await index.put(KEY, version, ALL, [chunk(n, f"refund policy {version} {n}") for n in range(3)])
        shown[KEY] = Shown(version, "docs", (), TITLE, "", "{}", "", number)
        await index.remove(KEY, but=version)

    async def replace_all() -> None:
        for number in range(1, 20):
            await replace(number)
            await asyncio.sleep(0.05)

    await replace(0)
    searcher = Searcher(index, Documents(), model, 0.8)
    replacing = asyncio.create_task(replace_all())
    seen = set()
    while not replacing.done():
        hits = (await searcher.search("refund policy", READER, 10)).hits
        versions = {hit.version for hit in hits}
        assert len(versions) == 1
        assert all(hit.text.startswith(f"refund policy {hit.version} ") for hit in hits)
        seen |= versions
    await replacing
    assert len(seen) > 1
    assert await index.remains(KEY) == 3
    await model.close()


async def test_writing_again_changes_nothing(index: ChunkIndex) -> None:
    chunks = [chunk(0, "refund policy"), chunk(1, "more of it")]
    await index.put(KEY, "v1", ALL, chunks[1:])
    await index.put(KEY, "v1", ALL, chunks)
    await index.put(KEY, "v1", ALL, chunks[:1])
    assert await index.stored(KEY, "v1") == chunks
    assert await index.count() == 2
    assert (await find(index, "refund")).total == 2


async def test_a_long_document_is_written_in_parts(index: ChunkIndex) -> None:
    chunks = [chunk(n, f"refund number {n}") for n in range(1203)]
    await index.put(KEY, "v1", ALL, chunks)
    assert await index.stored(KEY, "v1") == chunks
    assert await index.remove(KEY) == 1203


async def test_what_is_removed_leaves_nothing(index: ChunkIndex) -> None:
    other = Key("default", "docs/2")
    for version in ("v1", "v2"):
        await index.put(KEY, version, ALL, [chunk(n, f"refund {version} {n}") for n in range(3)])
    await index.put(other, "v1", ALL, [chunk(0, "refund of others")])
    assert await index.remove(KEY) == 6
    assert (await index.remains(KEY), await index.remains(other), await index.count()) == (0, 1, 1)
    assert await index.remove(KEY) == 0
    found = await find(index, "refund")
    assert (ids(found), found.total) == ({"docs/2"}, 1)


async def test_who_may_find_a_version_changes_at_once(index: ChunkIndex) -> None:
    chunks = [chunk(n, f"refund policy {n}") for n in range(3)]
    await index.put(KEY, "v1", ALL, chunks)
    await index.show(KEY, "v1", Visibility("wiki", ("staff",)))
    assert ids(await find(index, "refund")) == set()
    staff = Reader("default", frozenset({"staff"}), frozenset({"wiki"}))
    assert len((await find(index, "refund", staff)).chunks) == 3
    assert await index.stored(KEY, "v1") == chunks
    await index.show(KEY, "v2", ALL)  # of which there is nothing


async def test_writers_of_the_same_version_do_not_lose_one_another(index: ChunkIndex) -> None:
    chunks = [chunk(n, f"refund policy {n}") for n in range(10)]
    await index.put(KEY, "v1", ALL, chunks)
    visible = [Visibility("docs", (f"label {n}",)) for n in range(4)]
    await asyncio.gather(*(index.show(KEY, "v1", each) for each in visible), index.put(KEY, "v1", ALL, chunks))
    assert await index.stored(KEY, "v1") == chunks
    await index.show(KEY, "v1", visible[0])
    assert len((await find(index, "refund", Reader("default", frozenset({"label 0"})))).chunks) == 10


async def test_vectors_are_found_by_what_they_are_of(index: ChunkIndex) -> None:
    one, other = chunk(0, "refund policy"), chunk(1, "more of it")
    await index.put(KEY, "v1", ALL, [one, other])
    await index.put(Key("other", "docs/1"), "v1", ALL, [one])
    assert await index.vectors([one.hash, other.hash, b"\0" * 16]) == {
        one.hash: one.vector,
        other.hash: other.vector,
    }
    assert await index.vectors([]) == {}


async def test_everything_is_gone_through_in_order(index: ChunkIndex) -> None:
    keys = [Key("default", "docs/1"), Key("default", "docs/2"), Key("other", "docs/1")]
    chunks = [chunk(n, f"refund {n}") for n in range(201)]
    for key in keys:
        await index.put(key, "v1", ALL, chunks)
    found = [(key, version, each) async for key, version, each in index.everything()]
    assert len(found) == await index.count() == 603
    assert {key for key, _, _ in found} == set(keys)
    for key in keys:
        assert [each for name, _, each in found if name == key] == chunks


async def test_names_may_be_long_and_strange(index: ChunkIndex) -> None:
    key = Key("tenant/ä\u2028", f'"{"é" * 3000}\n/../*')
    await index.put(key, "v\x1f1", Visibility("a source\n", ("label ü",)), [chunk(0, f"refund {'x' * 1500} policy")])
    reader = Reader("tenant/ä\u2028", frozenset({"label ü"}))
    (found,) = (await find(index, "policy", reader)).chunks
    assert (found.key, found.version) == (key, "v\x1f1")
    assert await index.remains(key) == 1


# Refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (np.ones(63, np.float32), "has 63 numbers"),
        (np.zeros(64, np.float32), "is zero"),
        (np.full(64, np.nan, np.float32), "no number"),
        (np.full(64, np.inf, np.float32), "no number"),
    ],
)
async def test_a_vector_that_is_none_is_refused_and_named(index: ChunkIndex, vector: Vector, words: str) -> None:
    with pytest.raises(PermanentError, match=words) as caught:
        await index.put(KEY, "v1", ALL, [chunk(0, "refund"), chunk(1, "policy", vector), chunk(2, "hotel")])
    assert "docs/1, chunk 1" in str(caught.value)


async def test_what_the_engine_refuses_of_one_chunk_is_told_of_that_chunk(index: ChunkIndex) -> None:
    with pytest.raises(PermanentError, match="docs/1, chunk 1: "):
        await index.put(KEY, "v1", ALL, [chunk(0, "refund"), chunk(1, "policy", start=1 << 40)])
    await index.put(KEY, "v1", ALL, [chunk(0, "refund"), chunk(1, "policy")])
    assert len(await index.stored(KEY, "v1")) == 2


# OpenSearch -----------------------------------------------------------------------------------------------------


def another_of(index: ChunkIndex, model_id: str, dimensions: int) -> ChunkIndex:
    """An index of the same installation for another model."""
    if isinstance(index, OpenSearchIndex):
        return OpenSearchIndex(index._settings, model_id=model_id, dimensions=dimensions)
    assert isinstance(index, PgvectorIndex)
    return PgvectorIndex(index._client._settings, model_id=model_id, dimensions=dimensions)


async def test_models_have_indexes_of_their_own_and_an_erasure_reaches_all(index: ChunkIndex) -> None:
    former, now = index, another_of(index, "another/1", 3)
    await now.start()
    await former.put(KEY, "v1", ALL, [chunk(0, "refund")])
    await now.put(KEY, "v1", ALL, [chunk(0, "refund", np.ones(3, np.float32))])
    assert await now.remove(KEY, but="v1") == 0
    assert await now.remains(KEY) == 2
    assert await now.remove(KEY) == 2
    assert await former.count() == 0
    await now.close()


@pytest.mark.slow
@pytest.mark.engine
async def test_an_alias_to_what_another_model_made_is_refused(opensearch_engine: OpenSearch) -> None:
    index = opensearch_on(opensearch_engine.url)
    await index.start()
    action = {"add": {"index": f"{index.alias}-1", "alias": "unused"}}
    other = OpenSearchIndex(index._settings, model_id="another/1", dimensions=64)
    action["add"]["alias"] = other.alias
    await index._client.ask("POST", "/_aliases", {"actions": [action]})
    with pytest.raises(InvalidInputError, match="point it to one that this model has made"):
        await other.start()
    for each in (index, other):
        await each.close()


async def test_the_first_vector_tells_the_length_where_the_model_does_not(index: ChunkIndex) -> None:
    first, again = another_of(index, "unknown/1", 0), another_of(index, "unknown/1", 0)
    await first.start()
    assert (await find(first, "refund")).chunks == []
    assert await first.vectors([b"\0" * 16]) == {}
    assert (await first.remains(KEY), await first.count(), await first.stored(KEY, "v1")) == (0, 0, [])
    await first.put(KEY, "v1", ALL, [chunk(0, "refund")])
    await again.start()
    assert again.dimensions == MODEL.dimensions
    assert ids(await find(again, "refund")) == {"docs/1"}
    for each in (first, again):
        await each.close()


async def test_a_table_or_index_of_other_vectors_is_refused(index: ChunkIndex) -> None:
    longer = another_of(index, MODEL.model_id, 384)
    with pytest.raises(InvalidInputError, match="384"):
        await longer.start()
    await longer.close()


@pytest.mark.slow
@pytest.mark.engine
async def test_what_it_is_too_busy_for_is_written_a_little_later(opensearch: OpenSearchIndex) -> None:
    block = "index.blocks.read_only_allow_delete"  # what a full disk makes of an index: it answers 429 for every item

    async def is_blocked(value: bool | None) -> None:
        await opensearch._client.ask("PUT", f"/{opensearch.alias}/_settings", {block: value})

    await is_blocked(True)
    writing = asyncio.create_task(opensearch.put(KEY, "v1", ALL, [chunk(0, "refund")]))
    await asyncio.sleep(0.2)
    await is_blocked(None)
    await writing
    assert await opensearch.count() == 1


@pytest.mark.slow
@pytest.mark.engine
async def test_an_index_that_somebody_removed_is_made_again(opensearch: OpenSearchIndex) -> None:
    await opensearch._client.ask("DELETE", f"/{opensearch.alias}-1")
    with pytest.raises(UnavailableError):
        await opensearch.put(KEY, "v1", ALL, [chunk(0, "refund")])
    await opensearch.put(KEY, "v1", ALL, [chunk(0, "refund")])
    assert ids(await find(opensearch, "refund")) == {"docs/1"}


@pytest.mark.slow
@pytest.mark.engine
async def test_nothing_of_what_was_erased_is_left_in_the_files(
    opensearch_engine: OpenSearch, opensearch: OpenSearchIndex
) -> None:
    def files_with(word: bytes) -> list[Path]:
        files = (path for path in (opensearch_engine.folder / "data").rglob("*") if path.is_file())
        return [path for path in files if word in path.read_bytes()]

    for number in range(20):
        await opensearch.put(Key("default", f"docs/{number}"), "v1", ALL, [chunk(0, f"refund policy {number}")])
    await opensearch.put(Key("default", "secret"), "v1", ALL, [chunk(0, "zanzibarquux")])
    assert files_with(b"zanzibarquux")
    await opensearch.remove(Key("default", "secret"))
    assert await opensearch.expunge() == 0
    assert not files_with(b"zanzibarquux")
    assert await opensearch.count() == 20


async def test_what_was_acknowledged_outlives_a_killed_engine(index: ChunkIndex, engine: OpenSearch | Postgres) -> None:
    acknowledged = []

    async def write() -> None:
        for number in range(10_000):
            key = Key("default", f"docs/{number}")
            await index.put(key, "v1", ALL, [chunk(0, f"refund {number}")])
            acknowledged.append(key)

    writing = asyncio.create_task(write())
    while len(acknowledged) < 40:
        await asyncio.sleep(0.01)
    engine.kill()
    with pytest.raises(UnavailableError):
        await writing
    with pytest.raises(UnavailableError):
        await find(index, "refund")
    engine.start()
    for _ in range(30):  # a connection may still be on its way back
        with contextlib.suppress(UnavailableError):
            await index.count()
            break
    for key in acknowledged:
        assert len(await index.stored(key, "v1")) == 1
    assert len(acknowledged) <= await index.count() <= len(acknowledged) + 1


@pytest.mark.parametrize("name", ["opensearch", "pgvector"])
async def test_an_engine_that_is_not_there_is_unavailable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector_client, "CONNECTION_WAIT_S", 0.3)
    place = f"127.0.0.1:{free_ports(1)}"
    index = opensearch_on(f"http://{place}") if name == "opensearch" else pgvector_on(f"postgresql://me@{place}/db")
    for call in (index.start(), index.put(KEY, "v1", ALL, [chunk(0, "refund")]), index.remove(KEY), index.remains(KEY)):
        with pytest.raises(UnavailableError, match=r"OpenSearch at http|PostgreSQL gives no connection"):
            await call
    await index.close()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "url is missing"),
        ({"url": "search:9200"}, "must begin with http"),
        ({"url": "http://a", "prefix": "A*"}, "prefix must be"),
        ({"url": "http://a", "shards": 0}, "shards must be"),
        ({"url": "http://a", "nodes": 1}, "nodes is not a setting"),
    ],
)
def test_wrong_settings_of_opensearch_are_refused_by_name(table: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        OpenSearchSettings.from_config(table)


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    for ca in (tmp_path / "missing.pem", tmp_path / "ca.pem"):
        with pytest.raises(InvalidInputError, match=r"\[opensearch\] ca: "):
            OpenSearchIndex(OpenSearchSettings("https://a", ca=str(ca)), model_id="m")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "uri is missing"),
        ({"uri": "postgresql://a", "prefix": "A-b"}, "prefix must be"),
        ({"uri": "postgresql://a", "connections": 0}, "connections must be"),
        ({"uri": "postgresql://a", "dsn": ""}, "dsn is not a setting"),
    ],
)
def test_wrong_settings_of_postgresql_are_refused_by_name(table: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        PostgresSettings.from_config(table)


async def test_the_engine_is_the_one_that_is_configured() -> None:
    def index_of(**tables: dict[str, object]) -> ChunkIndex | None:
        return remote_index(lambda name: tables.get(name, {}), model_id="m", dimensions=3)

    assert index_of() is None
    opensearch, pgvector = index_of(opensearch={"url": "http://a"}), index_of(postgresql={"uri": "postgresql://a"})
    assert isinstance(opensearch, OpenSearchIndex)
    assert isinstance(pgvector, PgvectorIndex)
    with pytest.raises(InvalidInputError, match="leave one out"):
        index_of(opensearch={"url": "http://a"}, postgresql={"uri": "postgresql://a"})
    for each in (opensearch, pgvector):
        await each.close()
