"""Runs the gateway alone, with its page and HTTP APIs: `python -m services.rag_gateway`."""

import asyncio

import structlog

from services.kernel import telemetry
from services.kernel.errors import HeadwaterError
from services.kernel.runner import running, until_signalled
from services.kernel.settings import Settings, load
from services.rag_gateway.app import build
from services.rag_gateway.http_api import build_http, listening


async def _serve(settings: Settings) -> None:
    async with (
        running(settings, [build]) as runtime,
        listening(build_http(runtime.platform), settings.http_address) as url,
    ):
        structlog.get_logger(__name__).info("serving", grpc=runtime.address, http=url)
        await until_signalled()


if __name__ == "__main__":
    try:
        configured = load()
        telemetry.configure_logging(configured.log_level, as_json=configured.log_json)
        asyncio.run(_serve(configured))
    except HeadwaterError as error:
        raise SystemExit(str(error)) from error
