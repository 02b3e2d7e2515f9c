"""The knowledge base as a whole, in MongoDB and a remote index: texts, what is shown, state hash, checks."""

import zlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import orjson

from headwater.common.v1 import common_pb2, operations_pb2
from services.embedder.events import GROUP
from services.embedder.index import ChunkIndex, IndexedChunk, Shown
from services.embedder.knowledge import READ_BY
from services.embedder.mongo_chunks import forget
from services.embedder.mongo_documents import DOCUMENTS, TEXTS, key_of_name, name_of
from services.embedder.ports import Whole
from services.embedder.schema import COMPONENT
from services.embedder.state import Key
from services.kernel import freshness
from services.kernel.errors import UnavailableError
from services.kernel.hashing import state_hash
from services.kernel.log import SEPARATOR, Log
from services.kernel.mongo_ledger import PRESENT, MongoLedger
from services.kernel.mongodb import Mongo, asked

AT_A_TIME = 100  # documents
_SHOWN = ("version", "source", "shown_to", "title", "uri", "metadata", "live", "shown_ms")
Chunked = tuple[Key, str, list[IndexedChunk]]


class MongoKnowledge:
    """Implements `KnowledgeStore` and `ShownDocuments`."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, index: ChunkIndex) -> None:
        self._mongo, self._ledger, self._log, self._index = mongo, ledger, log, index

    async def shown(self, keys: Collection[Key]) -> Mapping[Key, Shown]:
        """Return what is known of documents now; those that are not there are left out."""
        names = [name_of(key) for key in keys]
        found = await self._mongo.find(DOCUMENTS, {"_id": {"$in": names}, **PRESENT}, _SHOWN) if names else []
        return {
            key_of_name(each["_id"]): Shown(
                each["version"], each["source"], tuple(each["shown_to"]), each["title"], each["uri"], each["metadata"],
                each["live"], each["shown_ms"],
            )
            for each in found
        }  # fmt: skip

    async def whole(self, key: Key) -> Whole | None:
        """Return a document; None when there is none."""
        found = (await self.shown([key])).get(key)
        if found is None:
            return None
        text = ""
        if found.version:
            texts = await self._texts([SEPARATOR.join((*key, found.version))])
            if not texts:
                raise UnavailableError(f"{key.document_id} is just being replaced: try again")
            (text,) = texts.values()
        return Whole(found.version, found.title, text, found.uri, found.access)

    async def _texts(self, names: Collection[str]) -> dict[str, str]:
        found = await self._mongo.find(TEXTS, {"_id": {"$in": list(names)}})
        return {each["_id"]: zlib.decompress(each["text"]).decode() for each in found}

    async def report(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what has been taken in; documents whose work is not done count as if it was."""
        return await freshness.report(COMPONENT, await self._ledger.sightings(tenant), self._log, READ_BY)

    async def reset(self) -> None:
        """Forget everything that the log tells again; chunks stay, since their vectors are used again."""
        await self._ledger.reset((GROUP,))

    async def reload(self) -> None:
        """Clear up after a rebuild: chunks and texts of what the log does not hold any more go."""
        async for key, version, _ in self._chunked():
            (document,) = (await self.shown([key])).values() or (None,)
            if document is None or document.version != version:
                await forget(self._mongo, self._index, key, but=document.version if document else "")
        known = {each["document"] for each in await self._mongo.find(TEXTS, {}, ["document"])}
        present = {each["_id"] for each in await self._mongo.find(DOCUMENTS, dict(PRESENT), ["_id"])}
        for name in known - present:
            await asked(self._mongo.collection(TEXTS).delete_many({"document": name}))

    async def _chunked(self) -> AsyncIterator[Chunked]:
        """Go through the versions that the index holds, each with its chunks."""
        key, version, chunks = Key("", ""), "", list[IndexedChunk]()
        async for of, of_version, chunk in self._index.everything():
            if (of, of_version) != (key, version):
                if chunks:
                    yield key, version, chunks
                key, version, chunks = of, of_version, []
            chunks.append(chunk)
        if chunks:
            yield key, version, chunks

    # Hash and checks --------------------------------------------------------------------------------------------

    async def state_hash(self, snapshot: object) -> str:
        """Return the hash of all documents, and of their chunks; not of when or how often they were embedded."""
        del snapshot  # of the local database
        return await state_hash(self._state())

    async def _state(self) -> AsyncIterator[tuple[Any, ...]]:
        batch: list[Chunked] = []
        async for each in self._chunked():
            batch.append(each)
            if len(batch) == AT_A_TIME:
                async for row in self._rows(batch):
                    yield row
                batch = []
        async for row in self._rows(batch):
            yield row
        # Those of which the index holds nothing: blank ones, and what cannot be found yet.
        pages = self._mongo.pages(DOCUMENTS, {"chunks": 0, **PRESENT}, ["version"])
        bare: list[Chunked] = [(key_of_name(found["_id"]), found["version"], []) async for found in pages]
        for start in range(0, len(bare), AT_A_TIME):
            async for row in self._rows(bare[start : start + AT_A_TIME]):
                yield row

    async def _rows(self, batch: Collection[Chunked]) -> AsyncIterator[tuple[Any, ...]]:
        names = [name_of(key) for key, _, _ in batch]
        found = await self._mongo.find(DOCUMENTS, {"_id": {"$in": names}, **PRESENT})
        documents = {each["_id"]: each for each in found}
        texts = await self._texts([SEPARATOR.join((each["_id"], each["version"])) for each in documents.values()])
        for key, version, chunks in batch:
            each = documents.get(name_of(key))
            if each is None or each["version"] != version:
                continue  # not cleared up yet
            yield (
                *key, each["source"], each["entity"], each["position"], each["occurred_ms"], each["wanted"], version,
                each["name"], each["uri"], each["metadata"], each["live"], orjson.dumps(each["access"]).decode(),
                orjson.dumps(each["shown_to"]).decode(), each["shown_ms"], each["row"], each["known_at"],
                each["chunks"], each["title"], texts.get(SEPARATOR.join((each["_id"], version)), ""),
                tuple(
                    (c.ordinal, c.start, c.end, c.text, c.context, orjson.dumps(c.headings).decode(), c.label, c.hash)
                    for c in chunks
                ),
            )  # fmt: skip

    async def checks(self) -> list[operations_pb2.Check]:
        """Check that every document has the chunks that its census says, and its text."""
        census = {
            each["_id"]: (each["version"], each["chunks"])
            async for each in self._mongo.pages(DOCUMENTS, {"version": {"$ne": ""}, **PRESENT}, ["version", "chunks"])
        }
        held = {(name_of(key), version): len(chunks) async for key, version, chunks in self._chunked()}
        texts = {each["_id"] async for each in self._mongo.pages(TEXTS, {}, ["_id"])}
        short = sum(held.get((name, version), 0) != chunks for name, (version, chunks) in census.items())
        mute = sum(SEPARATOR.join((name, version)) not in texts for name, (version, _) in census.items())
        more = sum(chunks for (name, version), chunks in held.items() if census.get(name, ("",))[0] != version)
        detail = (
            f"{sum(chunks for _, chunks in census.values())} chunks of {len(census)} documents, {short} documents "
            f"incomplete, {mute} without their text, {more} chunks still to be removed"
        )
        return [operations_pb2.Check(name="census knowledge", ok=short == mute == 0, detail=detail)]
