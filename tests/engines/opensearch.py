"""OpenSearch for tests: started by the script beside this, once a session, on a free port of loopback."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import CACHE, HERE, free_ports, kill


class OpenSearch:
    """A node of its own data folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run("start")

    def stop(self) -> None:
        self._run("stop")

    def kill(self) -> None:
        kill(int((self.folder / "opensearch.pid").read_text()))

    def _run(self, word: str) -> None:
        environment = {**os.environ, "OPENSEARCH_PORT": str(self.port)}
        command = ["nice", "-n", "15", "bash", str(HERE / "opensearch.sh"), word, str(self.folder)]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def opensearch_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearch]:
    if not any(CACHE.glob("opensearch-*")) and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("OpenSearch is not installed: run tests/engines/opensearch.sh install, or set HEADWATER_ENGINES=1")
    engine = OpenSearch(tmp_path_factory.mktemp("opensearch"))
    engine.start()
    yield engine
    engine.stop()
