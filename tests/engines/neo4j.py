"""A real Neo4j for tests."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import CACHE, HERE, free_ports, kill


class Neo4jServer:
    """A server of its own data folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self.folder, self.port, self._password = folder, free_ports(1), password
        self.uri = f"bolt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run("start")

    def stop(self) -> None:
        self._run("stop")

    def kill(self) -> None:
        kill(int((self.folder / "neo4j.pid").read_text()))

    def _run(self, word: str) -> None:
        environment = {**os.environ, "NEO4J_PORT": str(self.port), "NEO4J_PASSWORD": self._password}
        command = ["nice", "-n", "5", "bash", str(HERE / "neo4j.sh"), word, str(self.folder)]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def neo4j_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4jServer]:
    if not any(path.is_dir() for path in CACHE.glob("neo4j-*")) and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("Neo4j is not installed: run tests/engines/neo4j.sh install, or set HEADWATER_ENGINES=1")
    engine = Neo4jServer(tmp_path_factory.mktemp("neo4j"))
    engine.start()
    yield engine
    engine.stop()
