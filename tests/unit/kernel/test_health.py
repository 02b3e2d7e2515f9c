"""The command that supervisors run to ask for a process's health."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.foreground import Foreground
from services.kernel.grpc_server import GrpcServer
from services.kernel.health import check


@pytest.fixture
async def server() -> AsyncIterator[GrpcServer]:
    server = GrpcServer("127.0.0.1:0", Foreground())
    server.bind([], [])
    await server.start()
    yield server
    await server.stop(0)


async def test_a_process_that_does_its_work_is_healthy(server: GrpcServer) -> None:
    await server.set_healthy(healthy=True)
    await asyncio.to_thread(check, server.address)


async def test_a_process_that_cannot_do_its_work_is_not(server: GrpcServer) -> None:
    await server.set_healthy(healthy=False)
    with pytest.raises(UnavailableError, match="is not serving"):
        await asyncio.to_thread(check, server.address)


async def test_nor_is_one_that_does_not_answer(server: GrpcServer) -> None:
    await server.stop(0)
    with pytest.raises(UnavailableError, match=server.address):
        await asyncio.to_thread(check, server.address)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="host:port"):
        check("7070")
