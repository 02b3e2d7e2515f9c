"""The laws on this installation, and what to do when something is wrong."""

import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.table import Table

from services.cli.ingest import show_balance
from services.cli.session import Group, Session, command, document


def add_to(group: click.Group) -> None:
    """Add these commands."""
    _add_laws(group)
    letters = Group("dead-letters", help="Inputs that were given up, and putting them back.")
    group.add_command(letters)
    _add_dead_letters(letters)


def _add_laws(group: click.Group) -> None:
    from headwater.common.v1 import operations_pb2 as pb

    @command(group, "balance")
    async def balance(session: Session) -> None:
        """Show that inputs = applied + superseded + waiting + dead-lettered, per consumer group."""
        async with session.channel() as channel:
            response = await _stub(channel).GetBalance(pb.GetBalanceRequest())
        if session.as_json:
            session.answer(document(response))
        else:
            show_balance(session, response)
        if not response.balanced:
            sys.exit(1)

    @command(group, "rebuild")
    @click.argument("stores", nargs=-1)
    async def rebuild(session: Session, stores: Sequence[str]) -> None:
        """Drop read models (all by default) and make them again from the log."""
        results = []
        async with session.channel() as channel:
            with session.progress.status("rebuilding") as status:
                async for progress in _stub(channel).Rebuild(pb.RebuildRequest(stores=stores)):
                    status.update(f"rebuilding {progress.store}: {progress.replayed:,} of {progress.total:,} records")
                    if progress.hash_after:
                        results.append(progress)
        if session.as_json:
            session.answer([document(result) for result in results])
        for result in [] if session.as_json else results:
            same = "the same state" if result.hash_before == result.hash_after else "[red]ANOTHER state[/]"
            session.console.print(f"{result.store}: {result.total:,} records replayed, {same} {result.hash_after[:16]}")
        if any(result.hash_before != result.hash_after for result in results):
            sys.exit(1)

    @command(group, "verify")
    async def verify(session: Session) -> None:
        """Check the laws on this installation: conservation, replay, and what each service adds."""
        async with session.channel() as channel:
            with session.progress.status("verifying: every store is rebuilt from the log and compared"):
                response = await _stub(channel).Verify(pb.VerifyRequest())
        if session.as_json:
            session.answer([document(check) for check in response.checks])
        else:
            table = Table("check", "", "detail")
            for check in response.checks:
                table.add_row(check.name, "[green]holds[/]" if check.ok else "[red]BROKEN[/]", check.detail)
            session.console.print(table)
        if not all(check.ok for check in response.checks):
            sys.exit(1)


def _add_dead_letters(group: click.Group) -> None:
    from headwater.common.v1 import operations_pb2 as pb

    @command(group, "list")
    @click.option("--after", default=0, help="Only those after this id.")
    @click.option("--limit", default=100, help="At most this many.")
    async def list_(session: Session, after: int, limit: int) -> None:
        """List what was given up, and why."""
        async with session.channel() as channel:
            response = await _stub(channel).ListDeadLetters(pb.ListDeadLettersRequest(after=after, limit=limit))
        if session.as_json:
            session.answer([document(entry) for entry in response.entries])
            return
        table = Table("id", "stage", "origin", "error", "retried")
        for entry in response.entries:
            letter = entry.dead_letter
            table.add_row(str(entry.id), letter.stage, letter.origin, letter.error, "yes" if entry.retried else "")
        session.console.print(table if response.entries else "There are no dead letters.")

    @command(group, "show")
    @click.argument("id_", metavar="ID", type=int)
    async def show(session: Session, id_: int) -> None:
        """Show one dead letter whole, with its input."""
        from services.kernel.errors import NotFoundError

        async with session.channel() as channel:
            response = await _stub(channel).ListDeadLetters(pb.ListDeadLettersRequest(after=id_ - 1, limit=1))
        entry = next((entry for entry in response.entries if entry.id == id_), None)
        if entry is None:
            raise NotFoundError(f"there is no dead letter {id_}: `headwater dead-letters list` shows them")
        if session.as_json:
            session.answer(document(entry))
            return
        letter = entry.dead_letter
        for name in ("stage", "error", "attempts", "topic", "partition", "offset", "type", "origin"):
            session.console.print(f"{name:10} {getattr(letter, name)}", markup=False)
        click.echo(letter.value.decode(errors="backslashreplace"))

    @command(group, "retry")
    @click.argument("ids", nargs=-1, type=int)
    async def retry(session: Session, ids: Sequence[int]) -> None:
        """Put inputs back where they came from: those named, or all that have not been retried."""
        async with session.channel() as channel:
            response = await _stub(channel).RetryDeadLetters(pb.RetryDeadLettersRequest(ids=ids))
        if session.as_json:
            session.answer(document(response))
        else:
            session.console.print(f"{response.retried} put back")


def _stub(channel: Any) -> Any:
    from services.cli.cluster import operations_of

    return operations_of(channel)
