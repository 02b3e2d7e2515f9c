"""The answer to a prepared question: by the model or by extraction, and the check of its citations."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from headwater.rag_gateway.v1 import events_pb2, service_pb2
from services.kernel.errors import HeadwaterError
from services.rag_gateway import extract
from services.rag_gateway.citations import CitationReader, Draft, drafted, drafted_from, verified
from services.rag_gateway.peers import PeerCalls
from services.rag_gateway.ports import Finished, LanguageModel, Words
from services.rag_gateway.preparing import Prepared
from services.rag_gateway.prompt import NO_ANSWER, messages
from services.rag_gateway.words import estimate_tokens


@dataclass(slots=True)
class Given:
    """An answer as it was given, before its citations are checked."""

    model: str
    text: str = ""
    answered: bool = True
    drafts: list[Draft] = field(default_factory=list)
    finished: Finished = field(default_factory=Finished)
    missing: list[str] = field(default_factory=list)


class Answerer:
    """Answers prepared questions.

    Args:
        peers: the knowledge base, for the check of citations.
        model: the model that answers; None answers by extraction.
    """

    def __init__(self, peers: PeerCalls, model: LanguageModel | None) -> None:
        self._peers, self._model = peers, model

    async def words(self, prepared: Prepared, given: Given) -> AsyncIterator[str]:
        """Answer with the model; by extraction where there is none, or where it fails."""
        if self._model is not None:
            try:
                async for words in self._by_model(self._model, prepared, given):
                    yield words
            except HeadwaterError as error:
                given.missing.append(f"model {self._model.name}: {error}; the answer is an extract")
                if given.text:
                    yield "\n\n"
                    given.text += "\n\n"
            else:
                return
        found = extract.answer(prepared.question.text, prepared.context, prepared.ingredients, prepared.today)
        given.model, given.answered = extract.MODEL, found.answered
        given.text += found.text
        given.drafts.extend(drafted_from(found.quotes, prepared.context))
        yield found.text

    async def _by_model(self, model: LanguageModel, prepared: Prepared, given: Given) -> AsyncIterator[str]:
        reader = CitationReader()
        given.model = model.name
        prompt = prompt_of(prepared)
        try:
            async for piece in model.stream(prompt):
                if isinstance(piece, Words):
                    if words := reader.feed(piece.text):
                        yield words
                else:
                    given.finished = piece
            if words := reader.close():
                yield words
        finally:
            given.text = reader.text
            given.drafts = drafted(reader.text, reader.mentions, prepared.context)
        given.answered = bool(reader.text.strip()) and not reader.text.lstrip().startswith(NO_ANSWER.rstrip("."))
        if given.finished.cut:
            given.missing.append(given.finished.cut)
        given.finished = Finished(
            given.finished.prompt_tokens or sum(estimate_tokens(message.content) for message in prompt),
            given.finished.answer_tokens or estimate_tokens(reader.text),
        )

    async def checked(self, prepared: Prepared, given: Given) -> list[events_pb2.Citation]:
        """The citations, each looked up in the version that it cites; those that fail are named."""
        wanted = {
            (draft.citation.document_id, draft.citation.version)
            for draft in given.drafts
            if draft.part is not None and draft.part.kind == events_pb2.PART_KIND_KNOWLEDGE and not draft.problem
        }
        texts: dict[tuple[str, str], str | None] = {}
        try:
            found = await asyncio.gather(*(self._peers.document(prepared.question, *place) for place in sorted(wanted)))
            texts = dict(zip(sorted(wanted), found, strict=True))
        except HeadwaterError as error:
            given.missing.append(f"check of citations: {error}")
        checked = [verified(draft, texts) for draft in given.drafts]
        given.missing.extend(f"citation {draft.problem}" for draft in checked if draft.problem)
        return [draft.citation for draft in checked]

    def cost(self, given: Given) -> float:
        """What an answer cost, in the configured currency; an extract costs nothing."""
        if self._model is None or given.model != self._model.name:
            return 0.0
        return self._model.cost(given.finished.prompt_tokens, given.finished.answer_tokens)


def prompt_of(prepared: Prepared) -> list[service_pb2.PromptMessage]:
    """The prompt for a model."""
    instructions = [message.content for message in prepared.question.history if message.role == "system"]
    return messages(prepared.question.text, prepared.context, prepared.today, instructions)
