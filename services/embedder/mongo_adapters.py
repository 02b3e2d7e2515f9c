"""Joins the parts of the knowledge base that are in MongoDB and a remote index: any number of workers share it."""

import structlog

from services.embedder.decider import Decider
from services.embedder.index import ChunkIndex
from services.embedder.mongo_chunks import MongoChunks
from services.embedder.mongo_documents import DOCUMENTS, FENCES, HINTS, TRUNCATIONS, MongoDocuments
from services.embedder.mongo_erasure import MongoErasures
from services.embedder.mongo_jobs import MongoJobs
from services.embedder.mongo_knowledge import MongoKnowledge
from services.embedder.mongo_upkeep import MongoUpkeep
from services.embedder.ports import Adapters, Embedder
from services.kernel import topics
from services.kernel.mongo_ledger import MongoLedger
from services.kernel.mongodb import Mongo, MongoSettings
from services.kernel.service import Platform

log = structlog.get_logger(__name__)


def mongo_adapters(platform: Platform, decider: Decider, model: Embedder, index: ChunkIndex) -> Adapters:
    """Return the knowledge base with its documents in MongoDB and its chunks in an index."""
    clock, provider = platform.clock, model.model_id
    mongo = Mongo(MongoSettings.from_config(platform.settings.table("mongodb")))
    ledger = MongoLedger(mongo, "embedder", [DOCUMENTS, FENCES, TRUNCATIONS, HINTS])
    documents = MongoDocuments(mongo, ledger, platform.log, decider, provider=provider, clock=clock)
    jobs = MongoJobs(mongo, platform.log, clock, provider=provider)
    knowledge = MongoKnowledge(mongo, ledger, platform.log, index)
    upkeep = MongoUpkeep(mongo, index, jobs, clock)
    documents.on_told = jobs.came_back
    documents.on_hints = upkeep.wake

    async def start() -> None:
        await mongo.start()
        await ledger.start()
        await documents.start()
        await index.start()
        # Where only the model's answers tell their length, those of before count, too.
        model.dimensions = model.dimensions or index.dimensions
        if requeued := await jobs.requeue():
            log.info("embedder.model_changed", model=provider, documents=requeued)

    async def stop() -> None:
        await index.close()
        await mongo.close()

    return Adapters(
        documents,
        MongoErasures(mongo, ledger, platform.log, index, clock=clock),
        jobs,
        MongoChunks(mongo, index, jobs, clock),
        knowledge,
        index,
        knowledge,
        inputs=(topics.DOCUMENTS, topics.CHANGES, topics.RESULTS),
        ledgers=(ledger, ledger),
        background=[upkeep.run],
        start=start,
        stop=stop,
    )
