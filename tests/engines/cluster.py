"""A whole cluster for tests, and for a person to try: real engines, and a process for each worker of each service.

    python -m tests.engines.cluster [--data DIR]

starts all of it with one worker a service, says where everything is, and drains it at Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc
from services.kernel.service import CHANNEL_OPTIONS
from services.kernel.settings import SERVICES
from tests.engines import HERE, Kafka, free_ports
from tests.engines.mongo import MongoServer
from tests.engines.neo4j import Neo4jServer
from tests.engines.opensearch import OpenSearch
from tests.engines.proxy import Proxy

ROOT = HERE.parents[1]
READY_S = 120.0
QUIET_S = 300.0
WORKERS_MAX = 4  # of a service: each has a port, so that its peers know where it may be
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


def is_gone(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a call failed because nobody is there any more; an end while gRPC sends is internal to it."""
    return error.code() in GONE or error.details() == "Internal error from Core"


@dataclass(frozen=True)
class Engines:
    """The engines of a session, each behind a proxy.

    Attributes:
        kafka, neo4j, mongo, opensearch: the engines.
        proxies: what services reach them by, by their names.
    """

    kafka: Kafka
    neo4j: Neo4jServer
    mongo: MongoServer
    opensearch: OpenSearch
    proxies: Mapping[str, Proxy]

    @property
    def each(self) -> dict[str, Any]:
        """The engines by name."""
        return {"kafka": self.kafka, "neo4j": self.neo4j, "mongo": self.mongo, "opensearch": self.opensearch}

    def restart(self, name: str) -> None:
        """Kill an engine and start it again."""
        self.each[name].kill()
        self.each[name].start()

    def interrupt(self, seconds: float) -> None:
        """Let no traffic through to any engine for so long."""
        for proxy in self.proxies.values():
            proxy.pause()
        time.sleep(seconds)
        for proxy in self.proxies.values():
            proxy.resume()


@contextlib.contextmanager
def engines_in(folder: Path) -> Iterator[Engines]:
    """Run all engines for the length of a block; their data stay in the folder."""
    made = {"kafka": Kafka, "neo4j": Neo4jServer, "mongo": MongoServer, "opensearch": OpenSearch}
    with contextlib.ExitStack() as stack:
        started: dict[str, Any] = {}
        for name, engine in made.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            started[name] = engine(folder / name)
            stack.callback(started[name].stop)
            started[name].start()
        proxies = {"kafka": Proxy(started["kafka"].proxy, started["kafka"].proxied)}
        for name in ("neo4j", "mongo", "opensearch"):
            proxies[name] = Proxy(free_ports(1), started[name].port)
        for proxy in proxies.values():
            stack.callback(proxy.close)
        yield Engines(**started, proxies=proxies)


@pytest.fixture(scope="session")
def engines(
    kafka_engine: Kafka,
    neo4j_engine: Neo4jServer,
    mongo_engine: MongoServer,
    opensearch_engine: OpenSearch,
) -> Iterator[Engines]:
    """The engines that other tests of the session use too, each with a proxy before it."""
    proxies = {"kafka": Proxy(kafka_engine.proxy, kafka_engine.proxied)}
    for name, engine in (("neo4j", neo4j_engine), ("mongo", mongo_engine), ("opensearch", opensearch_engine)):
        proxies[name] = Proxy(free_ports(1), engine.port)
    yield Engines(kafka_engine, neo4j_engine, mongo_engine, opensearch_engine, proxies)
    for proxy in proxies.values():
        proxy.close()


