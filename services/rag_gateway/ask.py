"""One question from beginning to end: wait, gather, compose, answer, check, record."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prometheus_client import Counter, Histogram

from headwater.rag_gateway.v1 import events_pb2, service_pb2
from services.kernel import topics
from services.kernel.errors import HeadwaterError, InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Log, key_of, message_of, partition_of, position_of
from services.rag_gateway import extract
from services.rag_gateway.citations import CitationReader, Draft, drafted, drafted_from, verified
from services.rag_gateway.context import Ingredients, compose, references_only
from services.rag_gateway.conversations import TURNS_GROUP, same_person
from services.rag_gateway.fields import decoded, fields_of
from services.rag_gateway.peers import Gathered, PeerCalls, asker_of
from services.rag_gateway.ports import Conversations, Finished, LanguageModel, Words
from services.rag_gateway.prompt import NO_ANSWER, messages
from services.rag_gateway.question import analyse, standalone
from services.rag_gateway.settings import BUDGET_TOKENS_MAX, TOP_K_MAX, Settings
from services.rag_gateway.words import estimate_tokens

QUESTION_MAX = 8_000  # characters
NAME_MAX = 500
_TURNS = 6
_RELATED_MAX = 6  # rows that the asker's own rows refer to
_RELATED_SCORE = 0.3  # what they are worth in the choice of parts

ANSWER_SECONDS = Histogram(
    "headwater_answer_seconds",
    "From a question to its whole answer.",
    ["model"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ANSWERS = Counter("headwater_answers", "Answers, by model and by whether the context held one.", ["model", "answered"])
UNVERIFIED = Counter("headwater_citations_unverified", "Citations that the server could not verify.", ["model"])
MISSING = Counter("headwater_context_missing", "Parts of contexts that could not be had.", ["part"])


@dataclass(slots=True)
class _Prepared:
    """A question with everything that its answer will be made from."""

    question: service_pb2.Question
    conversation_id: str
    gathered: Gathered
    ingredients: Ingredients
    context: events_pb2.Context
    asked_at: float
    today: str


@dataclass(slots=True)
class _Given:
    """An answer as it was given, before its citations are checked."""

    model: str
    text: str = ""
    answered: bool = True
    drafts: list[Draft] = field(default_factory=list)
    finished: Finished = field(default_factory=Finished)
    missing: list[str] = field(default_factory=list)


class Gateway:
    """Answers questions.

    Args:
        settings: the settings.
        log: where turns are recorded.
        clock: the time, in seconds since the epoch.
        peers: the other services.
        conversations: the read model of conversations.
        model: the model that answers; None answers by extraction.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        log: Log,
        clock: Callable[[], float],
        peers: PeerCalls,
        conversations: Conversations,
        model: LanguageModel | None,
    ) -> None:
        self._settings, self._log, self._clock = settings, log, clock
        self._peers, self._conversations, self._model = peers, conversations, model

    async def ask(self, question: service_pb2.Question) -> AsyncIterator[service_pb2.AskResponse]:
        """Answer a question: the context first, then words, then the whole answer, which is in the log by then.

        Raises:
            InvalidInputError: the question is not one.
            StaleContextError: the demanded position was not reached in time.
        """
        started = time.perf_counter()
        prepared = await self._prepare(question)
        yield service_pb2.AskResponse(context=prepared.context)
        given = _Given(model=extract.MODEL)
        async for words in self._answer(prepared, given):
            yield service_pb2.AskResponse(text=words)
        citations = await self._checked(prepared, given)
        turn = self._turn(prepared, given, citations, (time.perf_counter() - started) * 1000)
        key = key_of(turn.tenant, turn.conversation_id)
        await self._log.append([message_of(topics.CONVERSATIONS, key, turn, int(prepared.asked_at * 1000))])
        latency_s = time.perf_counter() - started
        _count(given, citations, latency_s)
        yield service_pb2.AskResponse(answer=_answer_of(turn, prepared, given, latency_s * 1000))

    async def compose(self, question: service_pb2.Question) -> service_pb2.ComposeResponse:
        """Return the context and the prompt, without asking a model."""
        prepared = await self._prepare(question)
        return service_pb2.ComposeResponse(context=prepared.context, messages=_prompt(prepared))

    # Gathering --------------------------------------------------------------------------------------------------

    async def _prepare(self, question: service_pb2.Question) -> _Prepared:
        _validate(question)
        asked_at = self._clock()
        if question.at_least:
            wait_s = self._settings.at_least_timeout_s
            if question.HasField("at_least_timeout"):
                wait_s = question.at_least_timeout.ToMilliseconds() / 1000
            await self._peers.await_position(question.at_least, max(0.001, wait_s))
        missing: list[str] = []
        turns = await self._history(question, missing)
        looked_up = standalone(question.text, turns[-1].question if turns else "")
        gathered = await self._peers.gather(question, looked_up)
        gathered.missing[:0] = missing
        if gathered.profile is not None:
            mine = {gathered.profile.profile_id, *gathered.profile.aliases}
            turns = same_person(turns, _asked_as(question), mine)
        ingredients = Ingredients(looked_up, gathered.hits, gathered.profile, turns, gathered.missing)
        await self._relate(question, ingredients, gathered)
        context = compose(ingredients, question.budget_tokens or self._settings.budget_tokens)
        context.freshness.extend(gathered.freshness)
        return _Prepared(
            question=question,
            conversation_id=question.conversation_id or f"c_{_unique(asked_at)}",
            gathered=gathered,
            ingredients=ingredients,
            context=context,
            asked_at=asked_at,
            today=datetime.fromtimestamp(asked_at, UTC).date().isoformat(),
        )

    async def _history(self, question: service_pb2.Question, missing: list[str]) -> list[events_pb2.TurnCompleted]:
        """The conversation so far, of this person only: the recorded turns, or those that the caller keeps."""
        if not question.conversation_id:
            return _turns_of(question.history)
        # The turn before may have been recorded a moment ago, here or by another replica.
        key = key_of(question.tenant, question.conversation_id)
        partition = partition_of(key, self._log.partitions(topics.CONVERSATIONS))
        end = (await self._log.end(topics.CONVERSATIONS))[partition]
        recorded = position_of({(topics.CONVERSATIONS, partition): end})
        timeout_s = self._settings.conversation_timeout_s
        if not await self._log.wait_committed([TURNS_GROUP], recorded, timeout_s):
            missing.append(f"conversation: its newest turns were not readable within {timeout_s:g} s")
        turns = self._conversations.turns(question.tenant, question.conversation_id, last=_TURNS)
        return [*_turns_of(question.history), *same_person(turns, _asked_as(question))]

    async def _relate(self, question: service_pb2.Question, ingredients: Ingredients, gathered: Gathered) -> None:
        """Add the rows that the asker's own rows refer to: the hotel of a booking."""
        profile = ingredients.usable_profile
        if profile is None or not analyse(ingredients.question).own:
            return
        found = {hit.document_id.rpartition("/")[2] for hit in gathered.hits}
        own = {record.record.rpartition("/")[2] for record in profile.records}
        newest = sorted(profile.records, key=lambda record: (-record.occurred_at.ToMilliseconds(), record.record))
        referred = dict.fromkeys(
            row.shown
            for record in newest
            for row in fields_of(decoded(record.row_json))
            if row.name.endswith(" id") and row.shown not in own | found
        )
        if referred:
            related = await self._peers.related(question, list(referred)[:_RELATED_MAX])
            for hit in related:
                hit.score = _RELATED_SCORE
            gathered.hits.extend(related)

    # Answering --------------------------------------------------------------------------------------------------

    async def _answer(self, prepared: _Prepared, given: _Given) -> AsyncIterator[str]:
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

    async def _by_model(self, model: LanguageModel, prepared: _Prepared, given: _Given) -> AsyncIterator[str]:
        reader = CitationReader()
        given.model = model.name
        prompt = _prompt(prepared)
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

    async def _checked(self, prepared: _Prepared, given: _Given) -> list[events_pb2.Citation]:
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

    def _turn(
        self, prepared: _Prepared, given: _Given, citations: Sequence[events_pb2.Citation], latency_ms: float
    ) -> events_pb2.TurnCompleted:
        profile = prepared.gathered.profile
        by_model = self._model if self._model is not None and given.model == self._model.name else None
        tokens = given.finished
        turn = events_pb2.TurnCompleted(
            tenant=prepared.question.tenant or DEFAULT_TENANT,
            conversation_id=prepared.conversation_id,
            answer_id=f"a_{_unique(prepared.asked_at)}",
            question=prepared.question.text,
            answer=given.text,
            profile_id=profile.profile_id if profile is not None else "",
            citations=citations,
            context=references_only(prepared.context),
            model=given.model,
            prompt_tokens=tokens.prompt_tokens,
            answer_tokens=tokens.answer_tokens or estimate_tokens(given.text),
            cost=by_model.cost(tokens.prompt_tokens, tokens.answer_tokens) if by_model is not None else 0.0,
            latency_ms=latency_ms,
            answered=given.answered,
            asked_as=_asked_as(prepared.question),
        )
        turn.context.missing.extend(given.missing)
        turn.asked_at.FromMilliseconds(int(prepared.asked_at * 1000))
        return turn


