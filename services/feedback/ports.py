"""What the service needs of its stores, beside the kernel's `Store` of its two processors."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from services.feedback.answers import Key
from services.feedback.projection import KpiRow


class KpiQuery(NamedTuple):
    """Which KPIs: of a tenant, of these names (none means all), of windows that end after, of one specification."""

    tenant: str
    kpis: Collection[str] = ()
    ends_after_ms: int = -1
    window: str = ""


class KpiReader(Protocol):
    """The KPIs, for queries."""

    def read(self, query: KpiQuery, limit: int) -> list[KpiRow]:
        """Return KPIs of the newest windows, at most `limit`, by KPI and window; called in a thread."""

    def newest_ms(self, tenant: str) -> Mapping[int, int]:
        """Return the time of the newest turn of each partition."""

    def too_late(self, tenant: str) -> int:
        """Return how many turns were too late to be counted."""


class Text(NamedTuple):
    """What is to be classified.

    Attributes:
        key: the answer or the conversation.
        words: the digest of the event that the text is from.
        text: the question, or the rating's text.
        is_rating: whose words they are.
        rating: the rating that came with the text, from 0 to RATING_UNIT; None when there is none.
        written_ms: when they were written.
        occurred_ms: when the question was asked, where that is known, else when they were written.
        conversation_id: the conversation.
        signs: what else is known of the answer: `unanswered`, `unverified`.
    """

    key: Key
    words: str
    text: str
    is_rating: bool
    rating: int | None
    written_ms: int
    occurred_ms: int
    conversation_id: str
    signs: tuple[str, ...]


class Example(NamedTuple):
    """A rated turn to learn from: the question's text, its signs, and whether the person was dissatisfied."""

    digest: str
    text: str
    signs: tuple[str, ...]
    dissatisfied: bool
