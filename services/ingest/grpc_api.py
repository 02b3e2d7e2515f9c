"""IngestService over gRPC: requests in order, each acknowledged when it is durable.

A token covers everything that its stream has pushed so far, so that the last one is enough. The next request of a
stream is not read before the one in hand is in the log: that is the back-pressure.
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headwater.ingest.v1 import service_pb2, service_pb2_grpc
from services.ingest.ingestion import Ingestion
from services.kernel.log import Offsets, encode_token, position_of

Context = grpc.aio.ServicerContext[Any, Any]


class IngestApi(service_pb2_grpc.IngestServiceServicer):
    """Answers the calls of IngestService."""

    service_names = (service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name,)

    def __init__(self, ingestion: Ingestion) -> None:
        self._ingestion = ingestion

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        service_pb2_grpc.add_IngestServiceServicer_to_server(self, server)

    async def Push(
        self, request_iterator: AsyncIterator[service_pb2.PushRequest], context: Context
    ) -> AsyncIterator[service_pb2.PushResponse]:
        """Append changes; an answer a request."""
        del context
        reached: Offsets = {}
        async for request in request_iterator:
            accepted = await self._ingestion.push(request.changes, reached)
            yield service_pb2.PushResponse(
                request_id=request.request_id, position_token=_token(reached), accepted=accepted
            )

    async def PushRaw(
        self, request_iterator: AsyncIterator[service_pb2.PushRawRequest], context: Context
    ) -> AsyncIterator[service_pb2.PushRawResponse]:
        """Decode and append records; an answer a request."""
        del context
        reached: Offsets = {}
        async for request in request_iterator:
            outcome = await self._ingestion.push_raw(request, reached)
            yield service_pb2.PushRawResponse(position_token=_token(reached), **outcome._asdict())

    async def PutDocument(
        self, request: service_pb2.PutDocumentRequest, context: Context
    ) -> service_pb2.PutDocumentResponse:
        """Append a document change."""
        del context
        reached: Offsets = {}
        document_id = await self._ingestion.put_document(request.document, reached)
        return service_pb2.PutDocumentResponse(position_token=_token(reached), document_id=document_id)


def _token(reached: Offsets) -> str:
    return encode_token(position_of(reached))
