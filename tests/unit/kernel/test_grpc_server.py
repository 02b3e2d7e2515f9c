"""Connections age, so that clients come to know replicas that are new; what is under way does not notice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.kernel.foreground import Foreground
from services.kernel.grpc_server import GrpcServer
from services.kernel.service import Peers

AGE_S = 1.0
PATIENCE_S = 60.0


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Answer every request with the connection that it came by."""
    async for _ in requests:
        yield context.peer().encode()


async def whence(request: bytes, context: Any) -> bytes:
    """Answer by which connection the request came."""
    del request
    await asyncio.sleep(0.02)  # so that some calls are under way when a connection has its age
    peer: str = context.peer()
    return peer.encode()


def register(server: grpc.aio.Server) -> None:
    handlers: dict[str, Any] = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Whence": grpc.unary_unary_rpc_method_handler(whence),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))


async def test_calls_and_streams_outlive_the_connections_of_their_client() -> None:
    server = GrpcServer("127.0.0.1:0", Foreground(), connection_age_s=AGE_S)
    server.bind([register], ["test.Service"])
    await server.start()
    peers = Peers(lambda _: server.address)
    channel = peers.channel("test")
    call: Any = channel.unary_unary("/test.Service/Whence")
    stream: Any = channel.stream_stream("/test.Service/Echo")()
    seen: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(set(seen)) < 3:  # connections, one after the other
            seen += await asyncio.gather(*(call(b"") for _ in range(5)))  # each of them is answered
            await stream.write(b"")
            assert await stream.read() == seen[0]  # the stream is where it was
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    await peers.close()
    await server.stop(1.0)
