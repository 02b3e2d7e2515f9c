"""Joins the parts of the identity graph in Neo4j."""

from collections.abc import Callable, Mapping
from typing import Any

from services.identity_graph.model import Kinds
from services.identity_graph.neo4j_client import Neo4j
from services.identity_graph.neo4j_erasures import Neo4jErasures
from services.identity_graph.neo4j_freshness import Neo4jFreshness
from services.identity_graph.neo4j_ledger import Neo4jLedger
from services.identity_graph.neo4j_lifecycle import Neo4jLifecycle
from services.identity_graph.neo4j_queries import Neo4jQueries
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.identity_graph.neo4j_store import Neo4jGraph
from services.identity_graph.ports import Adapters, IdentityStores
from services.kernel.sqlite import Database


def neo4j_adapters(
    table: Mapping[str, Any], database: Database, kinds: Kinds, partitions: Callable[[], int], component: str
) -> Adapters:
    """Return the graph in Neo4j; nothing is connected yet.

    Args:
        table: the table [neo4j] of the configuration.
        database: the local database.
        kinds: the kinds of identifiers.
        partitions: the number of partitions of the topic `changes`.
        component: the name of the read model.

    Raises:
        InvalidInputError: a setting is wrong.
    """
    neo4j = Neo4j(Neo4jSettings.from_config(table))
    changes, subjects = Neo4jLedger(neo4j), Neo4jLedger(neo4j)
    erasures = Neo4jErasures(neo4j, subjects)
    return Adapters(
        IdentityStores(Neo4jQueries(neo4j, kinds), erasures, Neo4jFreshness(neo4j, component)),
        Neo4jLifecycle(neo4j, database, partitions),
        changes=Neo4jGraph(changes, partitions),
        subjects=Neo4jGraph(subjects, partitions),
        erasures=erasures,
        ledgers=(changes, subjects),
    )
