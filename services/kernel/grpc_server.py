"""The gRPC server of a process: health, reflection, and errors as statuses."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from services.kernel.errors import HeadwaterError, UnavailableError
from services.kernel.foreground import Foreground
from services.kernel.service import CHANNEL_OPTIONS

STANDARD = "/grpc."  # health and reflection
LIVENESS = "liveness"
# A client keeps its connections for as long as they last, and would never call a replica that came later. So they end:
# the client is told, looks up again who there is, and connects anew. Calls and streams that are under way go on, on the
# old connection, until they end by themselves (gRPC's own default for the grace is to wait for ever).
CONNECTION_AGE_S = 300.0

log = structlog.get_logger(__name__)


class EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Turns a HeadwaterError into its status (anything else is a bug: INTERNAL, and logged), and notes the call."""

    def __init__(self, foreground: Foreground, refuse: Callable[[], None]) -> None:
        self._foreground, self._refuse = foreground, refuse

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the call's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        self._foreground.called(method)
        refuse = self._refuse if not method.startswith(STANDARD) else _nothing
        if handler.response_streaming:
            inner = handler.unary_stream or handler.stream_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(_streaming(inner, method, refuse), handler.request_deserializer, handler.response_serializer)
        inner = handler.unary_unary or handler.stream_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(_unary(inner, method, refuse), handler.request_deserializer, handler.response_serializer)


def _nothing() -> None:
    pass


def _unary(inner: Any, method: str, refuse: Callable[[], None]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            refuse()
            return await inner(request, context)
        except Exception as error:  # noqa: BLE001 - the edge of the process: everything becomes a status
            await _abort(error, method, context)

    return call


def _streaming(inner: Any, method: str, refuse: Callable[[], None]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            refuse()
            async for response in inner(request, context):
                yield response
        except Exception as error:  # noqa: BLE001 - as above
            await _abort(error, method, context)

    return call


async def _abort(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, HeadwaterError):
        await context.abort(error.status, str(error))
    if isinstance(error, asyncio.CancelledError | grpc.aio.UsageError):
        raise error
    log.error("grpc.bug", method=method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"{method}: an internal error, logged by the server: {error!r:.300}")


class GrpcServer:
    """A server with the standard services beside the given ones."""

    def __init__(self, address: str, foreground: Foreground, connection_age_s: float = CONNECTION_AGE_S) -> None:
        self._address = address
        self._health = health_aio.HealthServicer()
        self.waits_for: str | None = None  # until it is there, calls are refused
        self.server = grpc.aio.server(
            interceptors=[EdgeInterceptor(foreground, self._refuse)],
            # Without this a second process could listen on the same port, and take every other call.
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", int(connection_age_s * 1000)),
                *CHANNEL_OPTIONS,
            ],
        )
        self.names: list[str] = []
        self.address = ""

    def bind(self, registrations: Sequence[Callable[[grpc.aio.Server], None]], names: Sequence[str]) -> None:
        """Take the address; calls are answered after `start`.

        Args:
            registrations: each adds servicers.
            names: the full names of the gRPC services, for health and reflection.

        Raises:
            UnavailableError: the address is taken.
        """
        for register in registrations:
            register(self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self.names = [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*self.names, reflection.SERVICE_NAME], self.server)
        try:
            port = self.server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {self._address}: is another process there? Choose another address with "
                "--grpc-address (port 0 takes a free one)"
            ) from error
        self.address = f"{self._address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Answer calls; those about health from now on, all others while nothing is waited for.

        Health knows every service, the whole process (an empty name), and `liveness`: that the process runs at all,
        whatever becomes of what it depends on.
        """
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()

    def _refuse(self) -> None:
        if self.waits_for is not None:
            raise UnavailableError(f"this service is starting, and waits for {self.waits_for}: try again later")

    async def set_healthy(self, *, healthy: bool) -> None:
        """Say whether the services can do their work."""
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self.names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and give those under way `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
