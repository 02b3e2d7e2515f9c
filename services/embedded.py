"""All services in one process, on one SQLite database: what `headwater up` and every stand-alone command run."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from services.kernel.runner import Build, Runtime, running
from services.kernel.settings import Settings
from services.kernel.sqlite import holder, owner_of

SERVER_FILE = "server.json"


def builds() -> Sequence[Build]:
    """Return the builders of all services, in the order of the flow."""
    from services.embedder.app import build as embedder
    from services.feedback.app import build as feedback
    from services.identity_graph.app import build as identity_graph
    from services.ingest.app import build as ingest
    from services.profile.app import build as profile
    from services.rag_gateway.app import build as rag_gateway

    return ingest, identity_graph, profile, embedder, rag_gateway, feedback


@contextlib.asynccontextmanager
async def installation(settings: Settings) -> AsyncIterator[Runtime]:
    """Run all services for the length of a block, reachable by gRPC only."""
    async with running(settings, builds()) as runtime:
        yield runtime


@contextlib.asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[Runtime, str]]:
    """Run all services with the page and the HTTP APIs; yields the runtime and the page's URL.

    The addresses are left in the data folder, where other commands find them.

    Raises:
        UnavailableError: an address is taken, or the data folder is in use.
    """
    from services.ingest.http_api import add_routes
    from services.kernel.http_server import listening
    from services.rag_gateway.http_api import build_http

    async with installation(settings) as runtime:
        application = build_http(runtime.platform, extra_routes=[add_routes])
        async with listening(application, settings.http_address) as url:
            note = settings.data / SERVER_FILE
            note.write_text(json.dumps({"grpc": runtime.address, "http": url, "pid": os.getpid()}))
            try:
                yield runtime, url
            finally:
                note.unlink(missing_ok=True)


def running_address(data: Path) -> str | None:
    """Return where the process that serves a data folder answers gRPC; None when no process does."""
    try:
        note = json.loads((data / SERVER_FILE).read_text())
        # A process that was killed has left its note behind, and another may have its number by now.
        return str(note["grpc"]) if holder(data) == owner_of(note["pid"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ephemeral(settings: Settings) -> Settings:
    """Return settings for a command that runs the services by itself, on a free port."""
    return replace(settings, grpc_address="127.0.0.1:0", http_address="127.0.0.1:0")
