"""How good retrieval is on a judged set: `python -m benchmarks.retrieval [FOLDER]`.

FOLDER holds `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` in the form of BEIR; by default the Cranfield collection
beside this file. The documents go through the service itself; a document's rank is that of its best chunk. Compared
are words alone, vectors alone, reciprocal rank fusion, convex sums of min-max normalised scores, and what is served.
"""

import argparse
import asyncio
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks.report import report
from headwater.embedder.v1 import service_pb2 as pb, service_pb2_grpc
from services.embedder.app import build, default_model
from services.embedder.decider import Decider
from services.embedder.fusion import fused
from services.embedder.index import Candidates, Reader
from services.embedder.query import WordQuery, word_query
from services.embedder.sqlite_chunks import SqliteChunks
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_jobs import SqliteJobs
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.vectors import VectorIndex
from services.ingest.decoders import documents
from services.ingest.decoders.common import Hints
from services.ingest.messages import messages_of
from services.kernel.runner import Runtime, running
from services.kernel.settings import Settings

DATA = Path(__file__).parent / "data" / "cranfield"
RANKS = 10
CANDIDATES = 100
SOURCE = "corpus"
TOP_K = 100
Name = tuple[str, int]
Scores = Mapping[Name, float]


class Ways(NamedTuple):
    """The scores of what was found for a query, by chunk."""

    words: WordQuery
    cosines: dict[Name, float]
    bm25: dict[Name, float]
    total: int


class Judged(NamedTuple):
    """A judged set: documents and queries as they are in the files, and grades by query and document."""

    corpus: list[bytes]
    queries: list[tuple[str, str]]
    grades: dict[str, dict[str, int]]


def read(folder: Path) -> Judged:
    """Read a judged set."""
    corpus = (folder / "corpus.jsonl").read_bytes().splitlines()
    queries = [orjson.loads(line) for line in (folder / "queries.jsonl").read_bytes().splitlines()]
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            grades[query][document] = int(grade)
    return Judged(corpus, [(q["_id"], q["text"]) for q in queries if q["_id"] in grades], grades)


def ndcg(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """Return the normalised discounted cumulative gain of the first ten, gains being the grades."""
    gain = sum(grades.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(ranking[:RANKS]))
    ideal = sorted(grades.values(), reverse=True)[:RANKS]
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(ideal))


