"""A cluster as one server: each call goes to the service that it is of; those about operations go to all."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from services.kernel.errors import InvalidInputError

LETTERS_AT = "ingest"  # dead letters are in the log, so that any service knows them: this one also decodes them again


class ClusterChannel:
    """What the stubs of all services can be made with; see `grpc.aio.Channel`."""

    def __init__(self, channels: Mapping[str, Any]) -> None:
        """Take the channel of every service, by its name."""
        self.channels = channels

    def _to(self, method: str) -> Any:
        service = method.split(".")[1]  # /headwater.profile.v1.ProfileService/GetProfile
        if service not in self.channels:
            raise InvalidInputError(f"[peers] {service} must be the host:port where that service answers gRPC")
        return self.channels[service]

    def unary_unary(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the callable of a method."""
        return self._to(method).unary_unary(method, *arguments, **named)

    def unary_stream(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the callable of a method."""
        return self._to(method).unary_stream(method, *arguments, **named)

    def stream_unary(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the callable of a method."""
        return self._to(method).stream_unary(method, *arguments, **named)

    def stream_stream(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Return the callable of a method."""
        return self._to(method).stream_stream(method, *arguments, **named)


class ClusterOperations:
    """The operations of all services of a cluster; see `OperationsService` of `protos/`."""

    def __init__(self, channel: ClusterChannel) -> None:
        self._stubs = {
            name: operations_pb2_grpc.OperationsServiceStub(each) for name, each in sorted(channel.channels.items())
        }

    async def GetBalance(self, request: pb.GetBalanceRequest) -> pb.GetBalanceResponse:
        """Return the balances of all groups."""
        responses = [await stub.GetBalance(request) for stub in self._stubs.values()]
        groups = sorted((group for response in responses for group in response.groups), key=lambda each: each.group)
        return pb.GetBalanceResponse(groups=groups, balanced=all(response.balanced for response in responses))

    async def GetStatus(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Return what runs in all processes."""
        status = pb.GetStatusResponse()
        for stub in self._stubs.values():
            each = await stub.GetStatus(request)
            status.version = each.version
            status.services.extend(each.services)
            status.stores.extend(each.stores)
            if not status.topics:
                status.topics.extend(each.topics)
        return status

    async def Verify(self, request: pb.VerifyRequest) -> pb.VerifyResponse:
        """Return the checks of all services."""
        responses = [await stub.Verify(request) for stub in self._stubs.values()]
        return pb.VerifyResponse(checks=[check for response in responses for check in response.checks])

    async def Rebuild(self, request: pb.RebuildRequest) -> AsyncIterator[pb.RebuildResponse]:
        """Rebuild stores, wherever they are."""
        homes: dict[str, Any] = {}
        for stub in self._stubs.values():
            homes |= {store.store: stub for store in (await stub.GetStatus(pb.GetStatusRequest())).stores}
        if unknown := sorted(set(request.stores) - set(homes)):
            raise InvalidInputError(f"there is no store {unknown[0]!r}: there are {', '.join(sorted(homes))}")
        for name in request.stores or sorted(homes):
            async for response in homes[name].Rebuild(pb.RebuildRequest(stores=[name])):
                yield response

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        """Return a page of the dead letters of all."""
        response: pb.ListDeadLettersResponse = await self._stubs[LETTERS_AT].ListDeadLetters(request)
        return response

    async def RetryDeadLetters(self, request: pb.RetryDeadLettersRequest) -> pb.RetryDeadLettersResponse:
        """Put dead letters back."""
        response: pb.RetryDeadLettersResponse = await self._stubs[LETTERS_AT].RetryDeadLetters(request)
        return response


def operations_of(channel: Any) -> Any:
    """Return what answers for operations behind a channel: one process, or a whole cluster."""
    if isinstance(channel, ClusterChannel):
        return ClusterOperations(channel)
    return operations_pb2_grpc.OperationsServiceStub(channel)
