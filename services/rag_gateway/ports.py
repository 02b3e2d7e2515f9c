"""What the gateway needs from outside, beside its peers' gRPC contracts."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from headwater.rag_gateway.v1 import events_pb2, service_pb2
from services.kernel.processor import Store
from services.rag_gateway.conversations import Turns


@dataclass(frozen=True, slots=True)
class Words:
    """The next words of a model."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a model's answer.

    Attributes:
        prompt_tokens: tokens of the prompt, as the endpoint counted them; 0 when it did not say.
        answer_tokens: tokens of the answer; 0 when it did not say.
        cut: why the answer is not whole, in plain words; empty when it is.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    cut: str = ""


Piece = Words | Finished


class LanguageModel(Protocol):
    """A model that answers a prompt."""

    @property
    def name(self) -> str:
        """The model's name, for answers and KPIs."""

    def stream(self, messages: Sequence[service_pb2.PromptMessage]) -> AsyncIterator[Piece]:
        """Answer, word by word; `Finished` comes last.

        Raises:
            UnavailableError: it cannot be reached, refuses, or broke off.
            OverloadedError: it asks to come back later than the deadline.
            DeadlineError: it took longer than the configured time.
        """

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        """What an answer costs, in the configured currency."""

    async def close(self) -> None:
        """Close connections."""


class Conversations(Protocol):
    """The read model of conversations, for questions."""

    async def turns(
        self, tenant: str, conversation_id: str, *, last: int | None = None
    ) -> list[events_pb2.TurnCompleted]:
        """The turns of a conversation, oldest first; only the last few where `last` is given.

        Raises:
            UnavailableError: the store cannot be reached.
        """


class TurnStore(Conversations, Store[Turns], Protocol):
    """The read model of conversations: the state of gateway-turns."""

    async def reset(self) -> None:
        """Empty it, within the open unit of work where the store is in the local database."""

    async def state_hash(self, snapshot: sqlite3.Connection) -> str:
        """The hash of all turns: of a snapshot of the local database, where they are in it."""