def _prompt(prepared: _Prepared) -> list[service_pb2.PromptMessage]:
    instructions = [message.content for message in prepared.question.history if message.role == "system"]
    return messages(prepared.question.text, prepared.context, prepared.today, instructions)


def _answer_of(
    turn: events_pb2.TurnCompleted, prepared: _Prepared, given: _Given, latency_ms: float
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


def _count(given: _Given, citations: Sequence[events_pb2.Citation], latency_s: float) -> None:
    ANSWER_SECONDS.labels(given.model).observe(latency_s)
    ANSWERS.labels(given.model, "yes" if given.answered else "no").inc()
    UNVERIFIED.labels(given.model).inc(sum(not citation.verified for citation in citations))
    for missing in given.missing:
        MISSING.labels(missing.split(":")[0].split(" ")[0]).inc()


def _turns_of(history: Sequence[service_pb2.PromptMessage]) -> list[events_pb2.TurnCompleted]:
    """The caller's own messages as turns: each question with what was answered to it."""
    turns: list[events_pb2.TurnCompleted] = []
    for message in history:
        if message.role == "user":
            turns.append(events_pb2.TurnCompleted(question=message.content))
        elif message.role == "assistant" and turns:
            turns[-1].answer = f"{turns[-1].answer}\n{message.content}".strip()
    return turns[-_TURNS:]


def _asked_as(question: service_pb2.Question) -> str:
    asker = asker_of(question)
    return f"{asker.kind}:{asker.value}" if asker.kind else ""


def _unique(at: float) -> str:
    """A name that is unique, and sorts by time (as UUID version 7 does)."""
    return f"{int(at * 1000):012x}{secrets.token_hex(10)}"


def _validate(question: service_pb2.Question) -> None:
    if not question.text.strip():
        raise InvalidInputError("the question is empty: say what you want to know")
    if len(question.text) > QUESTION_MAX:
        raise InvalidInputError(f"the question has {len(question.text)} characters; at most {QUESTION_MAX} are taken")
    if len(question.conversation_id) > NAME_MAX or "\x1f" in question.conversation_id:
        raise InvalidInputError(f"conversation_id: at most {NAME_MAX} characters, none of them a control character")
    asker = asker_of(question)
    if bool(asker.kind) != bool(asker.value):
        raise InvalidInputError("`as` names who asks by a kind and a value, such as email and ada@example.com")
    if not 0 <= question.budget_tokens <= BUDGET_TOKENS_MAX:
        raise InvalidInputError(f"budget_tokens must be between 0 and {BUDGET_TOKENS_MAX}")
    if not 0 <= question.top_k <= TOP_K_MAX:
        raise InvalidInputError(f"top_k must be between 0 and {TOP_K_MAX}")
