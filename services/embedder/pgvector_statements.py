"""What a chunk is in PostgreSQL, and the statements that find it. Pure.

Words are a `tsvector` of the tokens of SQLite's full-text index: words, pairs of neighbours, and how often each is
there, as further lexemes (`refund`, `refund|2`, `refund|3`), so that BM25 can be computed where the rows are. A score
by them only finds candidates (`lexical`).
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from psycopg import sql

from services.embedder.index import Candidate, IndexedChunk, Reader, Visibility
from services.embedder.lexical import K1, B, Phrase, Statistics, Tokens, bm25, term
from services.embedder.ports import Vector
from services.embedder.state import Key
from services.embedder.vectors import cosines
from services.kernel.log import SEPARATOR

FORMAT = 1  # of the table; another one needs a table of its own
COUNT_MAX = 8  # as often, or more often, a word is there any number of times: no chunk scores more than it is said to
HNSW_DIMENSIONS_MAX = 2000
EF_SEARCH_MIN, EF_SEARCH_MAX = 200, 1000
_ANY_NUMBER = 1e9
_VECTOR_HEAD = 4  # bytes before the numbers: their count, and two that are not used

COLUMNS = (
    "document", "tenant", "document_id", "version", "ordinal", "source", "access", "start", "end", "text", "context",
    "headings", "label", "hash", "context_tokens", "text_tokens", "length", "words", "vector",
)  # fmt: skip
CHUNK = ("ordinal", "start", "end", "text", "context", "headings", "label", "hash", "vector")
FOUND = (
    "tenant", "document_id", "version", "ordinal", "start", "end", "text", "headings", "label", "context_tokens",
    "text_tokens", "vector",
)  # fmt: skip


def names(columns: Sequence[str]) -> sql.Composed:
    """Return columns for a statement."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def table_statements(table: sql.Identifier, dimensions: int) -> list[sql.Composed]:
    """Return the statements that make the table of a model."""
    statements: list[sql.Composed] = [
        sql.SQL(
            """CREATE TABLE {} (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, document bytea NOT NULL, tenant text NOT NULL,
                 document_id text NOT NULL, version text NOT NULL, ordinal integer NOT NULL, source text NOT NULL,
                 access text[] NOT NULL, start integer NOT NULL, "end" integer NOT NULL, text text NOT NULL,
                 context text NOT NULL, headings text[] NOT NULL, label text NOT NULL, hash bytea NOT NULL,
                 context_tokens text NOT NULL, text_tokens text NOT NULL, length integer NOT NULL,
                 words tsvector NOT NULL, vector vector({}) NOT NULL, UNIQUE (document, version, ordinal))"""
        ).format(table, sql.Literal(dimensions)),
        # What every search looks at stays in the row, for as long as there is room; texts go aside first.
        sql.SQL("ALTER TABLE {} SET (toast_tuple_target = 8160)").format(table),
        sql.SQL(
            """ALTER TABLE {} ALTER words SET STORAGE MAIN, ALTER vector SET STORAGE MAIN,
                 ALTER text SET STORAGE EXTENDED"""
        ).format(table),
        sql.SQL("CREATE INDEX ON {} USING gin (words)").format(table),
        sql.SQL("CREATE INDEX ON {} (hash)").format(table),
        sql.SQL("CREATE INDEX ON {} (tenant, source)").format(table),
    ]
    if dimensions <= HNSW_DIMENSIONS_MAX:
        statements.append(sql.SQL("CREATE INDEX ON {} USING hnsw (vector vector_cosine_ops)").format(table))
    return statements


def document_of(key: Key) -> bytes:
    """Return the name of a document in the table, of a length that an index takes."""
    return hashlib.sha256(SEPARATOR.join(key).encode()).digest()


def lock_of(key: Key) -> int:
    """Return the number of the advisory lock under which a document is written."""
    return int.from_bytes(document_of(key)[:8], signed=True)


def row_of(key: Key, version: str, visibility: Visibility, chunk: IndexedChunk, tokens: Tokens) -> tuple[Any, ...]:
    """Return a chunk as it is stored, by `COLUMNS`; `words` are the lexemes."""
    return (
        document_of(key),
        *key,
        version,
        chunk.ordinal,
        visibility.source,
        list(visibility.access),
        chunk.start,
        chunk.end,
        chunk.text,
        chunk.context,
        list(chunk.headings),
        chunk.label,
        chunk.hash,
        " ".join(tokens.context),
        " ".join(tokens.text),
        tokens.length,
        lexemes_of(tokens),
        vector_text(chunk.vector),
    )


def lexemes_of(tokens: Tokens) -> list[str]:
    """Return what a chunk is found by."""
    counts: Counter[str] = Counter()
    for column in tokens:
        terms = list(map(term, column))
        counts.update(terms)
        counts.update(map(" ".join, itertools.pairwise(terms)))
    return [
        lexeme if count == 1 else f"{lexeme}|{count}"
        for lexeme, most in counts.items()
        for count in range(1, min(most, COUNT_MAX) + 1)
    ]


def vector_text(vector: bytes) -> str:
    """Return a vector as pgvector reads it."""
    import numpy as np

    return f"[{','.join(map(repr, np.frombuffer(vector, np.float32).tolist()))}]"


def vector_of(data: bytes) -> Vector:
    """Return a vector as pgvector sends it."""
    import numpy as np

    return np.frombuffer(data, ">f4", offset=_VECTOR_HEAD).astype(np.float32)


