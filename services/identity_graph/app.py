"""Joins the parts of the identity graph: `build(platform)`."""

from services.identity_graph import consumer
from services.identity_graph.columns import Extractor
from services.identity_graph.model import Kinds
from services.identity_graph.settings import Settings
from services.identity_graph.sqlite_store import SqliteGraph
from services.kernel.freshness import FreshnessTable
from services.kernel.processor import Processor
from services.kernel.sqlite import Database


def changes_processor(database: Database, settings: Settings) -> Processor[consumer.Work]:
    """Return the consumer group that keeps the graph."""
    store = consumer.ChangeStore(
        SqliteGraph(database), FreshnessTable(database, "identity_graph"), Extractor(settings), Kinds(settings)
    )
    return consumer.processor(store)
