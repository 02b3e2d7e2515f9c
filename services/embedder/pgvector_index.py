"""The index of chunks in PostgreSQL with pgvector: words and vectors, found by both in one transaction."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from psycopg import AsyncConnection, DataError, sql

from services.embedder import pgvector_statements as form
from services.embedder.index import Candidate, Candidates, IndexedChunk, Reader, Visibility, checked
from services.embedder.lexical import Statistics, Tokenizer
from services.embedder.pgvector_client import PostgresClient, PostgresSettings, RefusedError
from services.embedder.ports import Vector
from services.embedder.query import WordQuery
from services.embedder.state import Key
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.jobs import PermanentError

PAGE = 500
_NO_TABLE = "42P01"
_MAKING = 0x6865_6164_7761_7465  # the advisory lock under which tables are made
_IN_THREAD = 20  # chunks: tokenising more would hold up others


class PgvectorIndex:
    """Implements `ChunkIndex`: one table a model, named by it."""

    def __init__(self, settings: PostgresSettings, *, model_id: str, dimensions: int = 0) -> None:
        """Wire the index; nothing is connected before it is used.

        Args:
            settings: where PostgreSQL is.
            model_id: the embedding model whose vectors these are.
            dimensions: their length; 0 while only the first one can tell.
        """
        self.dimensions = dimensions
        self._client, self._tokenizer, self._model_id = PostgresClient(settings), Tokenizer(), model_id
        self.table = f"{settings.prefix}_chunks_{hashlib.sha256(model_id.encode()).hexdigest()[:16]}"
        self._table, self._totals = sql.Identifier(self.table), sql.Identifier(f"{settings.prefix}_chunk_totals")
        self._is_there = False

    async def start(self) -> None:
        """Make the table, unless nothing tells the length of the vectors yet."""
        self._is_there = False
        try:
            async with self._client.transaction() as connection:
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
                await self._make(connection)
        except RefusedError as error:
            raise InvalidInputError(f"PostgreSQL refuses to make {self.table}: {error}") from error

    async def _make(self, connection: AsyncConnection[Any]) -> None:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        await connection.execute(
            sql.SQL(
                """CREATE TABLE IF NOT EXISTS {} (
                     name text PRIMARY KEY, chunks bigint NOT NULL, tokens bigint NOT NULL)"""
            ).format(self._totals)
        )
        cursor = await connection.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", (self.table,))
        (comment,) = await cursor.fetchone() or (None,)
        if comment is not None:
            self._check(orjson.loads(comment))
            self._is_there = True
        elif self.dimensions:
            for statement in form.table_statements(self._table, self.dimensions):
                await connection.execute(statement)
            meta = orjson.dumps(self._meta(self.dimensions)).decode()
            await connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._table, sql.Literal(meta)))
            await connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, 0, 0) ON CONFLICT (name) DO UPDATE SET chunks=0, tokens=0").format(
                    self._totals
                ),
                (self.table,),
            )
            self._is_there = True

    def _meta(self, dimensions: int) -> dict[str, Any]:
        return {"model_id": self._model_id, "dimensions": dimensions, "format": form.FORMAT}

    def _check(self, meta: Mapping[str, Any]) -> None:
        expected = self._meta(self.dimensions or meta["dimensions"])
        if meta != expected:
            raise InvalidInputError(
                f"the table {self.table} of PostgreSQL is of {meta}, not of {expected}: remove it, or change prefix"
            )
        self.dimensions = int(meta["dimensions"])

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        try:
            async with self._client.transaction() as connection:
                yield connection
        except RefusedError as error:
            if error.state != _NO_TABLE:
                raise InvalidInputError(f"PostgreSQL refuses: {error}") from error
            self._is_there = False
            raise UnavailableError(f"the table {self.table} of PostgreSQL is gone: it is made again") from error

    # Writing ----------------------------------------------------------------------------------------------------

    async def put(self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]) -> None:
        """Store chunks of a version, all or a slice of them, in one transaction; searchable when it returns."""
        if not chunks:
            return
        if not self._is_there:
            self.dimensions = self.dimensions or len(chunks[0].vector) // 4
            await self.start()
        checked(key, chunks, self.dimensions)
        places = ["array_to_tsvector(%s)" if column == "words" else "%s" for column in form.COLUMNS]
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            self._table, form.names(form.COLUMNS), sql.SQL(", ").join(map(sql.SQL, places))
        )
        async with self._transaction() as connection:
            same = (version, [chunk.ordinal for chunk in chunks])
            before = await self._delete(connection, self.table, key, "version=%s AND ordinal = ANY(%s)", *same)
            tokens = 0
            for start in range(0, len(chunks), PAGE):  # what is held at once stays small, however long the document
                call = (key, version, visibility, chunks[start : start + PAGE])
                in_thread = len(call[-1]) > _IN_THREAD
                rows = await asyncio.to_thread(self._rows, *call) if in_thread else self._rows(*call)
                tokens += sum(row[form.COLUMNS.index("length")] for row in rows)
                for chunk, row in zip(call[-1], rows, strict=True):
                    try:
                        await connection.execute(insert, row)
                    except DataError as error:
                        reason = str(error).splitlines()[0]
                        raise PermanentError(
                            f"{key.document_id}, chunk {chunk.ordinal}: PostgreSQL: {reason}"
                        ) from error
            await self._count_in(connection, self.table, len(chunks) - before[0], tokens - before[1])

    def _rows(
        self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]
    ) -> list[tuple[Any, ...]]:
        return [
            form.row_of(key, version, visibility, chunk, self._tokenizer.tokens(chunk.context, chunk.text))
            for chunk in chunks
        ]

    async def _delete(
        self, connection: AsyncConnection[Any], table: str, key: Key, where: str, *values: Any
    ) -> tuple[int, int]:
        """Delete chunks of a document, under its lock; return how many there were, and their tokens."""
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (form.lock_of(key),))
        cursor = await connection.execute(
            sql.SQL("DELETE FROM {} WHERE document=%s AND {} RETURNING length").format(
                sql.Identifier(table), sql.SQL(where)
            ),
            (form.document_of(key), *values),
        )
        lengths = [length for (length,) in await cursor.fetchall()]
        return len(lengths), sum(lengths)

    async def _count_in(self, connection: AsyncConnection[Any], table: str, chunks: int, tokens: int) -> None:
        """Keep the totals, the last thing in a transaction, since all writers meet there."""
        await connection.execute(
            sql.SQL("UPDATE {} SET chunks=chunks+%s, tokens=tokens+%s WHERE name=%s").format(self._totals),
            (chunks, tokens, table),
        )

    async def show(self, key: Key, version: str, visibility: Visibility) -> None:
        """Change who may find the chunks of a version; in effect when it returns."""
        async with self._transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (form.lock_of(key),))
            await connection.execute(
                sql.SQL("UPDATE {} SET source=%s, access=%s WHERE document=%s AND version=%s").format(self._table),
                (visibility.source, list(visibility.access), form.document_of(key), version),
            )

    async def remove(self, key: Key, *, but: str = "") -> int:
        """Take the chunks of a document away, of all versions but one; return how many there were."""
        removed = 0
        async with self._transaction() as connection:
            for table in [self.table] if but else await self._tables(connection):
                chunks, tokens = await self._delete(connection, table, key, "version<>%s", but)
                removed += chunks
                if chunks:
                    await self._count_in(connection, table, -chunks, -tokens)
        return removed

    async def expunge(self) -> int:
        """Give up the place of removed chunks; 0, since nothing can find them any more.

        Their bytes stay in free space and in the write-ahead log until these are written over: who must be sure has
        VACUUM FULL run in a quiet hour, which shuts out readers while it rebuilds the indexes.
        """
        async with self._transaction() as connection:
            tables = await self._tables(connection)
        for table in tables:
            await self._client.vacuum(table)
        return 0

    async def _tables(self, connection: AsyncConnection[Any]) -> list[str]:
        """Return the tables of all models, in the order in which all writers take them."""
        cursor = await connection.execute(
            sql.SQL("SELECT name FROM {} WHERE to_regclass(name) IS NOT NULL ORDER BY name").format(self._totals)
        )
        return [name for (name,) in await cursor.fetchall()]

    # Reading ----------------------------------------------------------------------------------------------------

    async def remains(self, key: Key) -> int:
        """Return how many chunks of a document are stored, of any version and model."""
        left = 0
        async with self._transaction() as connection:
            for table in await self._tables(connection):
                cursor = await connection.execute(
                    sql.SQL("SELECT count(*) FROM {} WHERE document=%s").format(sql.Identifier(table)),
                    (form.document_of(key),),
                )
                left += (await cursor.fetchone() or (0,))[0]
        return left

    async def count(self) -> int:
        """Return how many chunks are stored."""
        if not self._is_there:
            return 0
        rows = await self._select("SELECT count(*) FROM {}")
        return int(rows[0][0])

    async def vectors(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the vectors that this model has made already, by hash."""
        if not self._is_there or not hashes:
            return {}
        rows = await self._select("SELECT DISTINCT ON (hash) hash, vector FROM {} WHERE hash = ANY(%s)", list(hashes))
        return {bytes(hash_): form.vector_of(vector).tobytes() for hash_, vector in rows}

    async def stored(self, key: Key, version: str) -> list[IndexedChunk]:
        """Return the chunks of a version in order."""
        if not self._is_there:
            return []
        rows = await self._select(
            "SELECT {columns} FROM {} WHERE document=%s AND version=%s ORDER BY ordinal",
            form.document_of(key),
            version,
            columns=form.CHUNK,
        )
        return [form.chunk_of(row) for row in rows]

    async def openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        """Return the first chunk of documents, each of a version, without scores."""
        if not self._is_there or not versions:
            return {}
        rows = await self._select(
            """SELECT {columns} FROM {} WHERE ordinal=0
                 AND (document, version) IN (SELECT * FROM unnest(%s::bytea[], %s::text[]))""",
            [form.document_of(key) for key in versions],
            list(versions.values()),
            columns=form.FOUND,
        )
        found = form.candidates_of(rows, (), Statistics(0, 0, ()), None)
        return {candidate.key: candidate for candidate in found}

    async def _select(self, statement: str, *values: Any, columns: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        async with self._transaction() as connection, connection.cursor(binary=True) as cursor:
            whole = sql.SQL(statement).format(self._table, columns=form.names(columns))
            await cursor.execute(whole, values)
            return await cursor.fetchall()

    async def everything(self) -> AsyncIterator[tuple[Key, str, IndexedChunk]]:
        """Go through all chunks, by document, version and ordinal."""
        if not self._is_there:
            return
        statement = sql.SQL("SELECT tenant, document_id, version, {} FROM {} ORDER BY document, version, ordinal")
        async with self._transaction() as connection, connection.cursor(name="everything") as cursor:
            cursor.itersize = PAGE
            await cursor.execute(statement.format(form.names(form.CHUNK), self._table), binary=True)
            async for tenant, document_id, version, *chunk in cursor:
                yield Key(tenant, document_id), version, form.chunk_of(chunk)

    async def search(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        """Return the best chunks that a reader may find: `count` by meaning and `count` by words."""
        missing = list[str]()
        if vector is not None and len(vector) != self.dimensions:
            if self.dimensions:
                missing.append("search by meaning: the query's vector is of another model than those of the documents")
            vector = None
        if not self._is_there:
            return Candidates([], -1.0, 0.0, 0, missing, by_vectors=False)
        async with self._transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            chunks, tokens = await self._total(connection)
            near, worded = [], []
            if vector is not None:
                near = await self._nearest(connection, vector, reader, count)
            if words.phrases and chunks:
                statement = form.by_words(self._table, (chunks, tokens), words.phrases, reader, count)
                worded = await (await connection.execute(statement)).fetchall()
            wanted = list({row[0] for row in (*near, *worded)})
            async with connection.cursor(binary=True) as cursor:
                statement = sql.SQL("SELECT {} FROM {} WHERE id = ANY(%s)").format(form.names(form.FOUND), self._table)
                await cursor.execute(statement, (wanted,))
                rows = await cursor.fetchall()
        # What nothing that the reader may find holds, none of the rows holds.
        holders = tuple(map(int, worded[0][2])) if worded else (0,) * len(words.phrases)
        statistics = Statistics(chunks, tokens, holders)
        return Candidates(
            # In a thread: many candidates would hold up others.
            await asyncio.to_thread(form.candidates_of, rows, words.phrases, statistics, vector),
            cosine_rest=1 - near[-1][1] if len(near) == count else -1.0,
            bm25_rest=worded[-1][1] if len(worded) == count else 0.0,
            total=chunks,
            missing=missing,
            by_vectors=bool(near),
        )

    async def _total(self, connection: AsyncConnection[Any]) -> tuple[int, int]:
        cursor = await connection.execute(
            sql.SQL("SELECT chunks, tokens FROM {} WHERE name=%s").format(self._totals), (self.table,)
        )
        chunks, tokens = await cursor.fetchone() or (0, 0)
        return int(chunks), int(tokens)

    async def _nearest(
        self, connection: AsyncConnection[Any], vector: Vector, reader: Reader, count: int
    ) -> list[tuple[int, float]]:
        breadth = min(form.EF_SEARCH_MAX, max(form.EF_SEARCH_MIN, 2 * count))
        await connection.execute(f"SET LOCAL hnsw.ef_search = {breadth}")
        # Goes on looking until enough pass the filter.
        await connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        statement = form.nearest(self._table, vector, reader, count)
        found = await (await connection.execute(statement)).fetchall()
        if len(found) < count:  # it may have given up: only looking at every vector tells that there are no more
            await connection.execute("SET LOCAL enable_indexscan = off")
            found = await (await connection.execute(statement)).fetchall()
        return found
