"""Joins the parts of the feedback service: `build(platform) -> Service`."""

import importlib.util
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import grpc
import structlog

from headwater.common.v1 import operations_pb2
from headwater.feedback.v1 import service_pb2, service_pb2_grpc
from services.feedback import decider, projection
from services.feedback.classifier import Classifier, Models
from services.feedback.erasure import SERVICE, Eraser
from services.feedback.exporter import Exporter
from services.feedback.grpc_api import FeedbackServicer
from services.feedback.reconcile import INPUTS, KpiTable, differences, recomputed
from services.feedback.sentiment import NAME
from services.feedback.settings import Settings
from services.feedback.sqlite_jobs import SqliteJobs
from services.feedback.sqlite_kpis import SqliteObservations
from services.feedback.sqlite_store import SqliteAnswers
from services.feedback.sqlite_tables import positions
from services.kernel import topics
from services.kernel.hashing import state_hash
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service

ANSWERS, KPIS = "feedback-answers", "feedback-kpis"
DIFFERENCES_SHOWN = 3
Work = Callable[[], Coroutine[Any, Any, None]]

log = structlog.get_logger(__name__)


def build(platform: Platform) -> Service:
    """Return the service; nothing runs yet."""
    database = platform.database
    settings = Settings.from_config(platform.settings.table("feedback"))
    jobs = SqliteJobs(database, NAME) if _classifies(settings) else None
    answers = SqliteAnswers(database, settings.event_time, jobs)
    observations = SqliteObservations(database, settings)
    models, exporter = Models(database), Exporter(database, ANSWERS, in_cluster=_in_cluster(platform))
    eraser = Eraser(platform, exporter, models, KPIS)
    answers.on_erased = eraser.wake
    classifier = Classifier(platform, jobs, models, ANSWERS) if jobs is not None else None
    background: list[Work] = [eraser.run]
    if classifier is not None:
        background.append(classifier.run)
    if classifier is not None and settings.learn:
        background.append(models.learn_forever)
    servicer = FeedbackServicer(
        platform.log, observations, exporter, settings, clock=platform.clock, answers_group=ANSWERS, kpis_group=KPIS
    )

    def register(server: grpc.aio.Server) -> None:
        service_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)

    async def start() -> None:
        if touched := await observations.renew():
            log.info("feedback.kpis_defined_anew", answers=touched)

    async def checks() -> Collection[operations_pb2.Check]:
        return [await reconcile(platform, settings, answers, observations)]

    return Service(
        name=SERVICE,
        register=register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name],
        processors=processors(answers, observations),
        background=background,
        stores=[_read_model(answers, observations, classifier)],
        start=start,
        checks=checks,
    )


def processors(answers: SqliteAnswers, observations: SqliteObservations) -> Sequence[Processor[Any]]:
    """The two consumer groups: events to answers, answers to KPIs."""
    return (
        Processor(ANSWERS, INPUTS, answers, decider.decide, decider.finish, internal_topics=(topics.ANSWERS_TOUCHED,)),
        Processor(KPIS, (topics.ANSWERS_TOUCHED,), observations, projection.decide, projection.finish),
    )


def _in_cluster(platform: Platform) -> bool:
    return bool(platform.settings.table("kafka"))


def _classifies(settings: Settings) -> bool:
    if settings.classifier == "off":
        return False
    if importlib.util.find_spec("vaderSentiment") is None:
        log.warning(
            "feedback.no_classifier", cure="pip install 'headwater[feedback]', or feedback.classifier = \"off\""
        )
        return False
    return True


def _read_model(answers: SqliteAnswers, observations: SqliteObservations, classifier: Classifier | None) -> ReadModel:
    async def reset() -> None:
        await answers.reset()
        await observations.reset()

    async def state(connection: sqlite3.Connection) -> str:
        return await state_hash(row for store in (answers, observations) for row in store.rows(connection))

    return ReadModel(
        name=SERVICE,
        groups=(ANSWERS, KPIS),
        reset=reset,
        hash=state,
        internal_topics=(topics.ANSWERS_TOUCHED,),
        settled=classifier.settled if classifier is not None else None,
    )


async def reconcile(
    platform: Platform, settings: Settings, answers: SqliteAnswers, observations: SqliteObservations
) -> operations_pb2.Check:
    """Check that the KPIs in the table are those that follow from the log; for an installation that stands still."""
    with platform.database.snapshot() as connection:
        table: KpiTable = observations.table(connection)
        reached = positions(connection, ANSWERS, in_cluster=_in_cluster(platform))
        erased = list(answers.erased_turns(connection))
    found = differences(table, await recomputed(platform.log, reached, settings, erased))
    detail = f"{len(table)} KPIs in the table, the same from the log"
    if found:
        detail = f"{len(found)} KPIs differ: " + "; ".join(found[:DIFFERENCES_SHOWN])
    return operations_pb2.Check(name="feedback KPIs reconcile with the log", ok=not found, detail=detail)
