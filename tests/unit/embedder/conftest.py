"""A knowledge base on a real database, without servers: documents in, searches and states out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headwater.common.v1 import operations_pb2, operations_pb2_grpc
from headwater.embedder.v1 import service_pb2 as pb, service_pb2_grpc
from headwater.ingest.v1 import events_pb2
from services.embedder.app import build
from services.embedder.in_process import InProcess
from services.embedder.ports import Model
from services.kernel.enrichment import RetryPolicy
from services.kernel.operations import Operations
from services.kernel.runner import Runtime
from services.kernel.settings import Settings
from tests.unit.embedder.examples import HOTELS, PARTITIONS, message


class World:
    """A running embedder."""

    def __init__(self, runtime: Runtime, channel: grpc.aio.Channel) -> None:
        self.runtime, self.channel = runtime, channel
        self.stub = service_pb2_grpc.EmbedderServiceStub(channel)
        self.log, self.database = runtime.platform.log, runtime.platform.database

    async def put(self, *changes: events_pb2.DocumentChange | events_pb2.Change) -> Any:
        return await self.log.append([message(change, place) for change in changes for place in places(change)])

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

    async def verified(self) -> operations_pb2.VerifyResponse:
        stub = operations_pb2_grpc.OperationsServiceStub(self.channel)
        return await stub.Verify(operations_pb2.VerifyRequest())

    async def found(self, query: str, **fields: Any) -> list[pb.Hit]:
        response = await self.stub.Search(pb.SearchRequest(query=query, **fields))
        assert not response.missing
        return list(response.hits)

    def rows(self, table: str) -> int:
        return int(self.database.reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def census_holds(self) -> bool:
        sums = self.database.reader.execute("SELECT total(chunks) FROM knowledge_documents").fetchone()[0]
        return self.rows("knowledge_chunks") == self.rows("knowledge_words_docsize") == int(sums)


def places(change: events_pb2.DocumentChange | events_pb2.Change) -> Sequence[int | None]:
    """The partitions that a change is written to: None is that of its key."""
    is_everywhere = isinstance(change, events_pb2.Change) and change.operation == events_pb2.OPERATION_TRUNCATE
    return range(PARTITIONS) if is_everywhere else (None,)


RunWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def world(tmp_path: Path) -> RunWorld:
    """Run an embedder: `async with world(model) as w: ...`."""
    return lambda model, **options: running_world(tmp_path, model, **options)


@contextlib.asynccontextmanager
async def running_world(
    folder: Path,
    model: Model | None,
    /,
    *,
    tables: Sequence[Any] = (HOTELS,),
    policy: RetryPolicy | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """Run an embedder with a model; without one, with the one that the settings name."""
    table = {"tables": list(tables), **settings}
    config = Settings(data=folder / "data", grpc_address="127.0.0.1:0", tables={"embedder": table})
    embedder = InProcess(model) if model is not None else None
    runtime = Runtime(config, [lambda platform: build(platform, embedder, policy)])
    try:
        await runtime.start()
        async with grpc.aio.insecure_channel(runtime.address) as channel:
            yield World(runtime, channel)
    finally:
        async with asyncio.timeout(30):
            await runtime.stop()
