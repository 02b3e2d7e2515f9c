"""Joins the parts of the identity graph: `build(platform)`."""

from collections.abc import Callable, Sequence

from headwater.identity_graph.v1 import service_pb2
from services.identity_graph import consumer, erasure
from services.identity_graph.assignments import told_by
from services.identity_graph.columns import Extractor
from services.identity_graph.grpc_api import IdentityGraphApi
from services.identity_graph.model import Kinds
from services.identity_graph.ports import Adapters, IdentityStores
from services.identity_graph.renewal import Renewal
from services.identity_graph.settings import Settings
from services.identity_graph.sqlite_erasures import SqliteErasures
from services.identity_graph.sqlite_lifecycle import SqliteLifecycle
from services.identity_graph.sqlite_queries import SqliteQueries
from services.identity_graph.sqlite_store import SqliteGraph
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.freshness import FreshnessTable
from services.kernel.log import Record
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service
from services.kernel.sqlite import Database

NAME = "identity_graph"


def sqlite_adapters(database: Database, kinds: Kinds) -> Adapters:
    """Return the graph in the local database."""
    erasures, freshness = SqliteErasures(database), FreshnessTable(database, NAME)
    graph = SqliteGraph(database, freshness)
    return Adapters(
        IdentityStores(SqliteQueries(database, kinds), erasures, freshness),
        SqliteLifecycle(database, erasures, freshness),
        changes=graph,
        subjects=graph,
        erasures=erasures,
        ledgers=(None, None),
    )


def changes_processor(adapters: Adapters, settings: Settings) -> Processor[consumer.Work]:
    """Return the consumer group that keeps the graph."""
    store = consumer.ChangeStore(adapters.changes, Extractor(settings), Kinds(settings))
    return consumer.processor(store, adapters.ledgers[0])


def subjects_processor(
    adapters: Adapters, settings: Settings, partitions: Callable[[], int], clock: Callable[[], float]
) -> Processor[erasure.Work]:
    """Return the consumer group that takes subjects out."""
    store = erasure.SubjectStore(adapters.subjects, adapters.erasures, Kinds(settings), partitions, clock)
    return erasure.processor(store, adapters.ledgers[1])


def build(platform: Platform) -> Service:
    """Build the service; raises InvalidInputError when its settings are wrong."""
    settings = Settings.from_config(platform.settings.table(NAME))
    log = platform.log

    def partitions() -> int:
        return log.partitions(topics.CHANGES)

    if table := platform.settings.table("neo4j"):
        if not platform.settings.table("kafka"):
            raise InvalidInputError("[neo4j] holds the identity graph of a cluster: configure [kafka], too")
        from services.identity_graph.neo4j_adapters import neo4j_adapters

        adapters = neo4j_adapters(table, platform.database, Kinds(settings), partitions, NAME)
    else:
        adapters = sqlite_adapters(platform.database, Kinds(settings))
    life = adapters.life
    renewal = Renewal(life, platform.database, log, settings)
    api = IdentityGraphApi(adapters.stores, log, settings, platform.clock)

    async def seed(records: Sequence[Record]) -> None:
        await life.seed([told_by(record) for record in records])

    return Service(
        name=NAME,
        register=api.register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["IdentityGraphService"].full_name],
        start=renewal.start,
        stop=life.close,
        background=[renewal.tell_of_ghosts, renewal.keep_whole],
        processors=[
            changes_processor(adapters, settings),
            subjects_processor(adapters, settings, partitions, platform.clock),
        ],
        stores=[
            ReadModel(
                NAME, (consumer.GROUP, erasure.GROUP), life.reset, life.hash, seed_topic=topics.ASSIGNMENTS, seed=seed
            )
        ],
    )
