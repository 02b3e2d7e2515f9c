"""`headwater rate`, `headwater kpis` and `headwater export`."""

import os
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from services.cli.session import Group, Session, command, document, identifier
from services.kernel.errors import InvalidInputError


def add_to(group: click.Group) -> None:
    """Add these commands."""
    _add_ratings(group)
    export = Group("export", help="Data out.")
    group.add_command(export)
    _add_export(export)


def _add_ratings(group: click.Group) -> None:
    from headwater.feedback.v1 import service_pb2, service_pb2_grpc

    @command(group, "rate")
    @click.argument("answer")
    @click.argument("rating", metavar="up|down|1-5")
    @click.option("--text", default="", help="In your own words.")
    async def rate(session: Session, answer: str, rating: str, text: str) -> None:
        """Rate an ANSWER by its id."""
        request = service_pb2.RateRequest(rating=parse_rating(answer, rating, text))
        async with session.channel() as channel:
            response = await service_pb2_grpc.FeedbackServiceStub(channel).Rate(request)
        if session.as_json:
            session.answer(document(response))
        else:
            session.console.print("Thank you.")

    @command(group, "kpis")
    @click.option("--window", default="", help="Only windows of this length, for example 60s or 300s/60s.")
    async def kpis(session: Session, window: str) -> None:
        """Show the KPIs per window of event time."""
        async with session.channel() as channel:
            request = service_pb2.GetKpisRequest(window=window)
            response = await service_pb2_grpc.FeedbackServiceStub(channel).GetKpis(request)
        if session.as_json:
            session.answer(document(response))
        else:
            session.console.print(
                kpi_table(response.kpis) if response.kpis else "There are no KPIs yet: ask something."
            )


def parse_rating(answer: str, rating: str, text: str) -> Any:
    """Return the rating that a person typed; raises InvalidInputError for anything but up, down and 1 to 5."""
    from headwater.feedback.v1 import events_pb2

    rated = events_pb2.AnswerRated(answer_id=answer, text=text)
    if rating in ("up", "down"):
        rated.up = rating == "up"
    elif rating in ("1", "2", "3", "4", "5"):
        rated.scale = int(rating)
    else:
        raise InvalidInputError(f"rating {rating!r} is none: give up, down, or 1 to 5")
    return rated


def kpi_table(kpis: Any) -> Table:
    """Return KPIs as a table."""
    table = Table("KPI", "window (UTC)", "dimensions", "value", "of", "revision")
    for kpi in kpis:
        start, end = kpi.window_start.ToDatetime(), kpi.window_end.ToDatetime()
        dimensions = ", ".join(f"{name}={value}" for name, value in sorted(kpi.dimensions.items()))
        value = f"{kpi.value:.3f}" if kpi.HasField("value") else "-"
        span = f"{start:%Y-%m-%d %H:%M} to {end:%H:%M}"
        table.add_row(kpi.kpi, span, dimensions, value, str(kpi.count), str(kpi.revision))
    return table


def _add_export(group: click.Group) -> None:
    from headwater.feedback.v1 import service_pb2, service_pb2_grpc
    from headwater.profile.v1 import service_pb2 as profile_pb2, service_pb2_grpc as profile_grpc

    @command(group, "lake")
    @click.argument("folder", type=click.Path(path_type=Path))
    @click.option("--format", "format_", type=click.Choice(["parquet", "json-lines"]), default="parquet")
    async def lake(session: Session, folder: Path, format_: str) -> None:
        """Write conversations with their ratings to FOLDER, a file a day."""
        formats = {
            "parquet": service_pb2.EXPORT_FORMAT_PARQUET,
            "json-lines": service_pb2.EXPORT_FORMAT_JSON_LINES,
        }
        request = service_pb2.ExportRequest(folder=os.path.abspath(folder), format=formats[format_])
        last = service_pb2.ExportResponse()
        async with session.channel() as channel:
            with session.progress.status("exporting") as status:
                async for last in service_pb2_grpc.FeedbackServiceStub(channel).Export(request):
                    status.update(f"exporting: {last.turns:,} turns")
        if session.as_json:
            session.answer(document(last))
        else:
            session.console.print(f"{last.turns:,} turns in {len(last.files)} files")
            for name in last.files:
                click.echo(name)

    @command(group, "subject")
    @click.argument("who", metavar="KIND:VALUE")
    async def subject(session: Session, who: str) -> None:
        """Print all that is known of a person, as JSON, for an access request."""
        async with session.channel() as channel:
            request = profile_pb2.GetProfileRequest(identifier=identifier(who))
            response = await profile_grpc.ProfileServiceStub(channel).GetProfile(request)
        session.answer(document(response))
