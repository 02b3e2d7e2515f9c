"""Real engines for tests: fetched and started by the scripts beside this, once a session, on free ports of loopback."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("HEADWATER_CACHE", "~/.cache/headwater")).expanduser()


def free_ports(count: int) -> int:
    """Return the first of so many free ports in a row."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        try:
            for number in range(port, port + count):
                with socket.socket() as each:
                    each.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


class Kafka:
    """A broker of its own data folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(2)
        self.address = f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run("start", str(self.folder), "kafka")

    def stop(self) -> None:
        self._run("stop", str(self.folder))

    def kill(self) -> None:
        pid = int((self.folder / "kafka.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        command = Path(f"/proc/{pid}/cmdline")  # empty once the process has ended, even if nobody has reaped it
        while command.exists() and command.read_bytes():
            time.sleep(0.05)

    def _run(self, *words: str) -> None:
        environment = {**os.environ, "KAFKA_PORT": str(self.port), "JAVA_HEAP": "256m"}
        command = ["nice", "-n", "15", "bash", str(HERE / "kafka.sh"), *words]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def kafka_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    if not any(CACHE.glob("kafka-*")) and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("Kafka is not installed: run tests/engines/kafka.sh install, or set HEADWATER_ENGINES=1")
    engine = Kafka(tmp_path_factory.mktemp("kafka"))
    engine.start()
    yield engine
    engine.stop()
