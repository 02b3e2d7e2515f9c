"""The published protos alone are enough to use the product."""

import asyncio
import json
import sys
from pathlib import Path

from services.embedded import builds
from tests.conftest import RunService

ROOT = Path(__file__).parents[2]


async def test_a_client_made_from_the_protos_alone_pushes_reads_asks_and_rates(run_service: RunService) -> None:
    async with run_service(*builds()) as running:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("proto_client.py")), str(ROOT / "protos"),
            running.runtime.address,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    got = json.loads(out)
    fields = got["profile"]["profile"]["fields"]
    assert json.loads(fields["home_city"]["valueJson"]) == "Arlington"
    assert fields["home_city"]["record"] == "crm/customers/7"
    assert "Arlington" in got["answer"]["text"]
    assert got["answer"]["answered"]
    assert {store["store"] for store in got["answer"]["freshness"]} >= {"profile", "knowledge"}
    assert got["rated"]["positionToken"]
    assert got["kpis"]["kpis"][0]["value"] == 1
