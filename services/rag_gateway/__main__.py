"""Runs the gateway alone, with its page and HTTP APIs: `python -m services.rag_gateway`."""

import asyncio

import structlog

from services.kernel.runner import run, running
from services.kernel.settings import Settings
from services.rag_gateway.app import build
from services.rag_gateway.http_api import build_http, listening


async def _serve(settings: Settings) -> None:
    async with (
        running(settings, [build]) as runtime,
        listening(build_http(runtime.platform), settings.http_address) as url,
    ):
        structlog.get_logger(__name__).info("serving", grpc=runtime.address, http=url)
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(_serve)
