"""`headwater demo`: the tour on shipped data, in under a minute.

A travel company's change events, captured by a real Debezium from a real PostgreSQL, and its documents: a snapshot, a
question, a change, the question again; two people become one and come apart again; a rating moves a KPI; an erasure.
"""

import asyncio
import contextlib
import io
import resource
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from services.cli.ask import show_answer, stream
from services.cli.feedback import parse_rating
from services.cli.ingest import import_turns, until_processed
from services.cli.people import erase_subject, show_certificate, show_explanation
from services.cli.session import Session, command, document, identifier
from services.kernel.errors import HeadwaterError, UnavailableError
from services.kernel.settings import load

ADA = "email:ada.lindqvist@fjordmail.example"
CHIARA = "email:chiara.romano@example.com"


def add_to(group: click.Group) -> None:
    """Add this command."""

    @command(group, "demo")
    @click.option("--keep", is_flag=True, help="Leave the page running at the end.")
    async def demo(session: Session, *, keep: bool) -> None:
        """Take the tour on shipped data: nothing of it needs a key, a server or a network."""
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-demo-")))
            await _tour(session, folder, keep=keep, started=started)


def demo_folder() -> Path:
    """Return the folder of the shipped data: in a checkout, or in the installed package.

    Raises:
        UnavailableError: it is in neither.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "demo", here.parents[1] / "demo_data"):
        if (folder / "changes").is_dir():
            return folder
    raise UnavailableError("the demo's data is not installed: reinstall headwater from a wheel or a checkout")


class Tour:
    """What the steps of the tour share."""

    def __init__(self, session: Session, channel: Any, data: Path) -> None:
        self.session, self.channel, self.data = session, channel, data
        self.facts: list[dict[str, Any]] = []
        self.token = ""

    def step(self, title: str) -> None:
        """Begin a step."""
        if not self.session.as_json:
            self.session.console.rule(f"[bold]{title}", align="left")

    def say(self, words: str) -> None:
        """Print a line for a person."""
        if not self.session.as_json:
            self.session.console.print(words, highlight=False)

    def record(self, step: str, **facts: Any) -> None:
        """Keep what a step found, for --json."""
        self.facts.append({"step": step, **facts})

    async def ingest(self, name: str) -> None:
        """Push a captured file; the next question must have seen it."""
        from headwater.ingest.v1 import service_pb2_grpc
        from services.ingest.client import push_file

        stub = service_pb2_grpc.IngestServiceStub(self.channel)
        totals = await push_file(stub, str(self.data / "changes" / name), "", "auto", lambda _done: None)
        self.token = totals.position_token
        self.say(f"{totals.accepted} change events from {name} are in the log.")
        self.record("ingest", file=name, accepted=totals.accepted)

    async def history(self) -> None:
        """Import the company's past conversations with their ratings."""
        content = await asyncio.to_thread((self.data / "conversations.jsonl").read_bytes)
        response = await import_turns(self.channel, io.BytesIO(content))
        self.say(f"{response.turns} past turns with {response.ratings} ratings were imported.")
        self.record("history", turns=response.turns, ratings=response.ratings)

    async def processed(self) -> None:
        """Wait until everything in the log has been processed."""
        await until_processed(self.session, self.channel)

    async def ask(self, text: str, who: str | None = None) -> Any:
        """Ask, with the newest change as the least that the answer must have seen."""
        from headwater.rag_gateway.v1 import service_pb2

        question = service_pb2.Question(text=text, at_least=self.token)
        question.at_least_timeout.FromSeconds(30)
        if who is not None:
            getattr(question, "as").CopyFrom(identifier(who))
        self.say(f"[bold cyan]? {text}[/]" + (f"  [dim](as {who})[/]" if who else ""))
        answer = await stream(self.channel, question, quiet=self.session.as_json)
        if not self.session.as_json:
            show_answer(self.session, answer)
        self.record("ask", question=text, answer=document(answer))
        return answer

    async def explain(self, left: str, right: str) -> None:
        """Show why two records are or are not the same person."""
        from headwater.identity_graph.v1 import service_pb2, service_pb2_grpc

        stub = service_pb2_grpc.IdentityGraphServiceStub(self.channel)
        request = service_pb2.ExplainRequest(left=identifier(f"record:{left}"), right=identifier(f"record:{right}"))
        response = await stub.Explain(request)
        if not self.session.as_json:
            show_explanation(self.session, response)
        self.record("explain", explanation=document(response))

    async def satisfaction(self) -> Any:
        """Return the satisfaction KPI of the newest hour, for all models together."""
        from headwater.feedback.v1 import service_pb2, service_pb2_grpc

        stub = service_pb2_grpc.FeedbackServiceStub(self.channel)
        response = await stub.GetKpis(service_pb2.GetKpisRequest(kpis=["satisfaction"], window="3600s"))
        rows = [kpi for kpi in response.kpis if not kpi.dimensions]
        return max(rows, key=lambda kpi: kpi.window_start.ToMilliseconds())


