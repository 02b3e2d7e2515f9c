"""Joins the gateway: settings, peers, the model, the read model of conversations."""

import asyncio

from headwater.rag_gateway.v1 import service_pb2
from services.kernel import topics
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service
from services.rag_gateway.answering import Answerer
from services.rag_gateway.ask import Gateway
from services.rag_gateway.conversations import ERASURE_GROUP, SERVICE, TURNS_GROUP, decide_erasure, decide_turn
from services.rag_gateway.grpc_api import RagGatewayApi
from services.rag_gateway.llm import OpenAiModel
from services.rag_gateway.peers import PeerCalls
from services.rag_gateway.ports import LanguageModel
from services.rag_gateway.preparing import Preparer
from services.rag_gateway.settings import Settings
from services.rag_gateway.sqlite_store import SqliteErasures, SqliteTurns
from services.rag_gateway.words import term_of


async def _warm_up() -> None:
    """Load the stemmer beside everything else, so that the first question does not wait for it."""
    await asyncio.to_thread(term_of, "warm")


def build(platform: Platform) -> Service:
    """Return the service on an installation's log and database."""
    settings = Settings.from_config(platform.settings.table(SERVICE))
    model: LanguageModel | None = OpenAiModel(settings.llm) if settings.llm.base_url else None
    conversations = SqliteTurns(platform.database)
    peers = PeerCalls(platform.peers, settings)
    preparer = Preparer(
        settings=settings, log=platform.log, clock=platform.clock, peers=peers, conversations=conversations
    )
    gateway = Gateway(preparer, Answerer(peers, model), platform.log)
    api = RagGatewayApi(gateway, conversations)
    return Service(
        name=SERVICE,
        register=api.register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["RagGatewayService"].full_name],
        processors=[
            Processor(TURNS_GROUP, (topics.CONVERSATIONS,), conversations, decide_turn),
            Processor(ERASURE_GROUP, (topics.ERASURES,), SqliteErasures(platform), decide_erasure),
        ],
        stores=[
            ReadModel(
                name="conversations", groups=(TURNS_GROUP,), reset=conversations.reset, hash=conversations.state_hash
            )
        ],
        background=[_warm_up],
        stop=model.close if model is not None else None,
    )
