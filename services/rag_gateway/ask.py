"""One question from beginning to end: prepare, answer, check, record."""

import time
from collections.abc import AsyncIterator, Sequence

from prometheus_client import Counter, Histogram

from headwater.rag_gateway.v1 import events_pb2, service_pb2
from services.kernel import topics
from services.kernel.log import DEFAULT_TENANT, Log, key_of, message_of
from services.rag_gateway import extract
from services.rag_gateway.answering import Answerer, Given, prompt_of
from services.rag_gateway.context import references_only
from services.rag_gateway.preparing import Prepared, Preparer, asked_as, unique
from services.rag_gateway.words import estimate_tokens

ANSWER_SECONDS = Histogram(
    "headwater_answer_seconds",
    "From a question to its whole answer.",
    ["model"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ANSWERS = Counter("headwater_answers", "Answers, by model and by whether the context held one.", ["model", "answered"])
UNVERIFIED = Counter("headwater_citations_unverified", "Citations that the server could not verify.", ["model"])
MISSING = Counter("headwater_context_missing", "Parts of contexts that could not be had.", ["part"])


class Gateway:
    """Answers questions.

    Args:
        preparer: gathers what answers are made from.
        answerer: makes them.
        log: where turns are recorded.
    """

    def __init__(self, preparer: Preparer, answerer: Answerer, log: Log) -> None:
        self._preparer, self._answerer, self._log = preparer, answerer, log

    async def ask(self, question: service_pb2.Question) -> AsyncIterator[service_pb2.AskResponse]:
        """Answer a question: the context first, then words, then the whole answer, which is in the log by then.

        Raises:
            InvalidInputError: the question is not one.
            StaleContextError: the demanded position was not reached in time.
        """
        started = time.perf_counter()
        prepared = await self._preparer.prepare(question)
        answer_id = f"a_{unique(prepared.asked_at)}"
        yield service_pb2.AskResponse(context=prepared.context, answer_id=answer_id)
        given = Given(model=extract.MODEL)
        async for words in self._answerer.words(prepared, given):
            yield service_pb2.AskResponse(text=words, answer_id=answer_id)
        citations = await self._answerer.checked(prepared, given)
        turn = self._turn(answer_id, prepared, given, citations, (time.perf_counter() - started) * 1000)
        key = key_of(turn.tenant, turn.conversation_id)
        # An answer is no promise that must survive a power failure: it does not wait for the disk.
        message = message_of(topics.CONVERSATIONS, key, turn, int(prepared.asked_at * 1000))
        await self._log.append([message], durable=False)
        latency_s = time.perf_counter() - started
        _count(prepared, given, citations, latency_s)
        answer = _answer_of(turn, prepared, given, latency_s * 1000)
        yield service_pb2.AskResponse(answer=answer, answer_id=answer_id)

    async def compose(self, question: service_pb2.Question) -> service_pb2.ComposeResponse:
        """Return the context and the prompt, without asking a model."""
        prepared = await self._preparer.prepare(question)
        return service_pb2.ComposeResponse(context=prepared.context, messages=prompt_of(prepared))

    def _turn(
        self,
        answer_id: str,
        prepared: Prepared,
        given: Given,
        citations: Sequence[events_pb2.Citation],
        latency_ms: float,
    ) -> events_pb2.TurnCompleted:
        profile = prepared.gathered.profile
        turn = events_pb2.TurnCompleted(
            tenant=prepared.question.tenant or DEFAULT_TENANT,
            conversation_id=prepared.conversation_id,
            answer_id=answer_id,
            question=prepared.question.text,
            answer=given.text,
            profile_id=profile.profile_id if profile is not None else "",
            citations=citations,
            context=references_only(prepared.context),
            model=given.model,
            prompt_tokens=given.finished.prompt_tokens,
            answer_tokens=given.finished.answer_tokens or estimate_tokens(given.text),
            cost=self._answerer.cost(given),
            latency_ms=latency_ms,
            answered=given.answered,
            asked_as=asked_as(prepared.question),
        )
        turn.context.missing.extend(given.missing)
        turn.asked_at.FromMilliseconds(int(prepared.asked_at * 1000))
        return turn


def _answer_of(
    turn: events_pb2.TurnCompleted, prepared: Prepared, given: Given, latency_ms: float
) -> service_pb2.Answer:
    usable = prepared.ingredients.usable_profile
    return service_pb2.Answer(
        answer_id=turn.answer_id,
        conversation_id=turn.conversation_id,
        text=turn.answer,
        citations=turn.citations,
        freshness=prepared.context.freshness,
        model=turn.model,
        answered=turn.answered,
        missing=[*prepared.context.missing, *given.missing],
        latency_ms=latency_ms,
        profile_id=usable.profile_id if usable is not None else "",
        prompt_tokens=turn.prompt_tokens,
        answer_tokens=turn.answer_tokens,
    )


def _count(prepared: Prepared, given: Given, citations: Sequence[events_pb2.Citation], latency_s: float) -> None:
    ANSWER_SECONDS.labels(given.model).observe(latency_s)
    ANSWERS.labels(given.model, "yes" if given.answered else "no").inc()
    UNVERIFIED.labels(given.model).inc(sum(not citation.verified for citation in citations))
    for missing in (*prepared.context.missing, *given.missing):
        MISSING.labels(missing.split(":")[0].split(" ")[0]).inc()
