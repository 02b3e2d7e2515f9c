"""Documents as they were accepted, and the work on them, in MongoDB: the state of the group `embedder`.

A document and its open job are one document of the database, named by the text of its topic key and written through the
ledger alone, by the worker that has its partition; all topics of the group have a document in the same partition.

Beside them are hints: documents of which the index may hold more than it should, or show it to others (`mongo_upkeep`).
A hint is written through the ledger and removed by whoever has followed it. Where a write that is done again after a
crash brings it back, it is followed once more.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from services.embedder.decider import Decider, document_key
from services.embedder.events import GROUP
from services.embedder.ports import nothing
from services.embedder.state import LIVE_BATCH_MAX, Document, Entity, Erased, Key, Work, WorkingSet, digest_of
from services.kernel.jobs import WAITING, JobState, Lane
from services.kernel.log import SEPARATOR, Log, Progress, Record
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, asked

DOCUMENTS, FENCES, TRUNCATIONS, HINTS = (
    "embedder_documents", "embedder_fences", "embedder_truncations", "embedder_hints",
)  # fmt: skip
ERASURES, TEXTS = "embedder_erasures", "embedder_texts"  # written by nobody else at the same time: not by the ledger
OPEN: Mapping[str, Any] = {"job.state": {"$in": sorted(state.value for state in WAITING)}, **PRESENT}
"""The filter of documents whose work waits to be done."""
_FIELDS = (
    "source", "entity", "partition", "position", "occurred_ms", "wanted", "version", "name", "uri", "metadata", "live",
    "access", "shown_to", "shown_ms", "row", "known_at", "chunks", "title",
)  # fmt: skip


def name_of(key: Key) -> str:
    """Return what the database calls a document."""
    return SEPARATOR.join(key)


def key_of_name(name: str) -> Key:
    """Return the document of a name."""
    tenant, _, document_id = name.partition(SEPARATOR)
    return Key(tenant, document_id)


class MongoDocuments:
    """What the group `embedder` loads and saves."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: MongoLedger,
        log: Log,
        decider: Decider,
        *,
        provider: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire the store.

        Args:
            mongo: the database.
            ledger: of this service.
            log: tells whether what is taken in was told before.
            decider: tells which records concern documents.
            provider: the embedding model's id.
            clock: unix seconds.
        """
        self._mongo, self._ledger, self._log, self._decider = mongo, ledger, log, decider
        self._provider, self._clock = provider, clock
        self.on_work: Callable[[], None] = nothing
        self.on_hints: Callable[[], None] = nothing
        self.on_told: Callable[[Collection[Key]], None] = lambda _: None  # documents whose results were taken in

    async def start(self) -> None:
        """Make the indexes."""
        documents = self._mongo.collection(DOCUMENTS)
        for field in ("slot", "tenant", "job.due_at"):
            await asked(documents.create_index(field))
        for name in (TRUNCATIONS, HINTS):
            await asked(self._mongo.collection(name).create_index("slot"))
        await asked(self._mongo.collection(TEXTS).create_index("document"))

    # Load -------------------------------------------------------------------------------------------------------

    async def load(self, batch: Sequence[Record]) -> WorkingSet:
        """Load the documents of a batch, and all rows of the entities that it truncates."""
        relevant = [record for record in batch if self._decider.concerns(record)]
        keys = sorted({document_key(record) for record in relevant if record.key is not None})
        state = WorkingSet(lane=Lane.LIVE if len(relevant) <= LIVE_BATCH_MAX else Lane.BACKFILL)
        if not batch:
            return state
        slot = batch[0].partition
        state.head = await self._ledger.head(GROUP, slot)
        if not keys:
            return state
        names = [name_of(key) for key in keys]
        self._add(state, await self._mongo.find(DOCUMENTS, {"_id": {"$in": names}, **PRESENT}))
        for each in await self._mongo.find(FENCES, {"_id": {"$in": names}, **PRESENT}):
            state.fences[key_of_name(each["_id"])] = each["position"]
        digests = {digest_of(key): key for key in keys}
        for each in await self._mongo.find(ERASURES, {"_id": {"$in": list(digests)}}):
            state.erased[digests[each["_id"]]] = Erased(each["position"], each["at_ms"])
        for each in await self._mongo.find(TRUNCATIONS, {"slot": slot, **PRESENT}):
            state.truncated[Entity(*each["of"])] = each["position"]
        for entity in {entity for record in relevant if (entity := self._decider.truncated(record)) is not None}:
            wanted = {"slot": slot, "tenant": entity.tenant, "source": entity.source, "entity": entity.entity}
            self._add(state, await self._mongo.find(DOCUMENTS, {**wanted, "partition": slot, **PRESENT}))
        state.loaded = dict(state.documents)
        return state

    @staticmethod
    def _add(state: WorkingSet, found: Sequence[Mapping[str, Any]]) -> None:
        for each in found:
            key = key_of_name(each["_id"])
            state.documents[key] = _document(key, each)
            state.stored[key] = each

    # Save -------------------------------------------------------------------------------------------------------

    async def save(self, state: WorkingSet, progress: Progress) -> None:
        """Write what the batch changed, in one write with its progress."""
        slot = progress.partition
        head = state.head or await self._ledger.head(GROUP, slot)
        quiet = self._log.is_muted(GROUP)
        gone = state.loaded.keys() - state.documents.keys()
        # A document that came back within the batch is another one: what was made of the former has to go.
        new = {key for key in state.changed if not state.documents[key].row_id}
        writes = [Write(DOCUMENTS, name_of(key), None) for key in gone]
        for key in state.changed:
            document = state.documents[key]
            life = document.row_id or head.seq + 1
            stored = state.stored.get(key) if document.row_id else None
            work = _work(state.work[key]) if key in state.work else stored["work"] if stored else None
            fields = {name: getattr(document, name) for name in _FIELDS}
            job = self._job(state, key, stored, quiet=quiet) if document.waits else None
            model = state.jobs[key].provider if key in state.jobs and not job else stored["model"] if stored else ""
            writes.append(
                Write(
                    DOCUMENTS,
                    name_of(key),
                    {"slot": slot, "tenant": key.tenant, "life": life, "model": model, "work": work, "job": job,
                     **fields, "access": list(document.access), "shown_to": list(document.shown_to)},
                )
            )  # fmt: skip
        for key in state.fenced:
            position = state.fences.get(key)
            writes.append(Write(FENCES, name_of(key), None if position is None else {"position": position}))
        for entity, partition in state.truncated_now.items():
            truncation = {"slot": partition, "of": list(entity), "position": state.truncated[entity]}
            writes.append(Write(TRUNCATIONS, SEPARATOR.join((str(partition), *entity)), truncation))
        hints = self._hints(state, slot, gone | {key for key in new if key in state.loaded})
        writes += hints
        await self._ledger.save(head, progress, writes, state.sightings)
        self.on_told(state.told)
        if hints:
            self.on_hints()
        if any(state.documents[key].waits for key in state.changed):
            self.on_work()

    def _job(self, state: WorkingSet, key: Key, stored: Mapping[str, Any] | None, *, quiet: bool) -> dict[str, Any]:
        """Return the open job of a document; see `SqliteDocuments` for what a newer change makes of an older job."""
        document, work, before = state.documents[key], state.work.get(key), stored["job"] if stored else None
        job = {
            "state": JobState.PENDING.value, "attempts": 0, "due_at": self._clock(), "error": "",
            "lane": Lane.BACKFILL.value, "size": 0, "topic": "", "origin": 0, "since_ms": document.occurred_ms,
            "provider": self._provider, "quiet": quiet,
        }  # fmt: skip
        if work is not None:
            job |= {"lane": work.lane.value, "size": work.size, "topic": work.topic, "origin": work.offset}
        elif stored:
            job |= {"size": stored["work"]["size"]}
        if before is not None and stored is not None:
            kept = ["topic", "origin", "since_ms"]
            if stored["wanted"] == document.wanted:
                kept += ["state", "attempts", "due_at", "error", "provider"]
            job |= {name: before[name] for name in kept} | {"lane": min(before["lane"], job["lane"])}
            job["quiet"] = before["quiet"] and quiet if work is not None else before["quiet"]
        told = state.jobs.get(key)
        if told is not None and told.version == document.wanted:
            job |= {"state": told.state.value, "attempts": told.attempts, "error": told.error,
                    "provider": told.provider, "due_at": told.due_at or self._clock()}  # fmt: skip
        return job

    def _hints(self, state: WorkingSet, slot: int, gone: Collection[Key]) -> list[Write]:
        """Return the hints at what the index may hold that cannot be found any more, or shows to others."""
        reshown = set(state.reshown)
        for key in state.changed:
            document, before = state.documents[key], state.loaded.get(key)
            if document.version and not document.waits and before is not None and document.row_id:
                if before.waits and key not in state.jobs:
                    state.tidy.add(key)  # it came back to what could be found: the work on another version is void
                if (before.source, before.access) != (document.source, document.access) and key not in state.jobs:
                    reshown.add(key)
        now = self._clock()
        hints = []
        for key in {*gone, *reshown, *state.tidy}:
            work = state.work.get(key)
            show = key in reshown and key not in gone
            place = {"topic": work.topic, "origin": work.offset} if work is not None and show else {}
            hints.append(Write(HINTS, name_of(key), {"slot": slot, "show": show, "due_at": now, **place}))
        return hints


def _work(work: Work) -> dict[str, Any]:
    return {
        "content": work.content, "media_type": work.media_type, "size": work.size, "topic": work.topic,
        "partition": work.partition, "offset": work.offset,
    }  # fmt: skip


def _document(key: Key, found: Mapping[str, Any]) -> Document:
    fields = {name: found[name] for name in _FIELDS}
    fields |= {"access": tuple(found["access"]), "shown_to": tuple(found["shown_to"])}
    return Document(key, **fields, waits=found["job"] is not None, row_id=found["life"])
