"""`headwater search` and `headwater ask`."""

import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.table import Table

from services.cli.session import Session, command, document, identifier

QUOTE_CHARACTERS = 200


def add_to(group: click.Group) -> None:
    """Add these commands."""

    @command(group, "search")
    @click.argument("text")
    @click.option("--top", default=10, help="How many chunks.")
    @click.option("--access", multiple=True, help="An access label that you hold; may be repeated.")
    async def search(session: Session, text: str, top: int, access: Sequence[str]) -> None:
        """Find the chunks nearest to TEXT, by meaning and by words."""
        from headwater.embedder.v1 import service_pb2, service_pb2_grpc

        async with session.channel() as channel:
            request = service_pb2.SearchRequest(query=text, top_k=top, access=access)
            response = await service_pb2_grpc.EmbedderServiceStub(channel).Search(request)
        if session.as_json:
            session.answer(document(response))
            return
        table = Table("score", "document", "text")
        for hit in response.hits:
            words = " ".join(hit.text.split())
            table.add_row(f"{hit.score:.3f}", hit.document_id, words[:QUOTE_CHARACTERS])
        session.console.print(table if response.hits else "Nothing found.")
        for missing in response.missing:
            session.console.print(f"[yellow]without {missing}[/]")

    @command(group, "ask")
    @click.argument("text")
    @click.option("--as", "as_", help="Who asks, as kind:value, for example email:ada@example.com.")
    @click.option("--conversation", default="", help="The conversation to go on with.")
    @click.option("--at-least", default="", help="A position token: the answer must have seen that change.")
    @click.option("--access", multiple=True, help="An access label that you hold; may be repeated.")
    async def ask(
        session: Session, text: str, as_: str | None, conversation: str, at_least: str, access: Sequence[str]
    ) -> None:
        """Ask a question: the answer, its citations, and how fresh its context was."""
        from headwater.rag_gateway.v1 import service_pb2

        question = service_pb2.Question(text=text, conversation_id=conversation, at_least=at_least, access=access)
        if as_ is not None:
            getattr(question, "as").CopyFrom(identifier(as_))
        async with session.channel() as channel:
            answer = await stream(channel, question, quiet=session.as_json)
        if session.as_json:
            session.answer(document(answer))
        else:
            show_answer(session, answer)
        if not answer.answered:
            sys.exit(1)


async def stream(channel: Any, question: Any, *, quiet: bool) -> Any:
    """Ask, print the words as they come unless quiet, and return the whole Answer."""
    from headwater.rag_gateway.v1 import service_pb2, service_pb2_grpc

    answer = service_pb2.Answer()
    async for piece in service_pb2_grpc.RagGatewayServiceStub(channel).Ask(service_pb2.AskRequest(question=question)):
        if piece.WhichOneof("piece") == "text" and not quiet:
            click.echo(piece.text, nl=False)
        elif piece.WhichOneof("piece") == "answer":
            answer = piece.answer
    if not quiet:
        click.echo()
    return answer


def show_answer(session: Session, answer: Any) -> None:
    """Print what stands beside an answer: citations, freshness, what was missing, its ids."""
    console = session.console
    for citation in answer.citations:
        mark = "[green]verified[/]" if citation.verified else "[red]not verified[/]"
        quote = " ".join(citation.quote.split())[:QUOTE_CHARACTERS]
        where = (
            f"{citation.title or citation.document_id}, version {citation.version[:8]}, {citation.start}-{citation.end}"
        )
        console.print(f"  \\[{citation.number}] {where}, {mark}: “{quote}”", highlight=False)
    stores = [f"{store.store} as of {_as_of(store)}" for store in answer.freshness]
    console.print(f"  fresh: {'; '.join(stores)}", highlight=False)
    for missing in answer.missing:
        console.print(f"  [yellow]without {missing}[/]")
    console.print(
        f"  answer {answer.answer_id}, conversation {answer.conversation_id}, by {answer.model}, "
        f"{answer.latency_ms:.0f} ms",
        highlight=False,
    )


def _as_of(store: Any) -> str:
    """Say what a store is current to, in the sources' own time."""
    newest = max((source.as_of.ToDatetime() for source in store.sources), default=None)
    words = f"{newest:%Y-%m-%d %H:%M:%S}" if newest else "nothing"
    return words + (f" ({store.behind} records behind)" if store.behind else "")
