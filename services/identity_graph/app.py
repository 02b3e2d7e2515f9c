"""Joins the parts of the identity graph: `build(platform)`."""

from collections.abc import Sequence

from headwater.identity_graph.v1 import events_pb2, service_pb2
from services.identity_graph import consumer, erasure
from services.identity_graph.columns import Extractor
from services.identity_graph.grpc_api import IdentityGraphApi
from services.identity_graph.model import Kinds
from services.identity_graph.ports import IdentityStores
from services.identity_graph.renewal import Renewal
from services.identity_graph.settings import Settings
from services.identity_graph.sqlite_erasures import SqliteErasures
from services.identity_graph.sqlite_lifecycle import SqliteLifecycle, hash_of
from services.identity_graph.sqlite_queries import SqliteQueries
from services.identity_graph.sqlite_store import SqliteGraph
from services.kernel import topics
from services.kernel.freshness import FreshnessTable
from services.kernel.log import Record
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service
from services.kernel.sqlite import Database

NAME = "identity_graph"


def changes_processor(database: Database, settings: Settings) -> Processor[consumer.Work]:
    """Return the consumer group that keeps the graph."""
    store = consumer.ChangeStore(
        SqliteGraph(database), FreshnessTable(database, NAME), Extractor(settings), Kinds(settings)
    )
    return consumer.processor(store)


def build(platform: Platform) -> Service:
    """Build the service; raises InvalidInputError when its settings are wrong."""
    settings = Settings.from_config(platform.settings.table(NAME))
    kinds, database, log = Kinds(settings), platform.database, platform.log
    graph, erasures, freshness = SqliteGraph(database), SqliteErasures(database), FreshnessTable(database, NAME)
    subjects = erasure.SubjectStore(graph, erasures, kinds, lambda: log.partitions(topics.CHANGES), platform.clock)
    lifecycle = SqliteLifecycle(database)
    renewal = Renewal(lifecycle, database, log, settings)
    api = IdentityGraphApi(
        IdentityStores(SqliteQueries(database, kinds), erasures, freshness), log, settings, platform.clock
    )

    async def reset() -> None:
        await lifecycle.reset()
        await erasures.reset()
        freshness.reset()

    async def seed(records: Sequence[Record]) -> None:
        await lifecycle.seed(((record.key or b"").decode(), *_seed(record)) for record in records)

    return Service(
        name=NAME,
        register=api.register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["IdentityGraphService"].full_name],
        start=renewal.start,
        background=[renewal.tell_of_ghosts],
        processors=[changes_processor(database, settings), erasure.processor(subjects)],
        stores=[
            ReadModel(NAME, (consumer.GROUP, erasure.GROUP), reset, hash_of, seed_topic=topics.ASSIGNMENTS, seed=seed)
        ],
    )


def _seed(record: Record) -> tuple[int | None, int]:
    """Return the first sighting and the generation that an assignment tells; no sighting when it was erased."""
    if record.value is None:
        return None, 0
    event = events_pb2.RecordAssigned.FromString(record.value)
    return event.first_seen.ToMilliseconds(), event.generation
