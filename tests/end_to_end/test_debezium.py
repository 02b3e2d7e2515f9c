"""What stands in a real PostgreSQL stands in Headwater: through Debezium, Kafka Connect and Kafka, whatever ends.

The connector and the settings are those of `docs/debezium.md`.
"""

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from psycopg.rows import dict_row

from benchmarks.server import Server
from headwater.common.v1 import operations_pb2, operations_pb2_grpc
from headwater.ingest.v1 import events_pb2
from headwater.profile.v1 import service_pb2, service_pb2_grpc
from services.kernel import topics
from tests.engines.connect import Connect, connect_engine, kafka_engine

__all__ = ["connect_engine", "kafka_engine"]

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(400)]

PAGE = (Path(__file__).parents[2] / "docs" / "debezium.md").read_text(encoding="utf-8")
PATIENCE_S = 120.0
TABLES = """
    CREATE TABLE customers (
      id bigint PRIMARY KEY, email text NOT NULL, full_name text, tier text NOT NULL DEFAULT 'basic',
      credit numeric(12,2), vip boolean NOT NULL DEFAULT false, bio text);
    ALTER TABLE customers ALTER COLUMN bio SET STORAGE EXTERNAL;
    CREATE TABLE bookings (id bigint PRIMARY KEY, customer_id bigint NOT NULL, city text)
"""
Row = dict[str, Any]


def block(language: str, number: int = 0) -> str:
    """A fenced block of the page."""
    return str(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number])


class World:
    """The database, its connector, and the Headwater behind them."""

    def __init__(self, connect: Connect, folder: Path) -> None:
        self.connect, self.folder = connect, folder
        self.config = folder / "headwater.toml"
        self.config.write_text(block("toml").replace("127.0.0.1:9092", connect.kafka.address))
        self.server: Server | None = None

    def start(self) -> None:
        self.server = Server(self.folder / "data", "--config", str(self.config))

    def kill(self) -> None:
        assert self.server is not None
        self.server.kill()

    def connector(self, **changed: str) -> dict[str, str]:
        config: dict[str, str] = json.loads(block("json"))["config"]
        return {**config, "database.port": str(self.connect.postgres_port), **changed}

    def sql(self, *statements: str) -> None:
        """Commit each statement by itself."""
        with psycopg.connect(self.connect.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def query(self, statement: str) -> list[Row]:
        with psycopg.connect(self.connect.dsn, row_factory=dict_row) as connection:
            return connection.execute(statement.encode()).fetchall()

    def expected(self, table: str) -> dict[str, Row]:
        """The table's rows by key."""
        return {
            str(row["id"]): {name: str(v) if isinstance(v, Decimal) else v for name, v in row.items()}
            for row in self.query(f"SELECT * FROM {table}")
        }

    def found(self, table: str, source: str = "crm") -> dict[str, Row]:
        """The rows that the profiles are made of, by key."""
        rows = self._read("SELECT key, body FROM profile_rows WHERE source=? AND entity=? AND body IS NOT NULL",
                          (source, table))  # fmt: skip
        return {key.rpartition("/")[2]: json.loads(body) for key, body in rows}

    def events(self, table: str, source: str = "crm") -> Counter[str]:
        """How many changes of a table there are in the log, by their operation."""
        [(number, partitions)] = self._read("SELECT id, partitions FROM log_topics WHERE name=?", (topics.CHANGES,))
        counts: Counter[str] = Counter()
        for partition in range(partitions):
            for (value,) in self._read(f"SELECT value FROM log_{number}_{partition}", ()):
                change = events_pb2.Change.FromString(value)
                if (change.source, change.entity) == (source, table):
                    counts[events_pb2.Operation.Name(change.operation).removeprefix("OPERATION_").lower()] += 1
        return counts

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.folder / 'data' / 'headwater.db'}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def until_equal(self, table: str = "customers", source: str = "crm") -> None:
        """Wait until the rows are those of the table."""
        expected = self.expected(table)
        until(lambda: self.found(table, source) == expected, lambda: difference(expected, self.found(table, source)))

    def channel(self) -> grpc.Channel:
        assert self.server is not None
        return grpc.insecure_channel(self.server.grpc)


