"""Everything that an answer will be made from: wait for the demanded position, gather, compose."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from headwater.rag_gateway.v1 import events_pb2, service_pb2
from services.kernel import topics
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.log import Log, key_of, partition_of, position_of
from services.rag_gateway.context import Ingredients, compose
from services.rag_gateway.conversations import TURNS_GROUP, same_person
from services.rag_gateway.fields import decoded, fields_of
from services.rag_gateway.peers import Gathered, PeerCalls, asker_of
from services.rag_gateway.ports import Conversations
from services.rag_gateway.question import analyse, standalone
from services.rag_gateway.settings import BUDGET_TOKENS_MAX, TOP_K_MAX, Settings

QUESTION_MAX = 8_000  # characters
NAME_MAX = 500
_TURNS = 6
_RELATED_MAX = 6  # rows that the asker's own rows refer to
_RELATED_SCORE = 0.3  # what they are worth in the choice of parts


@dataclass(slots=True)
class Prepared:
    """A question with everything that its answer will be made from."""

    question: service_pb2.Question
    conversation_id: str
    gathered: Gathered
    ingredients: Ingredients
    context: events_pb2.Context
    asked_at: float
    today: str


class Preparer:
    """Prepares questions.

    Args:
        settings: the settings.
        log: the log, to wait for the conversation's newest turn.
        clock: the time, in seconds since the epoch.
        peers: the other services.
        conversations: the read model of conversations.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        log: Log,
        clock: Callable[[], float],
        peers: PeerCalls,
        conversations: Conversations,
    ) -> None:
        self._settings, self._log, self._clock = settings, log, clock
        self._peers, self._conversations = peers, conversations

    async def prepare(self, question: service_pb2.Question) -> Prepared:
        """Prepare a question.

        Raises:
            InvalidInputError: it is not one.
            StaleContextError: the demanded position was not reached in time.
        """
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
            turns = same_person(turns, asked_as(question), mine)
        ingredients = Ingredients(looked_up, gathered.hits, gathered.profile, turns, gathered.missing)
        await self._relate(question, ingredients, gathered)
        context = compose(ingredients, question.budget_tokens or self._settings.budget_tokens)
        context.freshness.extend(gathered.freshness)
        return Prepared(
            question=question,
            conversation_id=question.conversation_id or f"c_{unique(asked_at)}",
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
        turns: list[events_pb2.TurnCompleted] = []
        timeout_s = self._settings.conversation_timeout_s
        try:
            if not await self._is_recorded(question, timeout_s):
                missing.append(f"conversation: its newest turns were not readable within {timeout_s:g} s")
            async with asyncio.timeout(timeout_s):
                turns = await self._conversations.turns(question.tenant, question.conversation_id, last=_TURNS)
        except UnavailableError as error:
            missing.append(f"conversation: {error}")
        except TimeoutError:
            missing.append(f"conversation: its turns could not be read within {timeout_s:g} s")
        return [*_turns_of(question.history), *same_person(turns, asked_as(question))]

    async def _is_recorded(self, question: service_pb2.Question, timeout_s: float) -> bool:
        """Wait for the turn before: it may have been recorded a moment ago, here or by another replica."""
        key = key_of(question.tenant, question.conversation_id)
        partition = partition_of(key, self._log.partitions(topics.CONVERSATIONS))
        end = (await self._log.end(topics.CONVERSATIONS))[partition]
        recorded = position_of({(topics.CONVERSATIONS, partition): end})
        return await self._log.wait_committed([TURNS_GROUP], recorded, timeout_s)

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


def asked_as(question: service_pb2.Question) -> str:
    """Who asks, as kind:value; empty when nobody is named."""
    asker = asker_of(question)
    return f"{asker.kind}:{asker.value}" if asker.kind else ""


def unique(at: float) -> str:
    """A name that is unique, and sorts by time (as UUID version 7 does)."""
    return f"{int(at * 1000):012x}{secrets.token_hex(10)}"


def _turns_of(history: Sequence[service_pb2.PromptMessage]) -> list[events_pb2.TurnCompleted]:
    """The caller's own messages as turns: each question with what was answered to it."""
    turns: list[events_pb2.TurnCompleted] = []
    for message in history:
        if message.role == "user":
            turns.append(events_pb2.TurnCompleted(question=message.content))
        elif message.role == "assistant" and turns:
            turns[-1].answer = f"{turns[-1].answer}\n{message.content}".strip()
    return turns[-_TURNS:]


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
