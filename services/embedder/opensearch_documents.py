"""What a chunk is in OpenSearch, and the queries that find it. Pure.

Words are stored as the tokens of SQLite's full-text index, one after the other, context and text apart; a score by them
that the engine computes only finds candidates (`lexical`). The vector is there twice: for the k-NN search, and as
float32 bytes, from which cosines are computed and a document is written again when its readers change.
"""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from services.embedder.index import Candidate, IndexedChunk, Reader, Visibility
from services.embedder.lexical import K1, B, Phrase, Statistics, Tokens, bm25, term
from services.embedder.ports import Vector
from services.embedder.state import Key
from services.embedder.vectors import cosines
from services.kernel.log import SEPARATOR

FORMAT = 1  # of the index; another one needs an index of its own
EVERYONE = "\x01everyone"  # stands for no label at all, so that one condition tells who may find a chunk
EF_SEARCH_MIN = 256  # how many neighbours are kept while the graph is searched: recall against time
EF_CONSTRUCTION, M = 128, 16
# The engine knows lengths to about a sixteenth, always too short, and the mean length of each shard alone: a true score
# is at most so many times what the engine says.
SCORE_SLACK = 1.1
SOURCE = {"excludes": ["access", "source", "length", "hash"]}  # what a candidate does not need

_SIMILARITY = (
    f"double k = {K1} * ({1 - B} + {B} * doc.length * field.docCount / (double) field.sumTotalTermFreq);"
    f"return query.boost * doc.freq * {K1 + 1} / (doc.freq + k);"
)
_KEYWORD = {"type": "keyword"}
_STORED = {"type": "keyword", "index": False, "doc_values": False}
_NUMBER = {"type": "integer", "index": False, "doc_values": False}


def index_body(model_id: str, dimensions: int, *, shards: int, replicas: int) -> dict[str, Any]:
    """Return the settings and mappings of an index."""
    return {
        "settings": {
            "index": {
                "knn": True,
                "number_of_shards": shards,
                "number_of_replicas": replicas,
                # An erasure must reach the files: every segment with a removed chunk is rewritten when it is asked for.
                "merge.policy.expunge_deletes_allowed": 0,
            },
            "similarity": {"words": {"type": "scripted", "script": {"source": _SIMILARITY}}},
        },
        "mappings": {
            "_meta": {"model_id": model_id, "dimensions": dimensions, "format": FORMAT},
            "dynamic": "strict",
            "_source": {"excludes": ["vector"]},
            "properties": {
                "tenant": _KEYWORD,
                "document": _KEYWORD,
                "document_id": _STORED,
                "version": _KEYWORD,
                "ordinal": {"type": "integer"},
                "source": _KEYWORD,
                "access": _KEYWORD,
                "start": _NUMBER,
                "end": _NUMBER,
                "text": _STORED,
                "context": _STORED,
                "headings": _STORED,
                "label": _STORED,
                "hash": _KEYWORD,
                "words": {"type": "text", "analyzer": "whitespace", "similarity": "words"},
                "length": {"type": "integer", "index": False},
                "embedding": {"type": "binary"},
                "vector": {
                    "type": "knn_vector",
                    "dimension": dimensions,
                    "method": {
                        "name": "hnsw",
                        "engine": "lucene",
                        "space_type": "cosinesimil",
                        "parameters": {"m": M, "ef_construction": EF_CONSTRUCTION},
                    },
                },
            },
        },
    }


def document_of(key: Key) -> str:
    """Return the name of a document in the index, of a length that the engine takes."""
    return hashlib.sha256(SEPARATOR.join(key).encode()).hexdigest()


def chunk_id(document: str, version: str, ordinal: int) -> str:
    """Return the id of a chunk: writing it again replaces it."""
    return hashlib.sha256(f"{document}/{version}/{ordinal}".encode()).hexdigest()


def source_of(key: Key, version: str, visibility: Visibility, chunk: IndexedChunk, tokens: Tokens) -> dict[str, Any]:
    """Return a chunk as it is stored, but for the vector."""
    return {
        "tenant": key.tenant,
        "document": document_of(key),
        "document_id": key.document_id,
        "version": version,
        "ordinal": chunk.ordinal,
        **readers_of(visibility),
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
        "context": chunk.context,
        "headings": chunk.headings,
        "label": chunk.label,
        "hash": chunk.hash.hex(),
        "words": [" ".join(map(term, column)) for column in tokens],
        "length": tokens.length,
        "embedding": base64.b64encode(chunk.vector).decode(),
    }


def readers_of(visibility: Visibility) -> dict[str, Any]:
    """Return the fields that tell who may find a chunk."""
    return {"source": visibility.source, "access": list(visibility.access) or [EVERYONE]}


