"""A knowledge base on a real database, without servers: documents in, searches and states out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from headwater.embedder.v1 import service_pb2 as pb, service_pb2_grpc
from headwater.ingest.v1 import events_pb2
from services.embedder.app import build
from services.embedder.ports import Embedder
from services.kernel.enrichment import RetryPolicy
from services.kernel.operations import Operations
from services.kernel.runner import Runtime
from services.kernel.settings import Settings
from tests.unit.embedder.examples import HOTELS, message


class World:
    """A running embedder."""

    def __init__(self, runtime: Runtime, stub: "service_pb2_grpc.EmbedderServiceAsyncStub") -> None:
        self.runtime, self.stub = runtime, stub
        self.log, self.database = runtime.platform.log, runtime.platform.database

    async def put(self, *changes: events_pb2.DocumentChange | events_pb2.Change) -> Any:
        return await self.log.append([message(change) for change in changes])

    async def settle(self) -> None:
        await self.operations.settle()

    @property
    def operations(self) -> Operations:
        return self.runtime.operations

    async def state(self) -> str:
        (store,) = (store for service in self.runtime.services for store in service.stores)
        with self.database.snapshot() as connection:
            return await store.hash(connection)

    async def rebuilt(self) -> str:
        (store,) = (store for service in self.runtime.services for store in service.stores)
        async for response in self.operations.rebuild(store):
            after = response.hash_after
        return after

    async def found(self, query: str, **fields: Any) -> list[pb.Hit]:
        response = await self.stub.Search(pb.SearchRequest(query=query, **fields))
        assert not response.missing
        return list(response.hits)

    def rows(self, table: str) -> int:
        return int(self.database.reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def census_holds(self) -> bool:
        sums = self.database.reader.execute("SELECT total(chunks) FROM knowledge_documents").fetchone()[0]
        return self.rows("knowledge_chunks") == self.rows("knowledge_words_docsize") == sums


RunWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def world(tmp_path: Path) -> RunWorld:
    """Run an embedder: `async with world(model) as w: ...`."""
    return lambda model, **options: running_world(tmp_path, model, **options)


@contextlib.asynccontextmanager
async def running_world(
    folder: Path, model: Embedder | None, *, tables: Sequence[Any] = (HOTELS,), policy: RetryPolicy | None = None,
    **settings: Any,
) -> AsyncIterator[World]:  # fmt: skip
    import grpc

    table = {"tables": list(tables), **settings}
    config = Settings(data=folder / "data", grpc_address="127.0.0.1:0", tables={"embedder": table})
    runtime = Runtime(config, [lambda platform: build(platform, model, policy)])
    try:
        await runtime.start()
        async with grpc.aio.insecure_channel(runtime.address) as channel:
            yield World(runtime, service_pb2_grpc.EmbedderServiceStub(channel))
    finally:
        await asyncio.wait_for(runtime.stop(), 30)
