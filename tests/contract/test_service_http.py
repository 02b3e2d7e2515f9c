"""Each service that runs alone serves its metrics and its health by HTTP, whether or not it has an HTTP API."""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import pytest

from services.kernel.settings import SERVICES
from tests.engines import free_ports

PATIENCE_S = 120.0


async def get(url: str) -> tuple[int, str]:
    """Ask until somebody answers."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with session.get(url) as response:
                    return response.status, await response.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_alone_serves_metrics_and_health(service: str, tmp_path: Path) -> None:
    port = free_ports(2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")} | {
        "HEADWATER_DATA": str(tmp_path / "data"),
        "HEADWATER_GRPC_ADDRESS": f"127.0.0.1:{port}",
        "HEADWATER_HTTP_ADDRESS": f"127.0.0.1:{port + 1}",
    }
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{service}", env=environment, stdout=log, stderr=log
        )
    try:
        assert await get(f"http://127.0.0.1:{port + 1}/healthz") == (200, '{"status": "ok"}')
        status, metrics = await get(f"http://127.0.0.1:{port + 1}/metrics")
        assert status == 200
        for name in ("headwater_inputs_total", "headwater_batch_seconds", "headwater_lag_records"):
            assert f"# TYPE {name} " in metrics
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0, (tmp_path / "log").read_text()
