"""The log and the stores under each of their adapters."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.kernel.log import Log
from services.kernel.runner import Build
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS
from tests.conftest import Running, RunService
from tests.engines import Kafka, forget_topics, kafka_engine
from tests.engines.kafka_tls import secure_kafka
from tests.engines.mongo import MongoServer, mongo_engine

if TYPE_CHECKING:
    from services.kernel.kafka_log import KafkaLog

__all__ = ["kafka_engine", "mongo_engine", "secure_kafka"]

ENGINE = (pytest.mark.slow, pytest.mark.engine)
Tables = dict[str, dict[str, Any]]
OpenKafka = Callable[[], Awaitable["KafkaLog"]]


@pytest.fixture(autouse=True)
async def topics_go_with_their_test(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    yield
    if request.node.get_closest_marker("engine"):
        await forget_topics()


@pytest.fixture
async def open_kafka(kafka_engine: Kafka) -> AsyncIterator[OpenKafka]:
    """Open logs, all on the same topics, which are this test's own."""
    from services.kernel.kafka_log import KafkaLog
    from services.kernel.kafka_settings import KafkaSettings

    settings = KafkaSettings(kafka_engine.address, prefix=f"{uuid.uuid4().hex}.", replication=1)
    opened: list[KafkaLog] = []

    async def open_one() -> KafkaLog:
        log = KafkaLog(settings)
        opened.append(log)
        await log.start()
        await log.create_topics(TOPICS)
        return log

    yield open_one
    for log in opened:
        await log.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=(pytest.mark.slow, pytest.mark.engine))])
async def any_log(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Log]:
    """The log: in each adapter one after the other."""
    if request.param == "sqlite":
        log = SqliteLog(database)
        await log.create_topics(TOPICS)
        yield log
        return
    from services.kernel.kafka_log import KafkaLog
    from services.kernel.kafka_settings import KafkaSettings

    engine: Kafka = request.getfixturevalue("kafka_engine")
    other = KafkaLog(KafkaSettings(engine.address, prefix=f"{uuid.uuid4().hex}.", replication=1))
    await other.start()
    await other.create_topics(TOPICS)
    yield other
    await other.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=ENGINE)])
def log_engine(request: pytest.FixtureRequest) -> Tables:
    """The settings of where the log is: embedded, or topics of Kafka that are this test's own."""
    return {} if request.param == "sqlite" else _kafka_tables(request.getfixturevalue("kafka_engine"))


@pytest.fixture(params=["sqlite", pytest.param("mongodb", marks=ENGINE)])
def store_engine(request: pytest.FixtureRequest) -> Tables:
    """The settings of where log and stores are: embedded, or in Kafka and MongoDB, this test's own."""
    if request.param == "sqlite":
        return {}
    mongo: MongoServer = request.getfixturevalue("mongo_engine")
    tables = _kafka_tables(request.getfixturevalue("kafka_engine"))
    return tables | {"mongodb": {"uri": mongo.uri, "database": f"t{uuid.uuid4().hex}"}}


def on(engines: Tables, run_service: RunService) -> RunService:
    """Return what runs services with the settings of engines beside their own."""

    def run(
        *builds: Build, settings_tables: Tables | None = None, data: Path | None = None
    ) -> AbstractAsyncContextManager[Running]:
        return run_service(*builds, settings_tables={**engines, **(settings_tables or {})}, data=data)

    return run


def _kafka_tables(kafka: Kafka) -> Tables:
    return {"kafka": {"bootstrap_servers": kafka.address, "prefix": f"{uuid.uuid4().hex}.", "replication": 1}}