def chunk_of(row: Sequence[Any]) -> IndexedChunk:
    """Return a stored chunk, of a row with `CHUNK`."""
    ordinal, start, end, text, context, headings, label, hash_, vector = row
    data = vector_of(vector).tobytes()
    return IndexedChunk(ordinal, start, end, text, context, tuple(headings), label, bytes(hash_), data)


def candidates_of(
    rows: Sequence[Sequence[Any]], phrases: Sequence[Phrase], statistics: Statistics, vector: Vector | None
) -> list[Candidate]:
    """Return chunks that were found, of rows with `FOUND`, with their true scores."""
    vectors = [vector_of(row[-1]) for row in rows]
    near = [0.0] * len(vectors) if vector is None else cosines(vector, vectors)
    return [
        _candidate(row, phrases, statistics, cosine, own) for row, cosine, own in zip(rows, near, vectors, strict=True)
    ]


def _candidate(
    row: Sequence[Any], phrases: Sequence[Phrase], statistics: Statistics, cosine: float, vector: Vector
) -> Candidate:
    tenant, document_id, version, ordinal, start, end, text, headings, label, *columns = row[:-1]
    context, words = (tuple(column.split()) for column in columns)
    tokens = Tokens(context, words)
    counts = tokens.counts(phrases)
    return Candidate(
        Key(tenant, document_id), version, ordinal, start, end, text, tuple(headings), label, cosine,
        bm25(counts, tokens.length, statistics) if any(counts) else 0.0, vector,
    )  # fmt: skip


# Queries --------------------------------------------------------------------------------------------------------


def visible_to(reader: Reader) -> sql.Composed:
    """Return the condition of what a reader may find."""
    condition = sql.SQL("tenant = {} AND (access = '{{}}' OR access && {}::text[])").format(
        sql.Literal(reader.tenant), sql.Literal(sorted(reader.access))
    )
    if reader.sources:
        condition += sql.SQL(" AND source = ANY({}::text[])").format(sql.Literal(sorted(reader.sources)))
    return condition


def nearest(table: sql.Identifier, vector: Vector, reader: Reader, count: int) -> sql.Composed:
    """Return the statement that finds the chunks nearest to a vector: id and distance."""
    return sql.SQL(
        """SELECT id, vector <=> {vector}::vector FROM {table} WHERE {visible}
           ORDER BY vector <=> {vector}::vector LIMIT {count}"""
    ).format(
        vector=sql.Literal(vector_text(vector.tobytes())),
        table=table,
        visible=visible_to(reader),
        count=sql.Literal(count),
    )


def by_words(
    table: sql.Identifier, totals: tuple[int, int], phrases: Sequence[Phrase], reader: Reader, count: int
) -> sql.Composed:
    """Return the statement that finds the chunks with the best words: id, score, and the holders of each phrase."""
    chunks, tokens = totals
    numbers = range(len(phrases))
    lexemes = [" ".join(map(term, phrase)) for phrase in phrases]
    relative = sql.SQL("{} * ({} + {} * length / {}::float8)").format(
        sql.Literal(K1), sql.Literal(1 - B), sql.Literal(B), sql.Literal(max(1, tokens) / max(1, chunks))
    )
    score = sql.SQL(" + ").join(
        sql.SQL("greatest(1e-6, ln(({chunks} - h{n} + 0.5) / (h{n} + 0.5))) * f{n} * {gain} / (f{n} + length)").format(
            chunks=sql.Literal(float(chunks)), n=sql.SQL(str(number)), gain=sql.Literal(K1 + 1)
        )
        for number in numbers
    )
    return sql.SQL(
        """WITH matched AS MATERIALIZED (
             SELECT id, {relative} AS length, {visible} AS visible, {counts} FROM {table}
             WHERE words @@ {any}::tsquery),
           held AS (SELECT {holders} FROM matched)
           SELECT id, {score} AS score, ARRAY[{held}] FROM matched, held
           WHERE visible ORDER BY score DESC LIMIT {count}"""
    ).format(
        relative=relative,
        visible=visible_to(reader),
        counts=sql.SQL(", ").join(
            sql.SQL("{} AS f{}").format(_count(lexeme), sql.SQL(str(number))) for number, lexeme in enumerate(lexemes)
        ),
        table=table,
        any=sql.Literal(" | ".join(map(_quoted, lexemes))),
        holders=sql.SQL(", ").join(
            sql.SQL("(count(*) FILTER (WHERE f{n} > 0))::float8 AS h{n}").format(n=sql.SQL(str(n))) for n in numbers
        ),
        score=score,
        held=sql.SQL(", ").join(sql.SQL(f"h{n}") for n in numbers),
        count=sql.Literal(count),
    )


def _count(lexeme: str) -> sql.Composed:
    """Return how often a lexeme is in a row."""
    cases = [
        sql.SQL("WHEN NOT words @@ {}::tsquery THEN {}").format(
            sql.Literal(_quoted(lexeme if count == 1 else f"{lexeme}|{count}")), sql.Literal(count - 1)
        )
        for count in range(1, COUNT_MAX + 1)
    ]
    return sql.SQL("CASE {} ELSE {} END::float8").format(sql.SQL(" ").join(cases), sql.Literal(_ANY_NUMBER))


def _quoted(lexeme: str) -> str:
    """Return a lexeme as `tsquery` reads it."""
    doubled = lexeme.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"
