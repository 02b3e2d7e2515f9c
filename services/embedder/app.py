"""Joins the embedder: settings, model, stores, processors and the background work."""

import asyncio
import functools
from collections.abc import Collection
from typing import assert_never

import structlog

from headwater.common.v1 import operations_pb2
from headwater.embedder.v1 import service_pb2
from services.embedder import sqlite_erasure
from services.embedder.chunking import Limits
from services.embedder.decider import Decider
from services.embedder.grpc_api import EmbedderApi
from services.embedder.in_process import InProcess
from services.embedder.indexer import Indexer
from services.embedder.knowledge import Knowledge
from services.embedder.model import MiniLm
from services.embedder.ports import Embedder
from services.embedder.search import Searcher
from services.embedder.settings import ModelSettings, Provider, Settings
from services.embedder.sqlite_chunks import SqliteChunks
from services.embedder.sqlite_documents import SqliteDocuments
from services.embedder.sqlite_jobs import GROUP, SqliteJobs
from services.embedder.vectors import VectorIndex
from services.kernel import topics
from services.kernel.enrichment import RetryPolicy, Runner
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service

ERASURE_GROUP = "embedder-erasure"
log = structlog.get_logger(__name__)


@functools.cache
def default_model() -> MiniLm:
    """The model of this process; loaded when it is first used."""
    return MiniLm()


def embedder_of(settings: ModelSettings) -> Embedder:
    """Return the model that the settings name; nothing is loaded, and no connection made, before it is used."""
    provider = Provider(settings.provider)
    match provider:
        case Provider.ONNX:
            return InProcess(default_model())
        case Provider.OPENAI:
            from services.embedder.openai_provider import OpenAiEmbedder

            return OpenAiEmbedder(settings, tokenizer=default_model())
        case Provider.SENTENCE_TRANSFORMERS:
            from services.embedder.sentence_transformers_provider import SentenceTransformersModel

            return InProcess(SentenceTransformersModel(settings))
        case _:
            assert_never(provider)


def build(platform: Platform, embedder: Embedder | None = None, policy: RetryPolicy | None = None) -> Service:
    """Return the service on an installation's log and database.

    Args:
        platform: what it runs on.
        embedder: the embedding model; by default as the settings say.
        policy: how failures of the model are retried; by default as the settings say.
    """
    settings = Settings.from_config(platform.settings.table("embedder"))
    model = embedder if embedder is not None else embedder_of(settings.model)
    return _App(platform, settings, model, policy or _policy(settings, model)).service()


def _policy(settings: Settings, model: Embedder) -> RetryPolicy:
    return RetryPolicy(
        attempts_max=settings.attempts_max,
        slots=model.documents_at_once,
        live_slots=model.live_documents,
        bytes_max=settings.memory_bytes_max,
    )


class _App:
    """The parts of the service, joined."""

    def __init__(self, platform: Platform, settings: Settings, model: Embedder, policy: RetryPolicy) -> None:
        database, log_ = platform.database, platform.log
        self._clock, self._model = platform.clock, model
        self._decider = Decider(settings.tables, model.model_id)
        self._index = VectorIndex(model.dimensions)
        self._documents = SqliteDocuments(
            database, self._index, self._decider, provider=model.model_id, clock=platform.clock
        )
        self._jobs = SqliteJobs(database, log_, platform.clock)
        self._chunks = SqliteChunks(database, self._documents, self._jobs, self._index, model_id=model.model_id)
        limits = Limits(aim=settings.chunk_tokens, room=model.tokens_max)
        self._indexer = Indexer(
            log_, self._jobs, self._chunks, model, limits=limits, bytes_max=settings.document_bytes_max
        )
        self._searcher = Searcher(database, self._index, model, settings.vector_weight)
        self._erasures = sqlite_erasure.SqliteErasures(
            database, self._documents, clock=platform.clock, forget_queries=self._searcher.forget
        )
        self._knowledge = Knowledge(database, log_, self._documents, self._jobs, self._index, model_id=model.model_id)
        self._runner = Runner(self._jobs, self._indexer.work, policy, clock=platform.clock)
        self._documents.on_work = self._runner.wake
        self._api = EmbedderApi(
            log_, self._knowledge, self._searcher, self._jobs, self._runner.wake, tables=tuple(settings.tables)
        )

    def service(self) -> Service:
        return Service(
            name=sqlite_erasure.SERVICE,
            register=self._api.register,
            service_names=[service_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name],
            processors=[
                Processor(GROUP, (topics.DOCUMENTS, topics.CHANGES), self._documents, self._decider.decide),
                Processor(
                    ERASURE_GROUP,
                    (topics.ERASURES,),
                    self._erasures,
                    functools.partial(sqlite_erasure.decide, model_id=self._model.model_id),
                ),
            ],
            background=[self._runner.run, self._model.warm_up],
            stores=[
                ReadModel(
                    name="knowledge",
                    groups=(GROUP,),
                    reset=self._knowledge.reset,
                    hash=self._knowledge.state_hash,
                    reload=self._chunks.sweep,
                    settled=self._jobs.all_finished,
                )
            ],
            start=self._start,
            stop=self._stop,
            waiting=lambda: {GROUP: self._jobs.open_count()},
            checks=self._checks,
        )

    async def _start(self) -> None:
        await asyncio.to_thread(self._chunks.load_index)
        self._searcher.look_for_another_model()
        # Where only the model's answers tell their length, those of before count, too.
        self._model.dimensions = self._model.dimensions or self._index.dimensions
        await self._jobs.hand_over(self._model.model_id)
        if requeued := await self._chunks.requeue_without_vectors(self._clock()):
            log.info("embedder.model_changed", model=self._model.model_id, documents=requeued)

    async def _stop(self) -> None:
        await self._model.close()
        self._searcher.close()

    async def _checks(self) -> Collection[operations_pb2.Check]:
        return await self._knowledge.checks()