def recall(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """Return the share of the relevant documents among the first ten."""
    return len(grades.keys() & set(ranking[:RANKS])) / len(grades)


def evaluate(judged: Judged, rank: Callable[[str], Iterable[str]]) -> dict[str, float]:
    """Return both measures, averaged over the queries; `rank` names documents, best first, with repetitions."""
    rankings = {query: list(dict.fromkeys(rank(text))) for query, text in judged.queries}
    return {
        f"ndcg@{RANKS}": round(statistics.fmean(ndcg(r, judged.grades[q]) for q, r in rankings.items()), 4),
        f"recall@{RANKS}": round(statistics.fmean(recall(r, judged.grades[q]) for q, r in rankings.items()), 4),
    }


def best_first(scores: Scores) -> list[Name]:
    """Return what has scores, best first."""
    return sorted(scores, key=lambda chunk: (-scores[chunk], chunk))


def reciprocal_ranks(found: Ways) -> Scores:
    """Return the scores of reciprocal rank fusion, k = 60."""
    scores: dict[Name, float] = defaultdict(float)
    for ranking in (best_first(found.cosines)[:CANDIDATES], best_first(found.bm25)):
        for rank, chunk in enumerate(ranking, start=1):
            scores[chunk] += 1 / (60 + rank)
    return scores


def min_max(found: Ways, weight: float) -> Scores:
    """Return the convex sum of scores that are normalised by the best and the worst candidate."""
    low, high = min(found.cosines.values(), default=0.0), max(found.cosines.values(), default=1.0)
    top = max(found.bm25.values(), default=1.0)
    return {
        chunk: weight * (cosine - low) / (high - low) + (1 - weight) * found.bm25.get(chunk, 0.0) / top
        for chunk, cosine in found.cosines.items()
    }


def search_on(runtime: Runtime) -> SqliteSearch:
    """Return a search of what a running service has indexed."""
    platform, model, index = runtime.platform, default_model(), VectorIndex(default_model().dimensions)
    decider = Decider({}, model.model_id)
    store = SqliteDocuments(platform.database, index, decider, provider=model.model_id, clock=platform.clock)
    jobs = SqliteJobs(platform.database, platform.log, platform.clock)
    SqliteChunks(platform.database, store, jobs, index, model_id=model.model_id).load_index()
    return SqliteSearch(platform.database, index)


def ways(words: WordQuery, found: Candidates) -> Ways:
    """Return what was found by each way."""
    names = [(chunk.key.document_id.removeprefix(f"{SOURCE}/"), chunk.ordinal) for chunk in found.chunks]
    named = list(zip(names, found.chunks, strict=True))
    return Ways(
        words,
        {name: chunk.cosine for name, chunk in named},
        {name: chunk.bm25 for name, chunk in named if chunk.bm25 > 0},
        found.total,
    )


async def index_corpus(runtime: Runtime, stub: Any, judged: Judged) -> float:
    """Put the corpus into the log, and return how long it took until all of it could be found, in seconds."""
    started = time.perf_counter()
    now = (int(time.time()), 0)
    changes = [change for line in judged.corpus for change in documents.decode(line, Hints(source=SOURCE))]
    messages = [message for change in changes for message in messages_of(change, 1, now)]
    position = await runtime.platform.log.append(messages)
    await stub.AwaitPosition(pb.AwaitPositionRequest(position=position), timeout=3600)
    return time.perf_counter() - started


async def served(stub: Any, judged: Judged) -> dict[str, float]:
    """Return the measures of what the service answers, and how long it takes to."""
    rankings, times = {}, []
    for _, text in judged.queries:
        started = time.perf_counter()
        response = await stub.Search(pb.SearchRequest(query=text, top_k=TOP_K))
        times.append((time.perf_counter() - started) * 1000)
        rankings[text] = [hit.document_id.removeprefix(f"{SOURCE}/") for hit in response.hits]
    return evaluate(judged, rankings.__getitem__) | {"ms_p50": round(statistics.median(times), 2)}


async def measure(folder: Path) -> dict[str, Any]:
    """Index a judged set and compare the ways to rank it."""
    import grpc

    judged = read(folder)
    with tempfile.TemporaryDirectory() as data:
        async with running(Settings(data=Path(data), grpc_address="127.0.0.1:0"), [build]) as runtime:
            async with grpc.aio.insecure_channel(runtime.address) as channel:
                stub = service_pb2_grpc.EmbedderServiceStub(channel)
                seconds = await index_corpus(runtime, stub, judged)
                answers = await served(stub, judged)
            search, reader, model = search_on(runtime), Reader("default", frozenset()), default_model()
            asked = {text: word_query(text) for _, text in judged.queries}
            found = {
                text: ways(words, search.candidates(words, model.embed(text), reader, CANDIDATES))
                for text, words in asked.items()
            }
            search.close()

    def ranked(scores: Callable[[Ways], Scores]) -> dict[str, float]:
        return evaluate(judged, lambda text: [name for name, _ in best_first(scores(found[text]))])

    figures: dict[str, Any] = {
        "documents": len(judged.corpus),
        "queries": len(judged.queries),
        "chunks": next(iter(found.values())).total,
        "documents_per_second": round(len(judged.corpus) / seconds, 1),
        "words": ranked(lambda found: found.bm25),
        "vectors": ranked(lambda found: found.cosines),
        "reciprocal ranks": ranked(reciprocal_ranks),
    }
    for weight in (0.4, 0.5, 0.6, 0.7, 0.8):
        figures[f"min-max, weight {weight}"] = ranked(lambda found, w=weight: min_max(found, w))  # type: ignore[misc]
    for weight in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        figures[f"absolute, weight {weight}"] = evaluate(
            judged,
            lambda text, w=weight: (  # type: ignore[misc]
                hit.chunk[0]
                for hit in fused(
                    found[text].cosines, found[text].bm25, found[text].words, weight=w, chunks=found[text].total
                )
            ),
        )
    return {**figures, "as served": answers}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    folder = parser.parse_args().folder
    report(f"retrieval-{folder.name}", asyncio.run(measure(folder)))


if __name__ == "__main__":
    main()