class Worker:
    """A process of a service, which can be stopped, killed and started again at the same address."""

    def __init__(self, service: str, folder: Path, config: Path, ports: tuple[int, int]) -> None:
        self.service, self.folder = service, folder
        self.address = f"127.0.0.1:{ports[0]}"
        self.http = f"127.0.0.1:{ports[1]}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")},
            "HEADWATER_CONFIG": str(config),
            "HEADWATER_DATA": str(folder),
            "HEADWATER_GRPC_ADDRESS": self.address,
            "HEADWATER_HTTP_ADDRESS": self.http,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the process has written, over all its lives."""
        return self.folder.with_suffix(".log")

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, if it does not run; `ready` waits until it answers."""
        if self.is_alive:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.service}"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for who started the cluster
            )

    def ready(self) -> None:
        """Wait until it says that it serves.

        Raises:
            RuntimeError: it has ended, or does not serve in time.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not self.is_alive:
                break
            with grpc.insecure_channel(self.address) as channel, contextlib.suppress(grpc.RpcError):
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2.0)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.1)
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        raise RuntimeError("\n".join([f"{self.service} does not serve; {self.log} ends with", *lines]))

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def terminate(self) -> None:
        """Ask the process to end, drained; `ended` waits for it."""
        if self._process is not None and self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def ended(self, seconds: float = 60.0) -> int:
        """Wait until the process has ended; returns its status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Ask the process to end, and wait for it."""
        self.terminate()
        return self.ended()


class Cluster:
    """An installation of its own on the engines: its names begin with what no other installation's do.

    Attributes:
        workers: of each service.
        config: the settings of all of them; `headwater` finds the services by it, too.
    """

    def __init__(self, engines: Engines, folder: Path, config: str = "", prefix: str = "", partitions: int = 4) -> None:
        """Lay it out; nothing is started yet.

        Args:
            engines: what it runs on.
            folder: of the workers' own data, logs and settings.
            config: more tables, as TOML.
            prefix: begins the names of what it keeps in the engines; by default one that is used once.
            partitions: of each topic.
        """
        self.engines, self.folder = engines, folder
        self.prefix = prefix or f"t{uuid.uuid4().hex[:12]}"
        self.config = folder / "headwater.toml"
        folder.mkdir(parents=True, exist_ok=True)
        first = free_ports(2 * WORKERS_MAX * len(SERVICES))
        self.workers: dict[str, list[Worker]] = {}
        for number, service in enumerate(SERVICES):
            ports = [first + 2 * (number * WORKERS_MAX + each) for each in range(WORKERS_MAX)]
            self.workers[service] = [
                Worker(service, folder / f"{service}-{each}", self.config, (port, port + 1))
                for each, port in enumerate(ports)
            ]
        self.config.write_text(self._settings(partitions) + config)

    def _settings(self, partitions: int) -> str:
        ports = {name: proxy.port for name, proxy in self.engines.proxies.items()}
        tables: dict[str, dict[str, Any]] = {
            "kafka": {
                "bootstrap_servers": f"127.0.0.1:{ports['kafka']}",
                "prefix": f"{self.prefix}.",
                "replication": 1,
            },
            "neo4j": {"uri": f"bolt://127.0.0.1:{ports['neo4j']}", "prefix": self.prefix},
            "mongodb": {"uri": f"mongodb://127.0.0.1:{ports['mongo']}", "database": self.prefix},
            "opensearch": {"url": f"http://127.0.0.1:{ports['opensearch']}", "prefix": self.prefix, "replicas": 0},
            "peers": {
                # Several addresses of one name, as a DNS name of several workers is in a real cluster.
                service: "ipv4:" + ",".join(worker.address for worker in workers)
                for service, workers in self.workers.items()
            },
        }
        lines = [f"partitions = {partitions}"]
        for name, table in tables.items():
            lines += [f"\n[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    @property
    def alive(self) -> list[Worker]:
        """The workers that run, in the order of the flow."""
        return [worker for workers in self.workers.values() for worker in workers if worker.is_alive]

    def start(self, count: int = 1, services: Sequence[str] = SERVICES) -> None:
        """Start so many workers of each service, and wait until they serve."""
        started = [worker for service in services for worker in self.workers[service][:count]]
        for worker in started:
            worker.start()
        for worker in started:
            worker.ready()

    def stop(self) -> None:
        """Ask all workers to end, drained, and wait for them."""
        stopping = self.alive
        for worker in stopping:
            worker.terminate()
        for worker in stopping:
            worker.ended()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self.alive:
            worker.kill()

    def channel(self, service: str) -> grpc.aio.Channel:
        """Return a channel to the first worker of a service."""
        return grpc.aio.insecure_channel(self.workers[service][0].address, options=CHANNEL_OPTIONS)

    async def _ask(self, question: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """Ask the operations of one worker of each service."""
        answers = []
        for service in SERVICES:
            worker = next(worker for worker in self.workers[service] if worker.is_alive)
            async with grpc.aio.insecure_channel(worker.address, options=CHANNEL_OPTIONS) as channel:
                answers.append(await question(operations_pb2_grpc.OperationsServiceStub(channel)))
        return answers

    async def balance(self) -> list[pb.GroupBalance]:
        """Return the balance of every group of every service, in the order of the flow."""
        answers = await self._ask(lambda stub: stub.GetBalance(pb.GetBalanceRequest(), timeout=60.0))
        return [group for answer in answers for group in answer.groups]

    async def quiet(self, seconds: float = QUIET_S) -> list[pb.GroupBalance]:
        """Wait until every group has done all there is, twice in a row with nothing new between; returns the balances.

        Raises:
            TimeoutError: it has not in time; what lags is named.
        """
        deadline, before = time.monotonic() + seconds, None
        groups: list[pb.GroupBalance] = []
        while time.monotonic() < deadline:
            try:
                groups = await self.balance()
            except grpc.aio.AioRpcError as error:
                if not is_gone(error):
                    raise
                groups, before = [], None
            now = [(group.group, group.inputs) for group in groups if not group.lag and not group.waiting]
            if groups and now == before and len(now) == len(groups):
                return groups
            before = now
            await asyncio.sleep(0.5)
        behind = {group.group: (group.lag, group.waiting) for group in groups if group.lag or group.waiting}
        raise TimeoutError(f"not quiet after {seconds:.0f} s; (lag, waiting) of {behind or 'nobody knows whom'}")

    async def hashes(self) -> dict[str, str]:
        """Return the state hash of every store."""
        answers = await self._ask(lambda stub: stub.GetStatus(pb.GetStatusRequest(), timeout=300.0))
        return {store.store: store.hash for answer in answers for store in answer.stores}

    async def verify(self, seconds: float = QUIET_S) -> list[pb.Check]:
        """Return what `headwater verify` checks: conservation, and every store made again from the log."""
        answers = await self._ask(lambda stub: stub.Verify(pb.VerifyRequest(), timeout=seconds))
        return [check for answer in answers for check in answer.checks]


@contextlib.contextmanager
def cluster_in(engines: Engines, folder: Path, config: str = "", partitions: int = 4) -> Iterator[Cluster]:
    """Lay a cluster out for the length of a block; its workers are killed at the end."""
    cluster = Cluster(engines, folder, config, partitions=partitions)
    try:
        yield cluster
    finally:
        cluster.kill()


def main() -> None:
    """Run a cluster until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cluster"), help="data, logs, settings (data/cluster)")
    folder: Path = parser.parse_args().data.absolute()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        print("starting Kafka, Neo4j, MongoDB and OpenSearch; the first time they are fetched, which takes minutes")
        with engines_in(folder / "engines") as engines:
            cluster = Cluster(engines, folder, prefix="headwater")
            try:
                cluster.start()
                for name, engine in engines.each.items():
                    print(f"{name:<16}127.0.0.1:{engine.port}")
                for worker in cluster.alive:
                    print(f"{worker.service:<16}{worker.address}    {worker.log}")
                print(f"the page        http://{cluster.workers['rag_gateway'][0].http}")
                print(f"other commands  HEADWATER_CONFIG={cluster.config} headwater …")
                print("running; Ctrl-C ends it", flush=True)
                while True:
                    signal.pause()
            finally:
                print("draining", flush=True)
                cluster.stop()


if __name__ == "__main__":
    main()