async def _tour(session: Session, folder: Path, *, keep: bool, started: float) -> None:
    data = demo_folder()
    policies = folder / "policies"
    await asyncio.to_thread(shutil.copytree, data / "policies", policies)
    settings = load(data / "headwater.toml")
    tables = {**settings.tables, "ingest": {"folders": [{"path": str(policies), "source": "policies"}]}}
    settings = replace(settings, data=folder / "data", tables=tables, grpc_address="127.0.0.1:0")
    if not keep:
        settings = replace(settings, http_address="127.0.0.1:0")
    async with _services(settings) as (channel, url):
        tour = Tour(session, channel, data)
        await _run(tour, policies)
        seconds = time.perf_counter() - started
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        tour.record("end", seconds=round(seconds, 1), peak_mib=peak_mib)
        tour.step("The end of the tour")
        tour.say(f"It took {seconds:.1f} s and at most {peak_mib} MiB of memory, in one process.")
        if session.as_json:
            session.answer(tour.facts)
        if keep:
            from services.kernel.runner import until_signalled

            click.echo(f"The page is at {url} until Ctrl-C.", err=session.as_json)
            await until_signalled()


@contextlib.asynccontextmanager
async def _services(settings: Any) -> AsyncIterator[tuple[Any, str]]:
    import grpc

    from services.embedded import served
    from services.kernel.errors import from_rpc
    from services.kernel.service import CHANNEL_OPTIONS

    async with (
        served(settings) as (runtime, url),
        grpc.aio.insecure_channel(runtime.address, options=CHANNEL_OPTIONS) as channel,
    ):
        try:
            yield channel, url
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, runtime.address) from error


async def _run(tour: Tour, policies: Path) -> None:
    tour.step("1. The snapshot: customers, bookings, hotels, flights, documents, and past conversations")
    await tour.ingest("00-snapshot.jsonl")
    await tour.history()
    await tour.processed()
    await tour.ask("How long can I cancel free of charge after booking?")
    await tour.ask("Where am I staying in March, and from when?", ADA)
    await tour.ask("How many seats are left on MT103, and what does it cost?")

    tour.step("2. The booking is moved, a flight fills up: the next answer has seen it")
    await tour.ingest("10-booking-moved.jsonl")
    await tour.ask("Where am I staying in March, and from when?", ADA)
    await tour.ask("How many seats are left on MT103, and what does it cost?")

    tour.step("3. The refund policy is amended: the file is replaced, nothing else is done")
    await asyncio.to_thread(shutil.copy, tour.data / "policies-amended" / "refund-policy.md", policies)
    await _until_amended(tour)
    await tour.ask("How long can I cancel free of charge after booking?")

    tour.step("4. Two people become one, by an account that took over an address")
    await tour.ingest("20-merge.jsonl")
    mixed_up = await tour.ask("Which trips have I booked?", ADA)
    await tour.explain("crm/customers/1001", "bookings/bookings/MB-70403")

    tour.step("5. The account is corrected: they come apart again, and nothing of the other is left")
    await tour.ingest("30-unmerge.jsonl")
    right = await tour.ask("Which trips have I booked?", ADA)
    await tour.explain("crm/customers/1001", "bookings/bookings/MB-70403")

    tour.step("6. The source changes shape: new columns, a new type, a new key, a truncate")
    await tour.ingest("40-drift.jsonl")
    await tour.ask("What do I eat?", ADA)

    tour.step("7. Ratings move a KPI")
    await _rate(tour, mixed_up, right)

    tour.step("8. A person is erased: from the log, every store and every index")
    await tour.processed()
    certificate = await erase_subject(tour.channel, identifier(CHIARA), "asked for by the person")
    if not tour.session.as_json:
        show_certificate(tour.session, certificate)
    tour.record("erase", certificate=document(certificate))
    if certificate.waiting_for:
        raise HeadwaterError(f"the erasure is not done: {', '.join(certificate.waiting_for)} did not answer")


async def _until_amended(tour: Tour) -> None:
    """Wait until the amended policy is searchable; the folder is watched, so there is no position to wait for."""
    from headwater.embedder.v1 import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.EmbedderServiceStub(tour.channel)
    started = time.perf_counter()
    request = service_pb2.SearchRequest(
        query="free cancellation within 48 hours of booking", top_k=5, sources=["policies"]
    )
    for _ in range(600):
        response = await stub.Search(request)
        if any("48 hours" in hit.text and "refund-policy" in hit.document_id for hit in response.hits):
            ms = (time.perf_counter() - started) * 1000
            tour.say(f"The amended policy could be found {ms:.0f} ms after the file was written.")
            tour.record("amended", searchable_after_ms=round(ms))
            return
        await asyncio.sleep(0.01)
    raise HeadwaterError("the amended policy did not become searchable within its time")


async def _rate(tour: Tour, mixed_up: Any, right: Any) -> None:
    """Rate two answers and show what the KPI of this hour is after each."""
    from headwater.feedback.v1 import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.FeedbackServiceStub(tour.channel)
    ratings = ((right, "up", "Exactly my trips, thank you!"), (mixed_up, "down", "Kyoto? That is not my trip."))
    for answer, rating, words in ratings:
        await stub.Rate(service_pb2.RateRequest(rating=parse_rating(answer.answer_id, rating, words)))
        await tour.processed()
        kpi = await tour.satisfaction()
        tour.say(f"“{words}” ({rating}): satisfaction of this hour is {kpi.value:.2f}, of {kpi.count} ratings.")
        tour.record("rate", rating=rating, satisfaction=document(kpi))
