"""Starts the services of a process, keeps them running, and drains them."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from services.kernel import telemetry
from services.kernel.erasure import LogErasure
from services.kernel.errors import HeadwaterError, InvalidInputError, UnavailableError
from services.kernel.foreground import Foreground
from services.kernel.grpc_server import GrpcServer
from services.kernel.operations import Operations
from services.kernel.processor import ProcessorLoop
from services.kernel.retry import backoff_s
from services.kernel.service import Peers, Platform, Service
from services.kernel.settings import Settings
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention
from services.kernel.topics import TOPICS

if TYPE_CHECKING:
    from aiohttp import web

    from services.kernel.kafka_log import KafkaLog

GRACE_S = 5.0
# In a cluster each service is alone in its process: these all acknowledge an erasure, and one clears the log then.
ERASING = ("identity_graph", "profile", "embedder", "rag_gateway", "feedback")
LOG_ERASER = "identity_graph"
CLEAN_EVERY_S = 600.0
HEALTH_EVERY_S = 1.0
GC_THRESHOLD = (10_000, 10, 10)

log = structlog.get_logger(__name__)
Build = Callable[[Platform], Service]


class Runtime:
    """The services of one process.

    Attributes:
        platform: what the services were given.
        services: what runs.
        address: where gRPC is served, once started.
    """

    def __init__(self, settings: Settings, builds: Sequence[Build]) -> None:
        database = Database(settings.data)
        try:
            foreground = Foreground()
            self.server = GrpcServer(settings.grpc_address, foreground)
            self._kafka = _kafka_log(settings, database)
            log_ = self._kafka or SqliteLog(database, settings.partitions)
            self.services: list[Service] = []
            self.platform = Platform(log_, database, settings, time.time, Peers(self._address_of))
            self.services += [build(self.platform) for build in builds]
        except BaseException:
            database.close()
            raise
        self.loops = [
            ProcessorLoop(p, self.platform.log, foreground) for service in self.services for p in service.processors
        ]
        erasing = ERASING if self._kafka else [service.name for service in self.services if service.erases]
        self.erasure = LogErasure(self.platform, erasing)
        self.operations = Operations(self.platform, self.services, self.loops)
        self._tasks: list[asyncio.Task[None]] = []
        self._gc_threshold = gc.get_threshold()

    @property
    def address(self) -> str:
        """Where gRPC is served."""
        return self.server.address

    async def start(self) -> None:
        """Start everything; when this returns, calls are answered."""
        registrations = [service.register for service in self.services] + [self.operations.register]
        names = [name for service in self.services for name in service.service_names]
        self.server.bind(registrations, [*names, *self.operations.service_names])
        if self._kafka is not None:
            # Whoever looks after this process sees that it lives, while it waits for what may start later.
            self.server.waits_for = "Kafka"
            await self.server.set_healthy(healthy=False)
            await self.server.start()
            await self._once_there("Kafka", self._kafka.start)
            self._supervise("relay", self._kafka.relay)
        await self._once_there("Kafka", lambda: self.platform.log.create_topics(TOPICS))
        for service in self.services:
            if service.start is not None:
                await self._once_there(f"the stores of {service.name}", service.start)
        for loop in self.loops:
            self._supervise(f"processor {loop.processor.name}", loop.run)
        for service in self.services:
            for work in service.background:
                self._supervise(f"{service.name} {work.__name__}", work)
        self._supervise("checkpoints", self.platform.database.checkpoint_forever)
        if isinstance(self.platform.log, SqliteLog):
            self._supervise("retention", self._clean_forever)
            self._supervise("rebuilds", self.operations.finish_rebuilds)
        if self._kafka is None or any(service.name == LOG_ERASER for service in self.services):
            self._supervise("erasure", self.erasure.run)
        self._supervise("health", self._report_health)
        await asyncio.sleep(0)  # the processors have joined their groups: now a call can wait for them
        if self._kafka is None:
            await self.server.start()
        self.server.waits_for = None
        # What is there now stays. Batches make many short-lived objects and hardly a cycle: looking for cycles as often
        # as the default does costs 15 % of the change path.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        await self.server.set_healthy(healthy=True)

    def _address_of(self, name: str) -> str:
        address = self.platform.settings.table("peers").get(name)
        if self._kafka is None or any(service.name == name for service in self.services):
            return self.server.address
        if not isinstance(address, str) or not address:
            raise InvalidInputError(
                f"[peers] {name} must be the host:port where that service answers gRPC, for it does not run here"
            )
        return address

    async def _once_there(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do what needs something that may come later than this process; an embedded installation needs nothing."""
        attempt = 0
        while True:
            try:
                await work()
            except UnavailableError as error:
                if self._kafka is None:
                    raise
                attempt += 1
                self.server.waits_for = what
                delay = backoff_s(attempt, base_s=0.2, cap_s=5.0)
                log.warning("waiting", what=what, error=str(error), retry_in_s=round(delay, 2))
                await asyncio.sleep(delay)
            else:
                return

    def _supervise(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(_keep_running(name, work), name=name))

    async def _clean_forever(self) -> None:
        assert isinstance(self.platform.log, SqliteLog)  # noqa: S101 - started for that one only
        retention = Retention(self.platform.log, self.platform.database)
        while True:
            await asyncio.sleep(CLEAN_EVERY_S)
            removed = await retention.clean()
            log.info("log.cleaned", removed=removed)

    async def _report_health(self) -> None:
        healthy = True
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            for loop in self.loops:
                processor = loop.processor
                lag = await self.platform.log.lag(processor.name, processor.topics)
                telemetry.LAG.labels(processor.name).set(lag)
            if healthy != (healthy := all(loop.failing is None for loop in self.loops)):
                await self.server.set_healthy(healthy=healthy)

    async def stop(self) -> None:
        """Refuse new calls, let batches in hand finish, and close everything."""
        gc.unfreeze()
        gc.set_threshold(*self._gc_threshold)
        await self.server.stop(GRACE_S)
        await asyncio.gather(*(loop.pause() for loop in self.loops))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for service in self.services:
            if service.stop is not None:
                await service.stop()
        if self._kafka is not None:
            await self._kafka.close()
        await self.platform.peers.close()
        self.platform.database.close()