def until(holds: Callable[[], bool], otherwise: Callable[[], str] = lambda: "it does not come to hold") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        time.sleep(0.1)


def difference(expected: dict[str, Row], found: dict[str, Row]) -> str:
    keys = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
    shown = [f"{key}: {str(expected.get(key))[:200]} is {str(found.get(key))[:200]}" for key in keys[:3]]
    return f"{len(keys)} rows differ, of {len(expected)}: {shown}"


@pytest.fixture(scope="module")
def world(connect_engine: Connect, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(connect_engine, tmp_path_factory.mktemp("debezium"))
    made.sql(*TABLES.split(";"))
    made.sql(
        "INSERT INTO customers SELECT n, 'c' || n || '@example.com', 'Customer ' || n, 'basic', n * 1.25 "
        "FROM generate_series(1, 200) n",
        "INSERT INTO bookings SELECT n, n % 200 + 1, 'Town ' || n FROM generate_series(1, 100) n",
    )
    made.start()
    # While the snapshot is taken, others write.
    writer = threading.Thread(
        target=made.sql, args=[f"UPDATE customers SET tier = 'gold' WHERE id = {n}" for n in range(1, 101)]
    )
    writer.start()
    connect_engine.put_connector("crm", made.connector())
    writer.join()
    yield made
    connect_engine.ask("DELETE", "/connectors/crm")
    assert made.server is not None
    made.server.stop()


def test_the_snapshot_and_what_happens_meanwhile_come_without_gap_or_repetition(world: World) -> None:
    world.until_equal("customers")
    world.until_equal("bookings")
    assert world.events("bookings")["snapshot"] == 100
    assert world.events("customers")["snapshot"] == 200


def test_a_profile_is_made_of_the_row(world: World) -> None:
    world.sql("INSERT INTO customers VALUES (1001, 'ada@example.com', 'Ada Byron', 'gold', 10.50)")
    world.until_equal()
    request = service_pb2.GetProfileRequest()
    request.identifier.kind, request.identifier.value = "email", "ada@example.com"
    with world.channel() as channel:
        stub: Any = service_pb2_grpc.ProfileServiceStub(channel)

        def rows() -> list[Row]:
            try:
                return [json.loads(record.row_json) for record in stub.GetProfile(request).profile.records]
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND  # not yet
                return []

        until(lambda: rows() == [world.expected("customers")["1001"]])


def test_inserts_updates_and_deletes(world: World) -> None:
    before = world.events("customers")
    world.sql(
        "INSERT INTO customers SELECT n, 'n' || n || '@example.com', NULL, 'x', 0 FROM generate_series(2001, 2050) n",
        "UPDATE customers SET credit = credit + 1, vip = true WHERE id BETWEEN 2001 AND 2030",
        "DELETE FROM customers WHERE id BETWEEN 2021 AND 2040",
        "INSERT INTO customers VALUES (2021, 'again@example.com')",
    )
    world.until_equal()
    assert world.events("customers") - before == {"insert": 51, "update": 30, "delete": 20}


def test_several_changes_of_a_row_in_a_transaction_and_one_that_is_rolled_back(world: World) -> None:
    with psycopg.connect(world.connect.dsn) as connection:
        connection.execute("INSERT INTO customers VALUES (2101, 'one@example.com')")
        for number in range(20):
            connection.execute("UPDATE customers SET credit = %s WHERE id = 2101", (number,))
        connection.commit()
        connection.execute("UPDATE customers SET tier = 'never' WHERE id = 2101")
        connection.rollback()
    world.until_equal()


def test_a_row_gets_another_primary_key(world: World) -> None:
    world.sql(
        "INSERT INTO customers VALUES (2201, 'moves@example.com', 'Moves')",
        "UPDATE customers SET id = 2202 WHERE id = 2201",
        "UPDATE customers SET id = 2201, tier = 'gold' WHERE id = 2202",
    )
    world.until_equal()


def test_a_long_value_that_was_left_alone_stays(world: World) -> None:
    world.sql(
        "INSERT INTO customers (id, email, bio) VALUES (2301, 'long@example.com', repeat('abcdefghij', 2000))",
        "UPDATE customers SET tier = 'gold' WHERE id = 2301",
        "UPDATE customers SET credit = 7 WHERE id = 2301",
    )
    world.until_equal()
    assert len(world.found("customers")["2301"]["bio"]) == 20_000
    world.sql("UPDATE customers SET bio = NULL WHERE id = 2301")
    world.until_equal()


def test_a_long_value_goes_with_a_new_primary_key_where_the_old_row_is_told(world: World) -> None:
    world.sql(
        "ALTER TABLE customers REPLICA IDENTITY FULL",
        "INSERT INTO customers (id, email, bio) VALUES (2311, 'long@example.com', repeat('klmnopqrst', 2000))",
        "UPDATE customers SET id = 2312 WHERE id = 2311",
        "UPDATE customers SET tier = 'basic' WHERE id = 2312",
    )
    try:
        world.until_equal()
        assert len(world.found("customers")["2312"]["bio"]) == 20_000
    finally:
        world.sql("DELETE FROM customers WHERE id = 2312", "ALTER TABLE customers REPLICA IDENTITY DEFAULT")


def test_a_table_is_truncated_and_filled_again(world: World) -> None:
    world.sql("TRUNCATE bookings", "INSERT INTO bookings VALUES (7, 1, 'after'), (1001, 2, 'new')")
    world.until_equal("bookings")
    world.sql("TRUNCATE bookings")
    world.until_equal("bookings")
    world.sql("INSERT INTO bookings SELECT n, n, 'Town' FROM generate_series(1, 40) n")
    world.until_equal("bookings")


def test_columns_come_are_retyped_and_go(world: World) -> None:
    world.sql(
        "ALTER TABLE customers ADD COLUMN locale text NOT NULL DEFAULT 'en-GB'",
        "INSERT INTO customers (id, email, locale) VALUES (2401, 'locale@example.com', 'de-AT')",
        "UPDATE customers SET id = id",
    )
    world.until_equal()
    world.sql(
        "ALTER TABLE customers ALTER COLUMN locale DROP DEFAULT, ALTER COLUMN locale DROP NOT NULL",
        "ALTER TABLE customers ALTER COLUMN locale TYPE integer USING length(locale)",
        "INSERT INTO customers (id, email, locale) VALUES (2402, 'number@example.com', 7)",
        "UPDATE customers SET id = id",
    )
    world.until_equal()
    assert world.found("customers")["2402"]["locale"] == 7
    world.sql(
        "ALTER TABLE customers DROP COLUMN locale",
        "INSERT INTO customers (id, email) VALUES (2403, 'gone@example.com')",
        "UPDATE customers SET id = id",
    )
    world.until_equal()


class Load:
    """Single commits, one after the other, while something ends."""

    def __init__(self, world: World, first: int, rows: int = 250) -> None:
        self.rows, self._before, self._world = rows, world.events("customers"), world
        statements = []
        for n in range(first, first + rows):
            statements.append(f"INSERT INTO customers (id, email) VALUES ({n}, 'l{n}@example.com')")
            statements.append(f"UPDATE customers SET credit = {n} WHERE id = {max(first, n - n % 7)}")
        self._thread = threading.Thread(target=world.sql, args=statements)
        self._thread.start()

    def check(self) -> None:
        """What was committed came once, and stands as it stands there."""
        self._thread.join()
        self._world.until_equal()
        came = self._world.events("customers") - self._before
        assert came == {"insert": self.rows, "update": self.rows}


def test_the_connector_starts_again(world: World) -> None:
    load = Load(world, 10_000)
    world.connect.ask("POST", "/connectors/crm/restart?includeTasks=true")
    world.connect.wait_running("crm")
    load.check()


def test_kafka_connect_is_killed(world: World) -> None:
    load = Load(world, 20_000)
    time.sleep(0.3)
    world.connect.kill_worker()
    world.connect.start_worker()
    world.connect.wait_running("crm")
    load.check()


def test_headwater_is_killed(world: World) -> None:
    load = Load(world, 30_000)
    for pause in (0.2, 0.0, 0.4):
        time.sleep(pause)
        world.kill()
        world.start()
    load.check()


def test_kafka_is_killed(world: World) -> None:
    load = Load(world, 40_000)
    time.sleep(0.3)
    world.connect.kafka.kill()
    world.connect.kafka.start()
    world.connect.wait_running("crm")
    load.check()


def test_postgresql_starts_again(world: World) -> None:
    world.sql("INSERT INTO customers (id, email) VALUES (50000, 'before@example.com')")
    world.connect.stop_postgres()
    world.connect.start_postgres()
    world.sql("INSERT INTO customers (id, email) VALUES (50001, 'after@example.com')")
    world.connect.wait_running("crm")
    world.until_equal()


def test_the_slot_moves_on_while_the_tables_are_quiet_and_heartbeats_are_told(world: World) -> None:
    def confirmed() -> list[Row]:
        return world.query(
            "SELECT active, confirmed_flush_lsn::text AS lsn FROM pg_replication_slots "
            "WHERE slot_name = 'headwater_crm' AND confirmed_flush_lsn > '" + begin + "'::pg_lsn"
        )

    [row] = world.query("SELECT pg_current_wal_lsn()::text AS lsn")
    begin = row["lsn"]
    world.sql("CREATE TABLE elsewhere (n int)", "INSERT INTO elsewhere SELECT generate_series(1, 1000)")
    until(lambda: [each["active"] for each in confirmed()] == [True])
    with world.channel() as channel:
        stub: Any = service_pb2_grpc.ProfileServiceStub(channel)
        freshness = stub.GetFreshness(service_pb2.GetFreshnessRequest()).freshness
    [source] = [each for each in freshness.sources if each.source == "crm"]
    assert source.HasField("heartbeat_at")


def test_flattened_and_with_schemas(world: World) -> None:
    """Another connector on the same table, whose converters and transform are others."""
    config = world.connector(**{
        **json.loads(block("json", 1)), "topic.prefix": "crm.flat", "slot.name": "headwater_flat",
        "publication.name": "headwater_flat", "table.include.list": "public.bookings",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "true",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter", "key.converter.schemas.enable": "true",
    })  # fmt: skip
    world.connect.put_connector("flat", config)
    try:
        world.until_equal("bookings", "crm.flat")
        world.sql(
            "UPDATE bookings SET city = 'Graz' WHERE id < 5", "DELETE FROM bookings WHERE id = 6",
            "INSERT INTO bookings VALUES (600, 1, 'Linz')", "UPDATE bookings SET id = 601 WHERE id = 600",
        )  # fmt: skip
        world.until_equal("bookings", "crm.flat")
        world.until_equal("bookings")
    finally:
        world.connect.ask("DELETE", "/connectors/flat")


def test_at_the_end_the_laws_hold(world: World) -> None:
    world.until_equal("customers")
    world.until_equal("bookings")
    with world.channel() as channel:
        stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        assert not stub.ListDeadLetters(operations_pb2.ListDeadLettersRequest()).entries
        checks = stub.Verify(operations_pb2.VerifyRequest()).checks
    assert [check for check in checks if not check.ok] == []
    assert any(check.name.startswith("topics ") and " 0 gone" in check.detail for check in checks)
