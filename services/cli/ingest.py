"""`headwater ingest`: change events and documents from files or standard input."""

import asyncio
import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.cli.session import Session, command, document
from services.kernel.errors import InvalidInputError

POLL_S = 0.05
TURNS_PER_REQUEST = 200
PARKED_SHOWN = 100
UNDER_WAY = ("pending", "retrying", "deferred")
CONVERSATIONS = "conversations"


def add_to(group: click.Group) -> None:
    """Add this command."""

    @command(group, "ingest")
    @click.argument("files", nargs=-1, required=True)
    @click.option("--source", default="", help="The source's name, where the events do not say it.")
    @click.option(
        "--format",
        "format_",
        default="auto",
        help="auto; native, debezium, kcat, …; or conversations: past turns.",
    )
    @click.option("--wait/--no-wait", default=True, help="Wait until everything is processed.")
    async def ingest(session: Session, files: Sequence[str], source: str, format_: str, *, wait: bool) -> None:
        """Take change events (one a line) or documents from FILES; - is standard input. Prints the balance."""
        from headwater.common.v1 import operations_pb2 as pb
        from headwater.ingest.v1 import service_pb2_grpc
        from services.cli.cluster import operations_of
        from services.ingest.client import push_file

        async with session.channel() as channel:
            stub = service_pb2_grpc.IngestServiceStub(channel)
            results = {}
            columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=session.progress, transient=True, disable=session.as_json) as progress:
                for name in files:
                    task = progress.add_task(f"reading {name}", total=None)
                    if format_ == CONVERSATIONS:
                        results[name] = await _import_file(channel, name)
                        continue
                    tell = functools.partial(_tell, progress, task)
                    results[name] = await push_file(stub, name, source, format_, tell)
            if wait:
                await until_processed(session, channel)
            balance = await operations_of(channel).GetBalance(pb.GetBalanceRequest())
            parked = await jobs_of(channel, limit=PARKED_SHOWN)
        _show(session, results, balance, parked.jobs)
        if any(totals.dead_lettered or totals.refused for totals in results.values()):
            sys.exit(1)


def _tell(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def _opened(name: str) -> BinaryIO:
    return Path(name).open("rb")


async def import_turns(channel: Any, stream: BinaryIO) -> Any:
    """Import past conversations, one turn a line; returns an ImportTurnsResponse."""
    from headwater.feedback.v1 import service_pb2, service_pb2_grpc

    def requests() -> Iterator[Any]:
        while lines := list(itertools.islice(stream, TURNS_PER_REQUEST)):
            yield service_pb2.ImportTurnsRequest(lines=[line.decode(errors="replace") for line in lines])

    return await service_pb2_grpc.FeedbackServiceStub(channel).ImportTurns(requests())


async def _import_file(channel: Any, name: str) -> Any:
    """Import past conversations from a file, with the totals that events have."""
    from services.ingest.client import Totals

    try:
        with contextlib.ExitStack() as stack:
            stream = sys.stdin.buffer if name == "-" else stack.enter_context(_opened(name))
            response = await import_turns(channel, stream)
    except OSError as error:
        raise InvalidInputError(f"{name}: {error.strerror}: name a file that can be read") from error
    errors = tuple(f"{name}:{line.number}: {line.reason}" for line in response.refused_lines)
    return Totals(
        read=response.turns + response.refused,
        accepted=response.turns,
        refused=response.refused,
        errors=errors,
        position_token=response.position_token,
    )


async def until_processed(session: Session, channel: Any) -> None:
    """Wait until nothing lags and no document is still on its way into the index, and show how far it is.

    Documents that are parked wait for a person, not for us.
    """
    from headwater.common.v1 import operations_pb2 as pb
    from services.cli.cluster import operations_of

    operations = operations_of(channel)
    columns = (TextColumn("processing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.progress, transient=True, disable=session.as_json) as progress:
        task = progress.add_task("processing", total=None)
        most, quiet = 0, 0
        while quiet < 2:  # between two processors nothing lags for an instant
            balance = await operations.GetBalance(pb.GetBalanceRequest())
            jobs = await jobs_of(channel, limit=1)
            under_way = sum(count for state, count in jobs.counts.items() if state in UNDER_WAY)
            left = sum(group.lag for group in balance.groups) + under_way
            most, quiet = max(most, left), quiet + 1 if left == 0 else 0
            progress.update(task, total=most, completed=most - left)
            await asyncio.sleep(POLL_S)


async def jobs_of(channel: Any, *, limit: int) -> Any:
    """Return a ListJobsResponse: the documents that can never be embedded as they are, and the counts of all states."""
    from headwater.embedder.v1 import events_pb2, service_pb2, service_pb2_grpc

    request = service_pb2.ListJobsRequest(states=[events_pb2.JOB_STATE_PARKED], limit=limit)
    return await service_pb2_grpc.EmbedderServiceStub(channel).ListJobs(request)


def _show(session: Session, results: dict[str, Any], balance: Any, parked: Sequence[Any]) -> None:
    if session.as_json:
        session.answer({
            "files": {name: totals._asdict() for name, totals in results.items()},
            "groups": document(balance)["groups"],
            "balanced": balance.balanced,
            "parked": [document(job) for job in parked],
        })  # fmt: skip
        return
    for name, totals in results.items():
        session.console.print(
            f"{name}: {totals.read} read = {totals.accepted} accepted + {totals.skipped} skipped + "
            f"{totals.dead_lettered} dead-lettered" + (f" + {totals.refused} refused" if totals.refused else "")
        )
        for error in totals.errors:
            session.console.print(f"  [red]{escape(error)}[/]")
    for job in parked:
        session.console.print(f"[red]parked: {escape(job.document_id)}: {escape(job.last_error)}[/]")
    show_balance(session, balance)


def show_balance(session: Session, balance: Any) -> None:
    """Print the balance of every consumer group."""
    table = Table("group", *("inputs", "applied", "superseded", "waiting", "dead-lettered", "lag"))
    for group in balance.groups:
        counts = (group.inputs, group.applied, group.superseded, group.waiting, group.dead_lettered, group.lag)
        table.add_row(group.group, *(f"{count:,}" for count in counts))
    session.console.print(table)
    session.console.print("balanced" if balance.balanced else "[red]NOT balanced: inputs are missing[/]")
