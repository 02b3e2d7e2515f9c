"""Fixtures that all tests share: a real embedded installation in a temporary folder."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from services.kernel.runner import Build, Runtime, running
from services.kernel.service import CHANNEL_OPTIONS, Platform
from services.kernel.settings import Settings
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS


class Running(NamedTuple):
    """Services under test: a channel to them, what they were given, and the process's runtime."""

    channel: grpc.aio.Channel
    platform: Platform
    runtime: Runtime


RunService = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
async def log(database: Database) -> SqliteLog:
    opened = SqliteLog(database)
    await opened.create_topics(TOPICS)
    return opened


@pytest.fixture
def run_service(tmp_path: Path) -> RunService:
    """Run services on a free port: `async with run_service(build, ..., settings_tables={}) as running: ...`."""

    @contextlib.asynccontextmanager
    async def run(
        *builds: Build,
        settings_tables: Mapping[str, Mapping[str, Any]] | None = None,
        data: Path | None = None,
    ) -> AsyncIterator[Running]:
        settings = Settings(
            data=data or tmp_path / "data",
            grpc_address="127.0.0.1:0",
            http_address="127.0.0.1:0",
            tables=settings_tables or {},
        )
        async with (
            running(settings, builds) as runtime,
            grpc.aio.insecure_channel(runtime.address, options=CHANNEL_OPTIONS) as channel,
        ):
            yield Running(channel, runtime.platform, runtime)

    return run
