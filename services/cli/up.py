"""`headwater up`: every service in one process. `headwater doctor`: what is wrong with this installation."""

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from services.cli.ingest import jobs_of
from services.cli.session import Session, command
from services.kernel.errors import HeadwaterError, UnavailableError
from services.kernel.settings import Settings

FREE_BYTES_MIN = 1 << 30


def add_to(group: click.Group) -> None:
    """Add these commands."""

    @group.command("up")
    @click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), help="The configuration, headwater.toml."
    )
    @click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.")
    @click.option("--grpc-address", help="host:port of gRPC; port 0 takes a free one.")
    @click.option("--http-address", help="host:port of the page and the HTTP APIs; port 0 takes a free one.")
    @click.option("--log-json", is_flag=True, help="Log JSON lines.")
    def up(
        config: Path | None, data: Path | None, grpc_address: str | None, http_address: str | None, *, log_json: bool
    ) -> None:
        """Run every service in this process until it is told to stop."""
        from services.kernel import telemetry
        from services.kernel.settings import load

        options = {
            "data": data,
            "grpc_address": grpc_address,
            "http_address": http_address,
            "log_json": log_json or None,
        }
        settings = load(config, options=options)
        telemetry.configure_logging(settings.log_level, as_json=settings.log_json)
        asyncio.run(_serve(settings))

    @command(group, "doctor")
    async def doctor(session: Session) -> None:
        """Check this machine and this installation, and say what to do about what is wrong."""
        await _doctor(session)


async def _serve(settings: Settings) -> None:
    from services.embedded import served
    from services.kernel.runner import until_signalled

    started = time.perf_counter()
    async with served(settings) as (runtime, url):
        click.echo(
            f"Headwater is ready after {time.perf_counter() - started:.1f} s, data in {settings.data.absolute()}"
        )
        click.echo(f"  page  {url}\n  gRPC  {runtime.address}\nCtrl-C stops it.")
        sys.stdout.flush()
        await until_signalled()
    click.echo("Stopped; everything acknowledged is in the log.")


async def _doctor(session: Session) -> None:
    findings: list[tuple[str, bool, str]] = []
    data = session.settings.data
    where = next(path for path in (data, *data.absolute().parents) if path.exists())
    free = shutil.disk_usage(where).free
    findings.append(("disk space", free > FREE_BYTES_MIN, f"{free >> 20} MiB free at {where}: keep at least 1 GiB"))
    try:
        async with session.channel() as channel:
            findings += await _ask_services(channel)
    except UnavailableError as error:
        findings.append(("services", False, str(error)))
    except HeadwaterError as error:
        findings.append(("installation", False, str(error)))
    if session.as_json:
        session.answer([{"check": name, "ok": ok, "detail": detail} for name, ok, detail in findings])
    else:
        table = Table("check", "", "detail")
        for name, ok, detail in findings:
            table.add_row(name, "[green]ok[/]" if ok else "[red]wrong[/]", detail)
        session.console.print(table)
    if not all(ok for _, ok, _ in findings):
        sys.exit(1)


async def _ask_services(channel: Any) -> list[tuple[str, bool, str]]:
    from headwater.common.v1 import operations_pb2 as pb, operations_pb2_grpc

    operations = operations_pb2_grpc.OperationsServiceStub(channel)
    balance = await operations.GetBalance(pb.GetBalanceRequest())
    lag = sum(group.lag for group in balance.groups)
    letters = await operations.ListDeadLetters(pb.ListDeadLettersRequest(limit=1000))
    open_letters = sum(not entry.retried for entry in letters.entries)
    jobs = await jobs_of(channel, limit=1)
    parked = jobs.counts.get("parked", 0)
    first = f", the first: {jobs.jobs[0].document_id}: {jobs.jobs[0].last_error}" if jobs.jobs else ""
    return [
        ("balance", balance.balanced, "inputs = applied + superseded + waiting + dead-lettered"),
        ("lag", True, f"{lag} records not yet processed"),
        ("dead letters", open_letters == 0, f"{open_letters} open: `headwater dead-letters list` shows them"),
        ("documents", parked == 0, f"{parked} parked: they cannot be embedded as they are{first}"),
    ]
