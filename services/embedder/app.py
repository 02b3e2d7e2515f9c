"""Joins the embedder: settings, model, stores, processors and the background work."""

import functools
from typing import assert_never

from headwater.embedder.v1 import service_pb2
from services.embedder import erasure
from services.embedder.chunking import Limits
from services.embedder.decider import Decider
from services.embedder.engines import remote_index
from services.embedder.events import GROUP
from services.embedder.grpc_api import EmbedderApi
from services.embedder.in_process import InProcess
from services.embedder.indexer import Indexer
from services.embedder.knowledge import Knowledge
from services.embedder.model import MiniLm
from services.embedder.ports import Adapters, Embedder
from services.embedder.searcher import Searcher
from services.embedder.settings import ModelSettings, Provider, Settings
from services.embedder.sqlite_adapters import sqlite_adapters
from services.kernel import topics
from services.kernel.enrichment import RetryPolicy, Runner
from services.kernel.errors import InvalidInputError
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service


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


def adapters_of(platform: Platform, decider: Decider, model: Embedder) -> Adapters:
    """Return where the knowledge base is: in the local database, or in MongoDB and an index of chunks.

    Raises:
        InvalidInputError: an index is configured, and not what else it needs.
    """
    index = remote_index(platform.settings.table, model_id=model.model_id, dimensions=model.dimensions)
    if index is None:
        return sqlite_adapters(platform, decider, model)
    if not platform.settings.table("mongodb"):
        raise InvalidInputError("chunks are in an index of their own, but documents nowhere: configure [mongodb], too")
    from services.embedder.mongo_adapters import mongo_adapters

    return mongo_adapters(platform, decider, model, index)


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
        log_, clock = platform.log, platform.clock
        self._model, self._decider = model, Decider(settings.tables, model.model_id)
        self._adapters = adapters_of(platform, self._decider, model)
        self._searcher = Searcher(self._adapters.search, self._adapters.shown, model, settings.vector_weight)
        self._adapters.erasures.forget_queries = self._searcher.forget
        jobs = self._adapters.jobs
        limits = Limits(aim=settings.chunk_tokens, room=model.tokens_max)
        indexer = Indexer(
            log_, jobs, self._adapters.chunks, model, limits=limits, bytes_max=settings.document_bytes_max
        )
        self._runner = Runner(jobs, indexer.work, policy, clock=clock)
        self._adapters.documents.on_work = self._runner.wake
        self._api = EmbedderApi(
            log_,
            Knowledge(self._adapters.knowledge, jobs),
            self._searcher,
            jobs,
            self._runner.wake,
            tables=tuple(settings.tables),
        )

    def service(self) -> Service:
        adapters = self._adapters
        return Service(
            name=erasure.SERVICE,
            register=self._api.register,
            service_names=[service_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name],
            processors=[
                Processor(
                    GROUP,
                    adapters.inputs,
                    adapters.documents,
                    self._decider.decide,
                    ledger=adapters.ledgers[0],
                ),
                Processor(
                    erasure.GROUP,
                    (topics.ERASURES,),
                    adapters.erasures,
                    functools.partial(erasure.decide, model_id=self._model.model_id),
                    ledger=adapters.ledgers[1],
                ),
            ],
            background=[self._runner.run, self._model.warm_up, *adapters.background],
            stores=[
                ReadModel(
                    name="knowledge",
                    groups=(GROUP,),
                    reset=adapters.knowledge.reset,
                    hash=adapters.knowledge.state_hash,
                    reload=adapters.knowledge.reload,
                    settled=adapters.jobs.all_finished,
                )
            ],
            start=adapters.start,
            stop=self._stop,
            waiting=self._waiting,
            checks=adapters.knowledge.checks,
        )

    async def _waiting(self) -> dict[str, int]:
        return {GROUP: await self._adapters.jobs.open_count()}

    async def _stop(self) -> None:
        await self._model.close()
        await self._adapters.stop()
