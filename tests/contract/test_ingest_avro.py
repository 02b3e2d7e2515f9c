"""Avro pushed into the service, with a schema registry over real HTTP that can be away, or be wrong."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from aiohttp import encode_basic_auth, web

from headwater.ingest.v1 import events_pb2, service_pb2, service_pb2_grpc
from services.ingest.app import build
from services.kernel import topics
from tests.conftest import RunService
from tests.contract.conftest import Tables, on
from tests.unit.ingest.test_avro import TEXTS, envelope


@pytest.fixture
def run_service(run_service: RunService, log_engine: Tables) -> RunService:
    """Run services with each adapter of the log."""
    return on(log_engine, run_service)


class Registry:
    """A schema registry: what it answers may be changed."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status, self.url = 200, ""
        self.user = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.user = request.headers.get("Authorization", "")
        number = int(request.match_info["number"])
        if self.status != 200:
            return web.Response(status=self.status, text="<html>no</html>")
        if number not in TEXTS:
            return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)
        return web.json_response({"schema": TEXTS[number]})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Registry]:
    registry = Registry()
    application = web.Application()
    application.router.add_get("/schemas/ids/{number}", registry.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    registry.url = f"http://{host}:{port}"
    try:
        yield registry
    finally:
        await runner.cleanup()


async def push(channel: grpc.aio.Channel, *records: bytes) -> service_pb2.PushRawResponse:
    stub: Any = service_pb2_grpc.IngestServiceStub(channel)
    call = stub.PushRaw(iter([service_pb2.PushRawRequest(format="auto", records=records)]))
    answers: list[service_pb2.PushRawResponse] = [answer async for answer in call]
    return answers[0]


async def changes(log: Any) -> list[events_pb2.Change]:
    found = []
    for partition in range(log.partitions(topics.CHANGES)):
        records = await log.read(topics.CHANGES, partition, 0)
        found += [events_pb2.Change.FromString(record.value) for record in records]
    return found


async def test_schemas_are_fetched_once(run_service: RunService) -> None:
    async with serving() as registry:
        table = {"schema_registry": {"url": registry.url, "username": "ada", "password": "x"}}
        async with run_service(build, settings_tables={"ingest": table}) as running:
            for _ in range(2):
                answer = await push(running.channel, envelope(), envelope("u"))
                assert (answer.accepted, answer.dead_lettered) == (2, 0)
            assert {change.record for change in await changes(running.platform.log)} == {"cdc/customers/1"}
    assert registry.asked == ["/schemas/ids/300"]
    assert registry.user == encode_basic_auth("ada", "x")


@pytest.mark.parametrize("status", [500, 401, 404])
async def test_a_registry_that_does_not_answer_makes_records_wait(run_service: RunService, status: int) -> None:
    async with serving() as registry:
        registry.status = status
        table = {"schema_registry": {"url": registry.url}}
        async with run_service(build, settings_tables={"ingest": table}) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await push(running.channel, envelope())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert sum(await running.platform.log.end(topics.DEAD_LETTERS)) == 0
            registry.status = 200
            assert (await push(running.channel, envelope())).accepted == 1


async def test_a_registry_that_is_not_there_makes_records_wait(run_service: RunService) -> None:
    table = {"schema_registry": {"url": "http://127.0.0.1:1"}}
    async with run_service(build, settings_tables={"ingest": table}) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await push(running.channel, envelope())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sum(await running.platform.log.end(topics.DEAD_LETTERS)) == 0


async def test_only_what_the_registry_does_not_know_is_given_up(run_service: RunService) -> None:
    async with serving() as registry:
        table = {"schema_registry": {"url": registry.url}}
        async with run_service(build, settings_tables={"ingest": table}) as running:
            answer = await push(running.channel, b"\0\0\0\0\1x", envelope())
            assert (answer.accepted, answer.dead_lettered) == (1, 1)
            assert "knows no schema 1" in answer.errors[0]
