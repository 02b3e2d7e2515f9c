"""A MongoDB for tests: started by the script beside this, once a session, on a free port of loopback."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from tests.engines import CACHE, HERE, free_ports, kill


class MongoServer:
    """A server of its own data folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)
        self.uri = f"mongodb://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run("start")

    def stop(self) -> None:
        self._run("stop")

    def kill(self) -> None:
        kill(int((self.folder / "mongo.pid").read_text()))

    def _run(self, word: str) -> None:
        environment = {**os.environ, "MONGO_PORT": str(self.port)}
        command = ["nice", "-n", "15", "bash", str(HERE / "mongo.sh"), word, str(self.folder)]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def documents_in(uri: str, database: str) -> list[tuple[str, bytes]]:
    """Return everything that a database holds: the name of the collection, and the document as BSON."""
    with MongoClient[RawBSONDocument](uri, document_class=RawBSONDocument) as client:
        found = client[database]
        return [(name, bytes(each.raw)) for name in found.list_collection_names() for each in found[name].find()]


@pytest.fixture(scope="session")
def mongo_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    if not any(CACHE.glob("secantusdb-*/installed")) and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("no MongoDB is installed: run tests/engines/mongo.sh install, or set HEADWATER_ENGINES=1")
    engine = MongoServer(tmp_path_factory.mktemp("mongo"))
    engine.start()
    yield engine
    engine.stop()