def index_lines(alias: str, source: Mapping[str, Any], **conditions: Any) -> bytes:
    """Return the lines of a bulk request that write a chunk with its vector."""
    name = chunk_id(source["document"], source["version"], source["ordinal"])
    head = {"index": {"_index": alias, "_id": name, "require_alias": True, **conditions}}
    document = {**source, "vector": vector_of(source)}
    return orjson.dumps(head) + b"\n" + orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def vector_of(source: Mapping[str, Any]) -> Vector:
    """Return the vector of a stored chunk."""
    import numpy as np

    return np.frombuffer(base64.b64decode(source["embedding"]), np.float32)


def chunk_of(source: Mapping[str, Any]) -> IndexedChunk:
    """Return a stored chunk."""
    return IndexedChunk(
        source["ordinal"],
        source["start"],
        source["end"],
        source["text"],
        source["context"],
        tuple(source["headings"]),
        source["label"],
        bytes.fromhex(source["hash"]),
        base64.b64decode(source["embedding"]),
    )


def candidates_of(
    sources: Collection[Mapping[str, Any]], phrases: Sequence[Phrase], statistics: Statistics, vector: Vector | None
) -> list[Candidate]:
    """Return chunks that were found, with their true scores."""
    vectors = list(map(vector_of, sources))
    near = [0.0] * len(vectors) if vector is None else cosines(vector, vectors)
    return [
        _candidate(source, phrases, statistics, cosine, own)
        for source, cosine, own in zip(sources, near, vectors, strict=True)
    ]


def _candidate(
    source: Mapping[str, Any], phrases: Sequence[Phrase], statistics: Statistics, cosine: float, vector: Vector
) -> Candidate:
    context, text = (tuple(column.split()) for column in source["words"])
    tokens = Tokens(context, text)
    counts = tokens.counts(phrases)
    return Candidate(
        key_of(source),
        source["version"],
        source["ordinal"],
        source["start"],
        source["end"],
        source["text"],
        tuple(source["headings"]),
        source["label"],
        cosine,
        bm25(counts, tokens.length, statistics) if any(counts) else 0.0,
        vector,
    )


def key_of(source: Mapping[str, Any]) -> Key:
    """Return the document that a stored chunk is of."""
    return Key(source["tenant"], source["document_id"])


# Queries --------------------------------------------------------------------------------------------------------


def visible_to(reader: Reader) -> list[dict[str, Any]]:
    """Return the conditions of what a reader may find."""
    conditions: list[dict[str, Any]] = [
        {"term": {"tenant": reader.tenant}},
        {"terms": {"access": sorted({EVERYONE, *reader.access})}},
    ]
    if reader.sources:
        conditions.append({"terms": {"source": sorted(reader.sources)}})
    return conditions


def nearest(vector: Vector, reader: Reader, count: int) -> dict[str, Any]:
    """Return the search for the chunks nearest to a vector."""
    near = {
        "vector": vector.tolist(),
        "k": count,
        "filter": {"bool": {"filter": visible_to(reader)}},
        "method_parameters": {"ef_search": max(EF_SEARCH_MIN, count)},
    }
    return {"size": count, "query": {"knn": {"vector": near}}, "_source": SOURCE, "track_total_hits": False}


def by_words(phrases: Sequence[Phrase], statistics: Statistics, reader: Reader, count: int) -> dict[str, Any]:
    """Return the search for the chunks with the best words."""
    wanted = [_phrase(phrase, idf) for phrase, idf in zip(phrases, statistics.idfs, strict=True)]
    query = {"bool": {"filter": visible_to(reader), "should": wanted, "minimum_should_match": 1}}
    return {"size": count, "query": query, "_source": SOURCE, "track_total_hits": False}


def statistics_query(phrases: Sequence[Phrase]) -> dict[str, Any]:
    """Return the search for what BM25 needs to know of all chunks."""
    holders = {"holders": {"filters": {"filters": [_phrase(phrase) for phrase in phrases]}}} if phrases else {}
    return {"size": 0, "track_total_hits": True, "aggs": {"tokens": {"sum": {"field": "length"}}, **holders}}


def statistics_of(answer: Mapping[str, Any]) -> Statistics:
    """Return what `statistics_query` found."""
    found = answer["aggregations"]
    holders = tuple(bucket["doc_count"] for bucket in found["holders"]["buckets"]) if "holders" in found else ()
    return Statistics(answer["hits"]["total"]["value"], int(found["tokens"]["value"]), holders)


def _phrase(phrase: Phrase, boost: float = 1.0) -> dict[str, Any]:
    return {"match_phrase": {"words": {"query": " ".join(phrase), "boost": boost}}}
