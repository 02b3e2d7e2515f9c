"""RagGatewayService: requests in, answers out."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headwater.rag_gateway.v1 import service_pb2 as pb, service_pb2_grpc
from services.kernel.errors import InvalidInputError
from services.rag_gateway.ask import Gateway
from services.rag_gateway.ports import Conversations

Context = grpc.aio.ServicerContext[Any, Any]


class RagGatewayApi(service_pb2_grpc.RagGatewayServiceServicer):
    """Answers from the gateway and the read model of conversations."""

    def __init__(self, gateway: Gateway, conversations: Conversations) -> None:
        self._gateway, self._conversations = gateway, conversations

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        service_pb2_grpc.add_RagGatewayServiceServicer_to_server(self, server)

    async def Ask(self, request: pb.AskRequest, context: Context) -> AsyncIterator[pb.AskResponse]:
        """Answer a question; the answer streams."""
        del context
        async for piece in self._gateway.ask(request.question):
            yield piece

    async def Compose(self, request: pb.ComposeRequest, context: Context) -> pb.ComposeResponse:
        """Return the context and the prompt that Ask would use."""
        del context
        return await self._gateway.compose(request.question)

    async def GetConversation(self, request: pb.GetConversationRequest, context: Context) -> pb.GetConversationResponse:
        """Return the turns of a conversation, oldest first; one that nobody had has none."""
        del context
        if not request.conversation_id:
            raise InvalidInputError("GetConversation: name the conversation by its conversation_id")
        turns = await self._conversations.turns(request.tenant, request.conversation_id)
        response = pb.GetConversationResponse(turns=turns)
        response.read_at.GetCurrentTime()
        return response
