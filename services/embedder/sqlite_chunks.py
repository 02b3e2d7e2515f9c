"""What can be found, in the installation's SQLite database: chunks, words and vectors of the indexed versions."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import orjson

from services.embedder.chunking import Chunk
from services.embedder.events import finished_events
from services.embedder.ports import Cut, Making, VectorsMissingError
from services.embedder.sqlite_documents import SqliteDocuments, parameter
from services.embedder.sqlite_jobs import SqliteJobs, row_id
from services.embedder.vectors import Entry, VectorIndex
from services.kernel.jobs import Job
from services.kernel.sqlite import Database, Transaction

_IN_THREAD = 200  # chunks: writing more would hold up queries


class SqliteChunks:
    """Replaces the chunks of a document as a whole: until then, the older version can be found."""

    def __init__(
        self, database: Database, documents: SqliteDocuments, jobs: SqliteJobs, index: VectorIndex, *, model_id: str
    ) -> None:
        self._database, self._documents, self._jobs = database, documents, jobs
        self._index, self._model_id = index, model_id

    async def known(self, making: Making, hashes: Collection[bytes]) -> set[bytes]:
        """Return those that have been embedded with the model already."""
        del making
        sql = "SELECT 1 FROM knowledge_embeddings WHERE hash=? AND model_id=?"
        reader = self._database.reader
        return {hash_ for hash_ in hashes if reader.execute(sql, (hash_, self._model_id)).fetchone() is not None}

    async def keep(self, making: Making, vectors: Mapping[bytes, bytes]) -> bool:
        """Store vectors of a document that is not finished, for after a crash; False when the document is gone."""
        document = row_id(making.job)
        async with self._database.transaction() as unit:
            if unit.execute("SELECT 1 FROM knowledge_jobs WHERE document=?", (document,)).fetchone() is None:
                return False
            self._add_vectors(unit, vectors)
            rows = [(document, hash_) for hash_ in vectors]
            unit.executemany("INSERT OR IGNORE INTO knowledge_progress VALUES (?, ?)", rows)
        return True

    async def stored(self, job: Job) -> Cut | None:
        """Return a document as it can be found, where only vectors are missing of the version that is wanted."""
        reader, document = self._database.reader, row_id(job)
        found = reader.execute(
            "SELECT title, text FROM knowledge_documents WHERE id=? AND version=?", (document, job.version)
        ).fetchone()
        if found is None:
            return None
        title, text = found
        rows = reader.execute(
            """SELECT ordinal, start, "end", text, headings, label, context FROM knowledge_chunks
               WHERE document=? ORDER BY ordinal""",
            (document,),
        )
        chunks = [
            Chunk(ordinal, start, end, words, tuple(orjson.loads(headings)), label, context)
            for ordinal, start, end, words, headings, label, context in rows
        ]
        return Cut(title, text, chunks)

    async def finish(self, making: Making, vectors: Mapping[bytes, bytes], embedded: int) -> bool:
        """Make a version searchable in place of the one before, and its job done, in one transaction."""
        async with self._database.transaction() as unit:
            self._add_vectors(unit, vectors)
            if len(making.cut.chunks) > _IN_THREAD:
                done = await asyncio.to_thread(self._finish, unit, making)
            else:
                done = self._finish(unit, making)
            if done is None:
                self._documents.forget_vectors(vectors)
                return False
            events = finished_events(making, embedded=embedded, occurred_ms=done, model_id=self._model_id)
            self._jobs.tell(unit, events)
        return True

    def _finish(self, unit: Transaction, making: Making) -> int | None:
        """Return when the version's change happened; None when it is not wanted any more."""
        (job, assignment, cut), document = making, row_id(making.job)
        row = unit.execute(
            """SELECT d.source, d.access, d.occurred_ms FROM knowledge_jobs j
               JOIN knowledge_documents d ON d.id=j.document WHERE j.document=? AND j.version=?""",
            (document, job.version),
        ).fetchone()
        if row is None:
            return None
        source, access, occurred_ms = row
        visibility = self._documents.visibility(assignment.key.tenant, source, tuple(orjson.loads(access)))
        self._replace(unit, document, cut.chunks, visibility)
        unit.execute(
            """UPDATE knowledge_documents SET version=?, title=?, text=?, chunks=?, visibility=?, shown_ms=occurred_ms
               WHERE id=?""",
            (job.version, cut.title, cut.text, len(cut.chunks), visibility, document),
        )
        unit.execute("DELETE FROM knowledge_jobs WHERE document=?", (document,))
        return int(occurred_ms)

    def _add_vectors(self, unit: Transaction, vectors: Mapping[bytes, bytes]) -> None:
        unit.executemany(
            "INSERT OR IGNORE INTO knowledge_embeddings VALUES (?, ?, ?)",
            [(self._model_id, hash_, vector) for hash_, vector in vectors.items()],
        )

    def _replace(self, unit: Transaction, document: int, chunks: Sequence[Chunk], visibility: int) -> None:
        """Write the chunks; those that say what an older one said keep its row, and so its place in both indexes."""
        pool: dict[tuple[bytes, str], list[int]] = defaultdict(list)
        old = unit.execute("SELECT id, hash, text FROM knowledge_chunks WHERE document=? ORDER BY ordinal", (document,))
        for number, hash_, text in old:
            pool[hash_, text].append(number)
        kept, added = [], []
        for chunk in chunks:
            place = (chunk.ordinal, chunk.start, chunk.end, orjson.dumps(chunk.headings).decode(), chunk.label)
            if same := pool[chunk.hash, chunk.text]:
                kept.append((*place, same.pop(0)))
            else:
                added.append((document, *place, chunk.text, chunk.context, chunk.hash))
        gone = [(hash_, row_id) for (hash_, _), row_ids in pool.items() for row_id in row_ids]
        unit.executemany("DELETE FROM knowledge_chunks WHERE id=?", [(row_id,) for _, row_id in gone])
        unit.executemany(
            'UPDATE knowledge_chunks SET ordinal=?, start=?, "end"=?, headings=?, label=? WHERE id=?', kept
        )
        unit.executemany(
            """INSERT INTO knowledge_chunks (document, ordinal, start, "end", headings, label, text, context, hash)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            added,
        )
        entries = self._entries(unit, document, visibility)
        if len(entries) != len(chunks):
            raise VectorsMissingError
        progress = unit.execute("SELECT hash FROM knowledge_progress WHERE document=?", (document,)).fetchall()
        unit.execute("DELETE FROM knowledge_progress WHERE document=?", (document,))
        self._documents.forget_vectors({hash_ for hash_, _ in gone} | {hash_ for (hash_,) in progress})
        removed, unchanged = [row_id for _, row_id in gone], {row[-1] for row in kept}
        # An unchanged chunk is new to the index when another model has embedded it anew.
        fresh = [entry for entry in entries if entry.chunk not in unchanged or entry.chunk not in self._index]

        def publish() -> None:
            self._index.remove(removed)
            self._index.regroup(unchanged, visibility)
            self._index.put(fresh)

        unit.on_commit.append(publish)

    def _entries(self, unit: Transaction, document: int, visibility: int) -> list[Entry]:
        rows = unit.execute(
            """SELECT c.id, e.vector FROM knowledge_chunks c JOIN knowledge_embeddings e USING (hash)
               WHERE c.document=? AND e.model_id=?""",
            (document, self._model_id),
        )
        return [Entry(chunk, visibility, vector) for chunk, vector in rows]

    def load_index(self) -> None:
        """Read all vectors into the index, when the process starts or after a rebuild."""
        rows = self._database.reader.execute(
            """SELECT c.id, d.visibility, e.vector FROM knowledge_chunks c
               JOIN knowledge_documents d ON d.id=c.document JOIN knowledge_embeddings e USING (hash)
               WHERE e.model_id=? ORDER BY c.id""",
            (self._model_id,),
        )
        self._index.clear()
        self._index.put(Entry(*row) for row in rows)

    async def sweep(self) -> None:
        """Remove vectors that nothing has any more: after a rebuild, of what the log does not hold any more."""
        async with self._database.transaction() as unit:
            unit.execute(
                """DELETE FROM knowledge_embeddings WHERE NOT EXISTS (
                     SELECT 1 FROM knowledge_chunks c WHERE c.hash=knowledge_embeddings.hash)
                   AND NOT EXISTS (SELECT 1 FROM knowledge_progress p WHERE p.hash=knowledge_embeddings.hash)"""
            )

    async def requeue_without_vectors(self, now: float) -> int:
        """Make jobs of documents whose chunks the model has not embedded: another model made them. Return how many."""
        async with self._database.transaction() as unit:
            rows = unit.execute(
                """SELECT DISTINCT c.document FROM knowledge_chunks c WHERE NOT EXISTS (
                     SELECT 1 FROM knowledge_embeddings e WHERE e.hash=c.hash AND e.model_id=?)
                   AND NOT EXISTS (SELECT 1 FROM knowledge_jobs j WHERE j.document=c.document)""",
                (self._model_id,),
            ).fetchall()
            documents = parameter(document for (document,) in rows)
            unit.execute(
                """INSERT INTO knowledge_jobs
                     SELECT id, version, ?, 1, length(text), 'pending', 0, ?, '', NULL, '', '', 0, 0, 0, tenant, source,
                       shown_ms FROM knowledge_documents WHERE id IN (SELECT value FROM json_each(?))""",
                (self._model_id, now, documents),
            )
        return len(rows)
