"""Real engines for tests: fetched and started by the scripts beside this, once a session, on free ports of loopback."""

import asyncio
import contextlib
import os
import random
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

HERE = Path(__file__).parent
OF_A_TEST = re.compile(r"t?[0-9a-f]{12,32}\.")
CACHE = Path(os.environ.get("HEADWATER_CACHE", "~/.cache/headwater")).expanduser()


def free_ports(count: int) -> int:
    """Return the first of so many free ports in a row.

    They are below those that the system gives to outgoing connections: else a client that tries again and again to
    reach a killed engine would one day be given the engine's own port, be connected to itself, and shut the engine out.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        try:
            for number in range(port, port + count):
                with socket.socket() as each:
                    each.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def kill(pid: int) -> None:
    """Kill a process, and wait until all its threads have ended: only then are its ports and locks free."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], 30)[0]:
            raise TimeoutError(f"the process {pid} survives SIGKILL")
    finally:
        os.close(handle)


class Kafka:
    """A broker of its own data folder, that can be stopped, killed and started again.

    Attributes:
        address: where it is reached.
        proxy: the port that clients have to use who reach it by a proxy to `proxied`.
        running: those that have been started, and not stopped.
    """

    running: ClassVar[set["Kafka"]] = set()

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(6)  # the next one is the controller's, the last two speak TLS
        self.options: dict[str, str] = {}  # of kafka.sh
        self.address = f"127.0.0.1:{self.port}"
        self.proxied, self.proxy = self.port + 2, self.port + 3

    def start(self) -> None:
        self._run("start", str(self.folder), "kafka")
        self.running.add(self)

    def stop(self) -> None:
        self.running.discard(self)
        self._run("stop", str(self.folder))

    def kill(self) -> None:
        kill(int((self.folder / "kafka.pid").read_text()))

    def _run(self, *words: str) -> None:
        ports = {"KAFKA_PORT": str(self.port), "KAFKA_PROXY": str(self.proxy)}
        environment = {**os.environ, **ports, "JAVA_HEAP": "256m", **self.options}
        command = ["nice", "-n", "15", "bash", str(HERE / "kafka.sh"), *words]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


async def forget_topics() -> None:
    """Remove the topics that tests have made under a prefix of their own: a broker bears some thousand partitions."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    for broker in Kafka.running:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(15):
                await admin.start()
                if names := [name for name in await admin.list_topics() if OF_A_TEST.match(name)]:
                    await admin.delete_topics(names)
        await admin.close()


def need_kafka() -> None:
    """Skip unless Kafka is installed, or may be."""
    if not any(CACHE.glob("kafka-*")) and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("Kafka is not installed: run tests/engines/kafka.sh install, or set HEADWATER_ENGINES=1")


@pytest.fixture(scope="session")
def kafka_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    need_kafka()
    engine = Kafka(tmp_path_factory.mktemp("kafka"))
    engine.start()
    yield engine
    engine.stop()
