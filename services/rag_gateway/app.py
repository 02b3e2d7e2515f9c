"""Joins the gateway: settings, peers, the model, the read model of conversations."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from headwater.rag_gateway.v1 import service_pb2
from services.kernel import topics
from services.kernel.log import Ledger
from services.kernel.processor import Processor, Store
from services.kernel.service import Platform, ReadModel, Service
from services.rag_gateway.answering import Answerer
from services.rag_gateway.ask import Gateway
from services.rag_gateway.conversations import (
    ERASURE_GROUP,
    SERVICE,
    TURNS_GROUP,
    Erasures,
    decide_erasure,
    decide_turn,
)
from services.rag_gateway.grpc_api import RagGatewayApi
from services.rag_gateway.llm import OpenAiModel
from services.rag_gateway.peers import PeerCalls
from services.rag_gateway.ports import LanguageModel, TurnStore
from services.rag_gateway.preparing import Preparer
from services.rag_gateway.settings import Settings
from services.rag_gateway.sqlite_store import SqliteErasures, SqliteTurns
from services.rag_gateway.words import term_of


class Stores(NamedTuple):
    """Where the conversations are.

    Attributes:
        turns, erasures: the states of the two groups.
        ledger: theirs; None where they are in the local database.
        start, stop: connect, and disconnect.
    """

    turns: TurnStore
    erasures: Store[Erasures]
    ledger: Ledger | None = None
    start: Callable[[], Awaitable[None]] | None = None
    stop: Callable[[], Awaitable[None]] | None = None


def stores_of(platform: Platform) -> Stores:
    """Return the stores: in MongoDB where that is configured, else in the local database."""
    table = platform.settings.table("mongodb")
    if not table:
        return Stores(SqliteTurns(platform.database), SqliteErasures(platform))
    from services.kernel.mongo_ledger import MongoLedger
    from services.kernel.mongodb import Mongo, MongoSettings
    from services.rag_gateway.mongo_store import MongoErasures, MongoTurns

    mongo = Mongo(MongoSettings.from_config(table))
    ledger = MongoLedger(mongo, "gateway")
    turns = MongoTurns(mongo, ledger)

    async def start() -> None:
        await mongo.start()
        await ledger.start()
        await turns.start()

    return Stores(turns, MongoErasures(mongo, ledger, platform.log, platform.clock), ledger, start, mongo.close)


async def _warm_up() -> None:
    """Load the stemmer beside everything else, so that the first question does not wait for it."""
    await asyncio.to_thread(term_of, "warm")


def build(platform: Platform) -> Service:
    """Return the service on an installation's log and database."""
    settings = Settings.from_config(platform.settings.table(SERVICE))
    model: LanguageModel | None = OpenAiModel(settings.llm) if settings.llm.base_url else None
    stores = stores_of(platform)
    conversations = stores.turns
    peers = PeerCalls(platform.peers, settings)
    preparer = Preparer(
        settings=settings, log=platform.log, clock=platform.clock, peers=peers, conversations=conversations
    )
    gateway = Gateway(preparer, Answerer(peers, model), platform.log)
    api = RagGatewayApi(gateway, conversations)

    async def stop() -> None:
        for close in (model.close if model is not None else None, stores.stop):
            if close is not None:
                await close()

    return Service(
        name=SERVICE,
        register=api.register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["RagGatewayService"].full_name],
        processors=[
            Processor(TURNS_GROUP, (topics.CONVERSATIONS,), conversations, decide_turn, ledger=stores.ledger),
            Processor(ERASURE_GROUP, (topics.ERASURES,), stores.erasures, decide_erasure, ledger=stores.ledger),
        ],
        stores=[
            ReadModel(
                name="conversations", groups=(TURNS_GROUP,), reset=conversations.reset, hash=conversations.state_hash
            )
        ],
        background=[_warm_up],
        start=stores.start,
        stop=stop,
    )
