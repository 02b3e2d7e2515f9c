"""Documents as they were accepted, in the installation's SQLite database: the state of the group `embedder`."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

import orjson

from services.embedder.decider import Decider, document_key
from services.embedder.ports import nothing
from services.embedder.schema import COMPONENT, SCHEMA
from services.embedder.state import LIVE_BATCH_MAX, Document, Entity, Erased, Key, Work, WorkingSet, digest_of
from services.embedder.vectors import VectorIndex
from services.kernel.freshness import FreshnessTable
from services.kernel.jobs import JobState, Lane
from services.kernel.log import Progress, Record
from services.kernel.sqlite import Database

_IN_THREAD = 100  # documents: taking away more would hold up queries
IN = "IN (SELECT value FROM json_each(?))"

_COLUMNS = """d.tenant, d.document_id, d.source, d.entity, d.partition, d.position, d.occurred_ms, d.wanted, d.version,
  d.name, d.uri, d.metadata, d.live, d.access, v.access, d.shown_ms, d."row", d.known_at, d.chunks,
  EXISTS (SELECT 1 FROM knowledge_jobs j WHERE j.document=d.id), d.id, d.title"""


def parameter(values: Iterable[int | str | Sequence[str]]) -> str:
    """Return values as the parameter of `json_each`."""
    return orjson.dumps(list(values)).decode()


class SqliteDocuments:
    """What the group `embedder` loads and saves; also takes documents away for others."""

    def __init__(
        self, database: Database, index: VectorIndex, decider: Decider, *, provider: str, clock: Callable[[], float]
    ) -> None:
        """Wire the store.

        Args:
            database: the installation's database.
            index: the vectors in memory, changed when a unit of work is committed.
            decider: tells which records concern documents.
            provider: the embedding model's id.
            clock: unix seconds.
        """
        database.migrate(COMPONENT, SCHEMA)
        self._database, self._index, self._decider = database, index, decider
        self._provider, self._clock = provider, clock
        self.freshness = FreshnessTable(database, COMPONENT)
        self._visibilities: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self.on_work: Callable[[], None] = nothing

    # Load -------------------------------------------------------------------------------------------------------

    async def load(self, batch: Sequence[Record]) -> WorkingSet:
        """Load the documents of a batch, and all rows of the entities that it truncates."""
        relevant = [record for record in batch if self._decider.concerns(record)]
        keys = {document_key(record) for record in relevant if record.key is not None}
        state = WorkingSet(lane=Lane.LIVE if len(relevant) <= LIVE_BATCH_MAX else Lane.BACKFILL)
        if not keys:
            return state
        writer = self._database.writer
        names = parameter(list(key) for key in keys)
        by_key = "FROM json_each(?) k CROSS JOIN {} d ON d.tenant=k.value->>0 AND d.document_id=k.value->>1"
        self._add(state, f"{by_key.format('knowledge_documents')}", (names,))
        state.fences = {
            Key(tenant, document_id): position
            for tenant, document_id, position in writer.execute(
                f"SELECT d.tenant, d.document_id, d.position {by_key.format('knowledge_fences')}", (names,)
            )
        }
        state.erased = self._erased(keys)
        partition = batch[0].partition
        state.truncated = {
            Entity(*entity): position
            for *entity, position in writer.execute(
                "SELECT tenant, source, entity, position FROM knowledge_truncations WHERE partition=?", (partition,)
            )
        }
        for entity in {entity for record in relevant if (entity := self._decider.truncated(record)) is not None}:
            where = "FROM knowledge_documents d {} WHERE d.tenant=? AND d.source=? AND d.entity=? AND d.partition=?"
            self._add(state, where, (*entity, partition))
        state.loaded = dict(state.documents)
        return state

    def _add(self, state: WorkingSet, tables: str, parameters: Sequence[object]) -> None:
        join = "JOIN knowledge_visibility v ON v.id=d.visibility"
        tables = tables.format(join) if "{}" in tables else f"{tables} {join}"
        for tenant, document_id, *fields in self._database.writer.execute(f"SELECT {_COLUMNS} {tables}", parameters):
            key = Key(tenant, document_id)
            fields[11], fields[12] = tuple(orjson.loads(fields[11])), tuple(orjson.loads(fields[12]))
            fields[17] = bool(fields[17])
            state.documents[key] = Document(key, *fields)

    def _erased(self, keys: Collection[Key]) -> dict[Key, Erased]:
        writer = self._database.writer
        if writer.execute("SELECT 1 FROM knowledge_erasures LIMIT 1").fetchone() is None:
            return {}
        digests = {digest_of(key): key for key in keys}
        rows = writer.execute(
            f"SELECT digest, position, at_ms FROM knowledge_erasures WHERE digest {IN}", (parameter(digests),)
        )
        return {digests[digest]: Erased(position, at_ms) for digest, position, at_ms in rows}

    # Save -------------------------------------------------------------------------------------------------------

    async def save(self, state: WorkingSet, progress: Progress) -> None:
        """Write what the batch changed; readers and the index see it when the unit of work is committed."""
        del progress  # it is in the same database
        await self.remove(state.removed)
        self._save_fences(state)
        for key in state.changed:
            self._save_document(state, key)
        self.freshness.save(state.sightings)
        if any(state.documents[key].waits for key in state.changed):
            self._database.unit.on_commit.append(self.on_work)

    def _save_fences(self, state: WorkingSet) -> None:
        writer = self._database.writer
        for key in state.fenced:
            position = state.fences.get(key)
            if position is None:
                writer.execute("DELETE FROM knowledge_fences WHERE tenant=? AND document_id=?", key)
            else:
                writer.execute("INSERT OR REPLACE INTO knowledge_fences VALUES (?, ?, ?)", (*key, position))
        writer.executemany(
            "INSERT OR REPLACE INTO knowledge_truncations VALUES (?, ?, ?, ?, ?)",
            [(partition, *entity, state.truncated[entity]) for entity, partition in state.truncated_now.items()],
        )

    def _save_document(self, state: WorkingSet, key: Key) -> None:
        document, writer = state.documents[key], self._database.writer
        visibility = self.visibility(key.tenant, document.source, document.shown_to)
        values = (
            *key, document.source, document.entity, document.partition, document.position, document.occurred_ms,
            document.wanted, document.version, document.name, document.uri, document.metadata, document.live,
            orjson.dumps(document.access).decode(), visibility, document.shown_ms, document.row, document.known_at,
        )  # fmt: skip
        row_id = document.row_id
        if row_id:
            writer.execute(
                """UPDATE knowledge_documents SET tenant=?, document_id=?, source=?, entity=?, partition=?, position=?,
                     occurred_ms=?, wanted=?, version=?, name=?, uri=?, metadata=?, live=?, access=?, visibility=?,
                     shown_ms=?, "row"=?, known_at=? WHERE id=?""",
                (*values, row_id),
            )
            before = state.loaded.get(key)
            if before is not None and (before.source, before.shown_to) != (document.source, document.shown_to):
                self._regroup(row_id, visibility)
        else:
            cursor = writer.execute(
                """INSERT INTO knowledge_documents (tenant, document_id, source, entity, partition, position,
                     occurred_ms, wanted, version, name, uri, metadata, live, access, visibility, shown_ms, "row",
                     known_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                values,
            )
            row_id = cursor.lastrowid or 0
        if document.waits:
            self._save_work(row_id, document, state.work[key])
        else:
            writer.execute("DELETE FROM knowledge_jobs WHERE document=?", (row_id,))

    def _save_work(self, row_id: int, document: Document, work: Work) -> None:
        # The same version again only moves to where its content is now; a newer one starts afresh. Whoever waits for
        # the older one's position waits for the newer.
        self._database.writer.execute(
            """INSERT INTO knowledge_jobs VALUES (?, ?, ?, ?, ?, ?, 0, ?, '', ?, ?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (document) DO UPDATE SET
                 lane=min(lane, excluded.lane), size=excluded.size, content=excluded.content,
                 media_type=excluded.media_type, topic=excluded.topic, partition=excluded.partition,
                 "offset"=excluded."offset", source=excluded.source,
                 state=iif(version=excluded.version, state, excluded.state),
                 attempts=iif(version=excluded.version, attempts, 0),
                 due_at=iif(version=excluded.version, due_at, excluded.due_at),
                 last_error=iif(version=excluded.version, last_error, ''),
                 version=excluded.version""",
            (
                row_id, document.wanted, self._provider, work.lane, work.size, JobState.PENDING.value, self._clock(),
                work.content, work.media_type, work.topic, work.partition, work.offset, work.offset,
                document.key.tenant, document.source, document.occurred_ms,
            ),
        )  # fmt: skip

    def visibility(self, tenant: str, source: str, access: tuple[str, ...]) -> int:
        """Return the number of a group of readers, in the open unit of work."""
        name = (tenant, source, access)
        found = self._visibilities.get(name)
        if found is None:
            values = (tenant, source, orjson.dumps(access).decode())
            writer = self._database.writer
            writer.execute(
                "INSERT OR IGNORE INTO knowledge_visibility (tenant, source, access) VALUES (?, ?, ?)", values
            )
            (found,) = writer.execute(
                "SELECT id FROM knowledge_visibility WHERE tenant=? AND source=? AND access=?", values
            ).fetchone()
            self._visibilities[name] = found
            self._database.unit.on_rollback.append(self._visibilities.clear)
        return int(found)

    def _regroup(self, row_id: int, visibility: int) -> None:
        rows = self._database.writer.execute("SELECT id FROM knowledge_chunks WHERE document=?", (row_id,))
        chunks = [chunk for (chunk,) in rows]
        self._database.unit.on_commit.append(lambda: self._index.regroup(chunks, visibility))

    # Taking away ------------------------------------------------------------------------------------------------

    async def remove(self, row_ids: Sequence[int]) -> None:
        """Take stored documents away with all that was made of them, in the open unit of work."""
        if not row_ids:
            return
        if len(row_ids) > _IN_THREAD:
            chunks = await asyncio.to_thread(self._remove, row_ids)
        else:
            chunks = self._remove(row_ids)
        self._database.unit.on_commit.append(lambda: self._index.remove(chunks))

    def _remove(self, row_ids: Sequence[int]) -> list[int]:
        writer, ids = self._database.writer, (parameter(row_ids),)
        chunks = [chunk for (chunk,) in writer.execute(f"SELECT id FROM knowledge_chunks WHERE document {IN}", ids)]
        hashes = writer.execute(
            f"""SELECT hash FROM knowledge_chunks WHERE document {IN}
                UNION SELECT hash FROM knowledge_progress WHERE document {IN}""",
            ids * 2,
        ).fetchall()
        for table in ("knowledge_chunks", "knowledge_progress", "knowledge_jobs"):
            writer.execute(f"DELETE FROM {table} WHERE document {IN}", ids)
        writer.execute(f"DELETE FROM knowledge_documents WHERE id {IN}", ids)
        self.forget_vectors(hash_ for (hash_,) in hashes)
        return chunks

    def forget_vectors(self, hashes: Iterable[bytes]) -> None:
        """Remove the vectors that no chunk and no unfinished document has any more, in the open unit of work."""
        self._database.writer.executemany(
            """DELETE FROM knowledge_embeddings WHERE hash=?1
                 AND NOT EXISTS (SELECT 1 FROM knowledge_chunks WHERE hash=?1)
                 AND NOT EXISTS (SELECT 1 FROM knowledge_progress WHERE hash=?1)""",
            [(hash_,) for hash_ in hashes],
        )

    def forget_visibilities(self) -> None:
        """Drop what is remembered of the table of visibilities, which a rebuild empties."""
        self._visibilities.clear()
