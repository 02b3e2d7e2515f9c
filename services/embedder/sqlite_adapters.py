"""Joins the parts of the knowledge base that are in the installation's SQLite database."""

import asyncio

import structlog

from services.embedder.decider import Decider
from services.embedder.ports import Adapters, Embedder
from services.embedder.sqlite_chunks import SqliteChunks
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_erasure import SqliteErasures
from services.embedder.sqlite_jobs import SqliteJobs
from services.embedder.sqlite_knowledge import SqliteKnowledge
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.vectors import VectorIndex
from services.kernel.service import Platform

log = structlog.get_logger(__name__)


def sqlite_adapters(platform: Platform, decider: Decider, model: Embedder) -> Adapters:
    """Return the knowledge base in the local database."""
    database, clock, model_id = platform.database, platform.clock, model.model_id
    index = VectorIndex(model.dimensions)
    documents = SqliteDocuments(database, index, decider, provider=model_id, clock=clock)
    jobs = SqliteJobs(database, platform.log, clock)
    chunks = SqliteChunks(database, documents, jobs, index, model_id=model_id)
    search = SqliteSearch(database, index)

    async def start() -> None:
        await asyncio.to_thread(chunks.load_index)
        search.look_for_another_model()
        # Where only the model's answers tell their length, those of before count, too.
        model.dimensions = model.dimensions or index.dimensions
        await jobs.hand_over(model_id)
        if requeued := await chunks.requeue_without_vectors(clock()):
            log.info("embedder.model_changed", model=model_id, documents=requeued)

    async def stop() -> None:
        search.close()

    return Adapters(
        documents,
        SqliteErasures(database, documents, clock=clock),
        jobs,
        chunks,
        SqliteKnowledge(database, platform.log, documents, chunks, index, model_id=model_id),
        search,
        search,
        start=start,
        stop=stop,
    )
