"""The engines of a cluster, for the laws that are tried on one."""

from tests.engines import kafka_engine
from tests.engines.cluster import engines
from tests.engines.mongo import mongo_engine
from tests.engines.neo4j import neo4j_engine
from tests.engines.opensearch import opensearch_engine

__all__ = ["engines", "kafka_engine", "mongo_engine", "neo4j_engine", "opensearch_engine"]
