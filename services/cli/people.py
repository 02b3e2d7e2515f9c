"""`headwater profile`, `headwater identity …` and `headwater erase`: a person, why they are one, and their end."""

import asyncio
import sys
from typing import Any

import click
from rich.table import Table

from services.cli.session import Group, Session, command, document, identifier

ERASURE_TIMEOUT_S = 300.0
POLL_S = 0.1


def add_to(group: click.Group) -> None:
    """Add these commands."""
    identity = Group("identity", help="Who is who, and why.")
    group.add_command(identity)
    _add_profile(group)
    _add_identity(identity)
    _add_erase(group)


def _add_profile(group: click.Group) -> None:
    @command(group, "profile")
    @click.argument("who", metavar="KIND:VALUE")
    async def profile(session: Session, who: str) -> None:
        """Show the profile of a person, each field with where it came from and when."""
        from headwater.profile.v1 import service_pb2, service_pb2_grpc

        async with session.channel() as channel:
            request = service_pb2.GetProfileRequest(identifier=identifier(who))
            response = await service_pb2_grpc.ProfileServiceStub(channel).GetProfile(request)
        if session.as_json:
            session.answer(document(response))
        else:
            show_profile(session, response.profile)


def show_profile(session: Session, profile: Any) -> None:
    """Print a profile."""
    session.console.print(
        f"profile {profile.profile_id}, {len(profile.records)} records"
        + (f", also known as {', '.join(profile.aliases)}" if profile.aliases else "")
        + (", [red]suspected of being more than one person[/]" if profile.suspect else ""),
        highlight=False,
    )
    table = Table("field", "value", "from", "since (UTC)")
    for name, value in sorted(profile.fields.items()):
        since = value.occurred_at.ToDatetime().isoformat(" ", "seconds")
        table.add_row(name, value.value_json, value.record, since)
    session.console.print(table)


def _add_identity(group: click.Group) -> None:
    from headwater.identity_graph.v1 import service_pb2, service_pb2_grpc

    @command(group, "clusters")
    async def clusters(session: Session) -> None:
        """List every record with its profile."""
        async with session.channel() as channel:
            stub = service_pb2_grpc.IdentityGraphServiceStub(channel)
            rows = [
                (row.record, row.profile_id) async for row in stub.ListAssignments(service_pb2.ListAssignmentsRequest())
            ]
        if session.as_json:
            session.answer([{"record": record, "profile_id": profile_id} for record, profile_id in rows])
        else:
            for record, profile_id in rows:
                click.echo(f"{record}\t{profile_id}")

    @command(group, "explain")
    @click.argument("left", metavar="A")
    @click.argument("right", metavar="B")
    async def explain(session: Session, left: str, right: str) -> None:
        """Tell why A and B (record keys, or kind:value) are or are not the same person."""
        async with session.channel() as channel:
            request = service_pb2.ExplainRequest(left=_record(left), right=_record(right))
            response = await service_pb2_grpc.IdentityGraphServiceStub(channel).Explain(request)
        if session.as_json:
            session.answer(document(response))
        else:
            show_explanation(session, response)


def _record(text: str) -> Any:
    """Take a bare record key as record:KEY."""
    return identifier(text if ":" in text.split("/", maxsplit=1)[0] else f"record:{text}")


def show_explanation(session: Session, response: Any) -> None:
    """Print an explanation."""
    console = session.console
    if response.same:
        console.print(f"the same person, profile {response.left_profile_id}", highlight=False)
    else:
        console.print(f"two persons: {response.left_profile_id} and {response.right_profile_id}", highlight=False)
    for step in response.path:
        shared = f"{step.identifier.kind}:{step.identifier.value}"
        console.print(f"  {step.record} —[{shared}]— {step.next_record}", highlight=False, markup=False)
    for note in response.notes:
        console.print(f"  {note}", highlight=False, markup=False)


def _add_erase(group: click.Group) -> None:
    @command(group, "erase")
    @click.argument("who", metavar="KIND:VALUE")
    @click.option("--reason", default="asked for by the person", help="Why, for the certificate.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    async def erase(session: Session, who: str, reason: str, *, yes: bool) -> None:
        """Erase a person from the log, every store and every index, and print the certificate."""
        who_ = identifier(who)
        if not yes and not session.as_json:
            click.confirm(f"Erase {who} for ever, with every record of theirs?", abort=True, err=True)
        async with session.channel() as channel:
            certificate = await erase_subject(channel, who_, reason)
        if session.as_json:
            session.answer(document(certificate))
        else:
            show_certificate(session, certificate)
        if certificate.waiting_for or any(any(a.remaining.values()) for a in certificate.acknowledgements):
            sys.exit(1)


async def erase_subject(channel: Any, who: Any, reason: str) -> Any:
    """Ask for an erasure and wait, bounded, until every service and the log have acknowledged it."""
    from headwater.identity_graph.v1 import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.IdentityGraphServiceStub(channel)
    erasure = await stub.Erase(service_pb2.EraseRequest(identifier=who, reason=reason))
    request = service_pb2.GetErasureRequest(erasure_id=erasure.erasure_id)
    for _ in range(int(ERASURE_TIMEOUT_S / POLL_S)):
        certificate = await stub.GetErasure(request)
        if certificate.acknowledgements and not certificate.waiting_for:
            break
        await asyncio.sleep(POLL_S)
    return certificate


def show_certificate(session: Session, certificate: Any) -> None:
    """Print what was removed, and what a search found afterwards."""
    session.console.print(f"erasure {certificate.erasure_id}", highlight=False)
    table = Table("service", "removed", "found afterwards")
    for answer in certificate.acknowledgements:
        removed = ", ".join(f"{count} {name}" for name, count in sorted(answer.removed.items()) if count)
        remaining = ", ".join(f"{count} {name}" for name, count in sorted(answer.remaining.items()) if count)
        table.add_row(answer.service, removed or "nothing", remaining or "nothing")
    session.console.print(table)
    for service in certificate.waiting_for:
        session.console.print(f"[red]{service} has not answered yet[/]")
    for words in certificate.out_of_reach:
        session.console.print(f"  out of reach: {words}", highlight=False)