def _kafka_log(settings: Settings, database: Database) -> "KafkaLog | None":
    table = settings.table("kafka")
    if not table:
        return None
    from services.kernel.kafka_log import KafkaLog
    from services.kernel.kafka_settings import KafkaSettings

    return KafkaLog(KafkaSettings.from_config(table), database, settings.partitions)


async def _keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run forever; what fails is logged and started again, ever more slowly."""
    attempt = 0
    while True:
        started = time.monotonic()
        try:
            await work()
        except HeadwaterError as error:
            log.warning("task.failed", task=name, error=str(error))
        except Exception:  # one piece of work must not take the others down with it
            log.exception("task.failed", task=name)
        else:
            return
        attempt = 1 if time.monotonic() - started > 60 else attempt + 1
        await asyncio.sleep(backoff_s(attempt, base_s=0.2, cap_s=30.0))


@contextlib.asynccontextmanager
async def running(settings: Settings, builds: Sequence[Build]) -> AsyncIterator[Runtime]:
    """Run services for the length of a block."""
    runtime = Runtime(settings, builds)
    try:
        await runtime.start()
        yield runtime
    finally:
        await runtime.stop()


async def until_signalled() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def main(build: Build, application: "Callable[[Platform], web.Application] | None" = None) -> None:
    """Run one service until it is told to stop: `python -m services.<name>`.

    Args:
        build: the service's.
        application: makes its HTTP application; one without routes of its own serves `/metrics` and `/healthz` alone.
    """
    from services.kernel.http_server import application_of, listening

    async def serve(settings: Settings) -> None:
        async with running(settings, [build]) as runtime:
            (service,) = runtime.services
            http = application(runtime.platform) if application else application_of(runtime.platform, service.name)
            async with listening(http, settings.http_address) as url:
                log.info("serving", service=service.name, grpc=runtime.address, http=url)
                await asyncio.Event().wait()

    run(serve)


def run(serve: Callable[[Settings], Coroutine[Any, Any, None]]) -> None:
    """Run what serves until it is cancelled, by the settings of this process: SIGINT and SIGTERM end it, drained.

    They do so at any time, also while it still waits for what it needs.
    """
    from services.kernel.settings import load

    async def until_told() -> None:
        task = asyncio.ensure_future(serve(settings))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        log.info("stopped")

    try:
        settings = load()
        telemetry.configure_logging(settings.log_level, as_json=settings.log_json)
        asyncio.run(until_told())
    except HeadwaterError as error:
        raise SystemExit(str(error)) from error
