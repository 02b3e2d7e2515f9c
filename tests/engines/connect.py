"""A Kafka Connect worker with Debezium beside a broker, and a PostgreSQL that it follows."""

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engines import HERE, Kafka, free_ports, kafka_engine, kill

__all__ = ["Connect", "connect_engine", "kafka_engine"]

PATIENCE_S = 90.0


class Connect:
    """The worker, which writes in transactions, and the database.

    Attributes:
        url: the worker's API.
        dsn: the database, as its superuser.
        postgres_port: the database's port.
    """

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        """Wire it; `folder` must be within reach of the user `postgres`."""
        self.kafka, self._folder = kafka, folder
        self._port, self.postgres_port = free_ports(1), free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.dsn = f"host=127.0.0.1 port={self.postgres_port} user=postgres dbname=postgres"

    def start(self) -> None:
        """Start what does not run."""
        self.start_postgres()
        self.start_worker()

    def start_worker(self) -> None:
        self._run("start", self.kafka.folder, "connect")

    def start_postgres(self) -> None:
        self._run("start", self._folder, "postgres")

    def stop_worker(self) -> None:
        self._run("stop", self.kafka.folder, "connect")

    def stop_postgres(self) -> None:
        self._run("stop", self._folder, "postgres")

    def stop(self) -> None:
        self.stop_worker()
        self.stop_postgres()

    def kill_worker(self) -> None:
        kill(int((self.kafka.folder / "connect.pid").read_text()))

    def put_connector(self, name: str, config: Mapping[str, str]) -> None:
        """Make a connector, or change it, and wait until it runs."""
        self.ask("PUT", f"/connectors/{name}/config", config)
        self.wait_running(name)

    def wait_running(self, name: str) -> None:
        """Wait until a connector and its task run; a task that has failed is started again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status = self._status(name)
            states = [status.get("connector", {}).get("state"), *(task["state"] for task in status.get("tasks", ()))]
            if len(states) > 1 and set(states) == {"RUNNING"}:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the connector {name} does not run: {status}")
            if "FAILED" in states:
                self.ask("POST", f"/connectors/{name}/restart?includeTasks=true&onlyFailed=true")
            time.sleep(0.5)

    def _status(self, name: str) -> dict[str, Any]:
        try:
            found = self.ask("GET", f"/connectors/{name}/status")
        except urllib.error.HTTPError:  # it has not heard of the connector yet, or shares the work out anew
            return {}
        return dict(found)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return what the worker's API answers."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def _run(self, word: str, folder: Path, engine: str) -> None:
        ports = {
            "KAFKA_PORT": str(self.kafka.port),
            "CONNECT_PORT": str(self._port),
            "POSTGRES_PORT": str(self.postgres_port),
        }
        environment = {**os.environ, **ports, "JAVA_HEAP": "384m", "CONNECT_EXACTLY_ONCE": "enabled"}
        command = ["nice", "-n", "10", "bash", str(HERE / "kafka.sh"), word, str(folder), engine]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def connect_engine(kafka_engine: Kafka) -> Iterator[Connect]:
    # Not in pytest's own folder, which no other user can enter, and PostgreSQL is not root.
    with tempfile.TemporaryDirectory(prefix="headwater-") as name:
        engine = Connect(kafka_engine, Path(name))
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
