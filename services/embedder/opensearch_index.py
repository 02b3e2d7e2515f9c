"""The index of chunks in OpenSearch: words and vectors, found by both in one pass of requests."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import orjson

from services.embedder import opensearch_documents as form
from services.embedder.index import Candidate, Candidates, IndexedChunk, Reader, Visibility, checked
from services.embedder.lexical import Statistics, Tokenizer
from services.embedder.opensearch_client import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    CONFLICT,
    NOT_FOUND,
    OpenSearchClient,
    OpenSearchSettings,
)
from services.embedder.ports import Vector
from services.embedder.query import WordQuery
from services.embedder.state import Key
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.retry import backoff_s

PAGE = 500
KEEP_ALIVE = "5m"  # between two pages of everything
SHOW_TRIES = 10
# What was removed is kept for copies that lag behind, until the engine looks, every 30 s, whether there are any.
EXPUNGE_TRIES, EXPUNGE_EVERY_S = 25, 2.0
_EXISTS = 400
_IN_THREAD = 20  # chunks: tokenising more would hold up others


class OpenSearchIndex:
    """Implements `ChunkIndex`: one index a model, under an alias that is named by the model."""

    def __init__(self, settings: OpenSearchSettings, *, model_id: str, dimensions: int = 0) -> None:
        """Wire the index; nothing is connected before it is used.

        Args:
            settings: where OpenSearch is.
            model_id: the embedding model whose vectors these are.
            dimensions: their length; 0 while only the first one can tell.
        """
        self.dimensions = dimensions
        self._settings, self._model_id = settings, model_id
        self._client, self._tokenizer = OpenSearchClient(settings), Tokenizer()
        self._all = f"{settings.prefix}-chunks-*"
        self.alias = f"{settings.prefix}-chunks-{hashlib.sha256(model_id.encode()).hexdigest()[:16]}"
        self._is_there = False
        self._refreshing = asyncio.Lock()
        self._refresh_of_all: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Make the index, unless nothing tells the length of the vectors yet."""
        self._is_there = False
        found = await self._client.ask("GET", f"/{self.alias}/_mapping", ignore=[NOT_FOUND])
        if "error" not in found:
            (mapping,) = list(found.values())[:1]
            self._check(mapping["mappings"].get("_meta", {}))
            self._is_there = True
        elif self.dimensions:
            settings = self._settings
            body = form.index_body(
                self._model_id, self.dimensions, shards=settings.shards, replicas=settings.replicas
            ) | {"aliases": {self.alias: {"is_write_index": True}}}
            answer = await self._client.ask("PUT", f"/{self.alias}-1", body, ignore=[_EXISTS])
            error = answer.get("error", {})
            if error and error.get("type") != "resource_already_exists_exception":  # another process was faster
                raise InvalidInputError(f"OpenSearch refuses to make {self.alias}: {error.get('reason')}")
            self._is_there = True

    def _check(self, meta: Mapping[str, Any]) -> None:
        expected = {
            "model_id": self._model_id,
            "dimensions": self.dimensions or meta.get("dimensions"),
            "format": form.FORMAT,
        }
        if meta != expected:
            raise InvalidInputError(
                f"the alias {self.alias} of OpenSearch leads to an index of {meta}, not of {expected}: point it to one "
                "that this model has made, or remove it"
            )
        self.dimensions = int(meta["dimensions"])

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    # Writing ----------------------------------------------------------------------------------------------------

    async def put(self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]) -> None:
        """Store chunks of a version, all or a slice of them; searchable when it returns."""
        if not chunks:
            return
        if not self._is_there:
            self.dimensions = self.dimensions or len(chunks[0].vector) // 4
            await self.start()
        checked(key, chunks, self.dimensions)
        for start in range(0, len(chunks), PAGE):  # what is written at once stays small, however long the document
            call = (key, version, visibility, chunks[start : start + PAGE])
            in_thread = len(call[-1]) > _IN_THREAD
            actions = await asyncio.to_thread(self._actions, *call) if in_thread else self._actions(*call)
            if await self._client.write(actions):
                self._is_there = False
                raise UnavailableError(f"the index {self.alias} of OpenSearch is gone: it is made again")
        await self._refresh()

    def _actions(
        self, key: Key, version: str, visibility: Visibility, chunks: Sequence[IndexedChunk]
    ) -> list[tuple[str, bytes]]:
        actions = []
        for chunk in chunks:
            tokens = self._tokenizer.tokens(chunk.context, chunk.text)
            source = form.source_of(key, version, visibility, chunk, tokens)
            actions.append((f"{key.document_id}, chunk {chunk.ordinal}", form.index_lines(self.alias, source)))
        return actions

    async def show(self, key: Key, version: str, visibility: Visibility) -> None:
        """Change who may find the chunks of a version; in effect when it returns."""
        readers = form.readers_of(visibility)
        for attempt in range(1, SHOW_TRIES + 1):
            found = [
                hit
                async for hit in self._hits(_of(key, version), fenced=True)
                if not readers.items() <= hit["_source"].items()
            ]
            if not found:
                return
            actions = [
                (
                    f"{key.document_id}, chunk {hit['_source']['ordinal']}",
                    form.index_lines(
                        self.alias,
                        {**hit["_source"], **readers},
                        if_seq_no=hit["_seq_no"],
                        if_primary_term=hit["_primary_term"],
                    ),
                )
                for hit in found
            ]
            lost = await self._client.write(actions)
            await self._refresh()
            if not lost:
                return
            # Somebody else wrote, or removed, them in between.
            await asyncio.sleep(backoff_s(attempt, base_s=BACKOFF_FIRST_S, cap_s=BACKOFF_MAX_S))
        raise UnavailableError(f"{key.document_id} is being written by others all the time: try again")

    async def remove(self, key: Key, *, but: str = "") -> int:
        """Take the chunks of a document away, of all versions but one; return how many there were."""
        index, removed = self.alias if but else self._all, 0
        await self._refresh(index)  # what is not searchable would not be found
        while True:
            found = await self._search(
                {"size": PAGE, "query": _of(key, but=but), "_source": False, "track_total_hits": False}, index
            )
            if not found:
                return removed
            actions = [
                (
                    key.document_id,
                    orjson.dumps({"delete": {"_index": hit["_index"], "_id": hit["_id"]}}) + b"\n",
                )
                for hit in found
            ]
            removed += len(found) - len(await self._client.write(actions))
            await self._refresh(index)

    async def expunge(self) -> int:
        """Rewrite the segments in which removed chunks still are; return how many these hold yet."""
        left = 0
        for _ in range(EXPUNGE_TRIES):
            await self._client.ask("POST", f"/{self._all}/_flush", wait_if_ongoing=True)
            await self._client.ask("POST", f"/{self._all}/_forcemerge", only_expunge_deletes=True)
            answer = await self._client.ask("GET", f"/{self._all}/_stats/docs")
            left = int(answer["_all"]["total"].get("docs", {}).get("deleted", 0))
            if not left:
                for step in ("_refresh", "_flush"):  # lets go of the files of before
                    await self._client.ask("POST", f"/{self._all}/{step}")
                break
            await asyncio.sleep(EXPUNGE_EVERY_S)
        return left

    async def _refresh(self, index: str = "") -> None:
        """Make what was written searchable: one refresh serves all who ask before it begins."""
        if index and index != self.alias:
            await self._client.ask("POST", f"/{index}/_refresh")
            return
        if self._refresh_of_all is None:
            self._refresh_of_all = asyncio.ensure_future(self._refresh_once())
            # It may fail when nobody waits for it any more.
            self._refresh_of_all.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._refresh_of_all)

    async def _refresh_once(self) -> None:
        async with self._refreshing:
            self._refresh_of_all = None  # whoever asks from here on has the next one
            await self._client.ask("POST", f"/{self.alias}/_refresh", ignore=[NOT_FOUND])

    # Reading ----------------------------------------------------------------------------------------------------

    async def remains(self, key: Key) -> int:
        """Return how many chunks of a document are stored, of any version and model."""
        await self._refresh(self._all)
        return await self._count(self._all, {"query": _of(key)})

    async def count(self) -> int:
        """Return how many chunks are stored."""
        return await self._count(self.alias, {})

    async def _count(self, index: str, body: Mapping[str, Any]) -> int:
        answer = await self._client.ask("POST", f"/{index}/_count", body, ignore=[NOT_FOUND])
        return int(answer.get("count", 0))

    async def vectors(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the vectors that this model has made already, by hash."""
        wanted, known = [hash_.hex() for hash_ in hashes], dict[bytes, bytes]()
        for start in range(0, len(wanted), PAGE):
            names = wanted[start : start + PAGE]
            body = {
                "size": len(names),
                "query": {"terms": {"hash": names}},
                "collapse": {"field": "hash"},
                "_source": ["hash", "embedding"],
                "track_total_hits": False,
            }
            for hit in await self._search(body):
                source = hit["_source"]
                known[bytes.fromhex(source["hash"])] = form.vector_of(source).tobytes()
        return known

    async def stored(self, key: Key, version: str) -> list[IndexedChunk]:
        """Return the chunks of a version in order."""
        return [form.chunk_of(hit["_source"]) async for hit in self._hits(_of(key, version))]

    async def openings(self, versions: Mapping[Key, str]) -> dict[Key, Candidate]:
        """Return the first chunk of documents, each of a version, without scores."""
        names = [form.chunk_id(form.document_of(key), version, 0) for key, version in versions.items()]
        body = {"size": len(names), "query": {"ids": {"values": names}}, "_source": form.SOURCE}
        nothing = Statistics(0, 0, ())
        found = await self._search(body) if names else []
        candidates = form.candidates_of([hit["_source"] for hit in found], (), nothing, None)
        return {candidate.key: candidate for candidate in candidates}

    async def everything(self) -> AsyncIterator[tuple[Key, str, IndexedChunk]]:
        """Go through all chunks, by document, version and ordinal."""
        async for hit in self._hits({"match_all": {}}):
            source = hit["_source"]
            yield form.key_of(source), source["version"], form.chunk_of(source)

    async def search(self, words: WordQuery, vector: Vector | None, reader: Reader, count: int) -> Candidates:
        """Return the best chunks that a reader may find: `count` by meaning and `count` by words."""
        missing = list[str]()
        if vector is not None and len(vector) != self.dimensions:
            if self.dimensions:
                missing.append("search by meaning: the query's vector is of another model than those of the documents")
            vector = None
        bodies = [form.statistics_query(words.phrases)]
        if vector is not None:
            bodies.append(form.nearest(vector, reader, count))
        answers = await self._client.search_many(self.alias, bodies)
        if answers is None:
            return Candidates([], -1.0, 0.0, 0, missing, by_vectors=False)
        statistics = form.statistics_of(answers[0])
        near = answers[1]["hits"]["hits"] if vector is not None else []
        worded = []
        if any(statistics.holders):
            body = form.by_words(words.phrases, statistics, reader, count)
            worded = ((await self._client.search_many(self.alias, [body])) or answers)[0]["hits"]["hits"]
        sources = {hit["_id"]: hit["_source"] for hit in (*near, *worded)}
        # In a thread: many candidates would hold up others.
        chunks = await asyncio.to_thread(form.candidates_of, sources.values(), words.phrases, statistics, vector)
        return Candidates(
            chunks,
            # The score that this engine makes of a cosine is half of 1 + cosine.
            cosine_rest=2 * near[-1]["_score"] - 1 if len(near) == count else -1.0,
            bm25_rest=form.SCORE_SLACK * worded[-1]["_score"] if len(worded) == count else 0.0,
            total=statistics.chunks,
            missing=missing,
            by_vectors=bool(near),
        )

    async def _search(self, body: Mapping[str, Any], index: str = "") -> list[dict[str, Any]]:
        answers = await self._client.search_many(index or self.alias, [body])
        hits: list[dict[str, Any]] = answers[0]["hits"]["hits"] if answers else []
        return hits

    async def _hits(self, query: Mapping[str, Any], *, fenced: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Go through what a query finds, as it is at this moment, by document, version and ordinal."""
        opened = await self._client.ask(
            "POST", f"/{self.alias}/_search/point_in_time", ignore=[NOT_FOUND], keep_alive=KEEP_ALIVE
        )
        if "pit_id" not in opened:
            return
        pit = opened["pit_id"]
        body = {
            "size": PAGE,
            "query": query,
            "pit": {"id": pit, "keep_alive": KEEP_ALIVE},
            "sort": ["document", "version", "ordinal"],
            "seq_no_primary_term": fenced,
            "track_total_hits": False,
        }
        try:
            while True:
                answer = await self._client.ask("POST", "/_search", body, allow_partial_search_results=False)
                hits = answer["hits"]["hits"]
                for hit in hits:
                    yield hit
                if len(hits) < PAGE:
                    return
                body["search_after"] = hits[-1]["sort"]
        finally:
            await self._client.ask("DELETE", "/_search/point_in_time", {"pit_id": [pit]}, ignore=[NOT_FOUND, CONFLICT])


def _of(key: Key, version: str = "", *, but: str = "") -> dict[str, Any]:
    """Return the query for the chunks of a document: of a version, or of all but one."""
    wanted: dict[str, Any] = {"filter": [{"term": {"document": form.document_of(key)}}]}
    if version:
        wanted["filter"].append({"term": {"version": version}})
    if but:
        wanted["must_not"] = [{"term": {"version": but}}]
    return {"bool": wanted}
