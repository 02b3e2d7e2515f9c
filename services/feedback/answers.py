"""What is known of an answer: its turn, its ratings by rater, its classification. Each may come first, twice, or late.

These are registers that do not depend on one another, and each keeps the greatest of what came by an order that is in
the events themselves. So the order of arrival does not matter, and a repetition changes nothing.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Record

Event = gateway_pb2.TurnCompleted | events_pb2.AnswerRated | events_pb2.TurnClassified | common_pb2.ErasureRequested
KINDS: dict[str, type[Event]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        gateway_pb2.TurnCompleted,
        events_pb2.AnswerRated,
        events_pb2.TurnClassified,
        common_pb2.ErasureRequested,
    )
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
RATING_UNIT = 1_000_000  # a rating is 0..1 in millionths
SCALE_MAX = 5
TIME_MS_MAX = 253_370_764_799_999  # the year 9998: the windows of it end within what a timestamp can say


class Key(NamedTuple):
    """Names what is rated: `answer:<id>` or `conversation:<id>` of a tenant."""

    tenant: str
    subject: str


class Turn(NamedTuple):
    """What counts of a turn.

    Attributes:
        conversation_id, profile_id, asked_as, model: as in the event.
        asked_ms: when the question was asked, milliseconds since the epoch.
        digest: of the event, to choose between two of one answer id at one time.
        too_late: whether it came too late to be counted.
        answered: whether there was an answer.
        verified: whether at least one citation was found in the document that it cites; None for turns of other
            systems, whose retrieval is not known.
        latency_ms, cost: as in the event.
    """

    conversation_id: str
    profile_id: str
    asked_as: str
    asked_ms: int
    digest: str
    too_late: bool
    model: str
    answered: bool
    verified: bool | None
    latency_ms: float
    cost: float


class Rating(NamedTuple):
    """The newest rating of one rater.

    Attributes:
        rated_ms: when, milliseconds since the epoch.
        digest: of the event, to choose between two at one time.
        value: 0 to RATING_UNIT; None where only a text was given.
        has_text: whether there is a text.
    """

    rated_ms: int
    digest: str
    value: int | None
    has_text: bool


class Classified(NamedTuple):
    """A classification; the fields before the digest give the order in which one replaces another."""

    words: int
    written_ms: int
    classified_ms: int
    digest: str
    score: float
    category: str

    @property
    def order(self) -> tuple[int, int, int, str]:
        """What decides between two classifications of an answer: the greater one counts."""
        return self[:4]


@dataclass(slots=True)
class Answer:
    """All that is known of an answer, or of a conversation that was rated as a whole.

    Attributes:
        is_conversation: whether it is a conversation: those have no turn.
        turn, ratings, classified: what has come; ratings by rater.
    """

    is_conversation: bool = False
    turn: Turn | None = None
    ratings: dict[str, Rating] = field(default_factory=dict)
    classified: Classified | None = None

    @property
    def words(self) -> str:
        """Which words of it are to be classified: the digest of the newest rating with a text, else of the turn.

        Empty when there are none, or when a classification of them, or of words that go before them, has come.
        """
        written = [(rating.rated_ms, rating.digest) for rating in self.ratings.values() if rating.has_text]
        if written:
            kind, (written_ms, digest) = events_pb2.WORDS_RATING, max(written)
        elif self.turn is not None:
            kind, written_ms, digest = events_pb2.WORDS_QUESTION, self.turn.asked_ms, self.turn.digest
        else:
            return ""
        if self.classified is not None and self.classified.order[:2] >= (kind, written_ms):
            return ""
        return digest


def answer_key(tenant: str, answer_id: str) -> Key:
    """The key of an answer."""
    return Key(tenant or DEFAULT_TENANT, f"answer:{answer_id}")


def conversation_key(tenant: str, conversation_id: str) -> Key:
    """The key of a conversation that is rated as a whole."""
    return Key(tenant or DEFAULT_TENANT, f"conversation:{conversation_id}")


def key_of_event(event: Event) -> Key:
    """The key of what a turn, a rating or a classification is about.

    Raises:
        InvalidInputError: it names neither an answer nor a conversation, or is about neither (an erasure), or a name
            holds a control character.
    """
    if not isinstance(event, common_pb2.ErasureRequested):
        for name in (event.tenant, event.answer_id, event.conversation_id):
            if _CONTROL.search(name):  # they separate the parts of keys
                raise InvalidInputError(f"{event.DESCRIPTOR.name}: {name!r:.80} holds a control character")
        if event.answer_id:
            return answer_key(event.tenant, event.answer_id)
        if event.conversation_id and not isinstance(event, gateway_pb2.TurnCompleted):
            return conversation_key(event.tenant, event.conversation_id)
    raise InvalidInputError(f"{event.DESCRIPTOR.name} names no answer: it must have an answer_id")


def event_of(record: Record) -> Event | None:
    """Decode a record; None for a tombstone.

    Raises:
        InvalidInputError: it is of an unknown type, or damaged.
    """
    if record.value is None:
        return None
    kind = KINDS.get(record.type)
    if kind is None:
        raise InvalidInputError(f"{record.topic}: there is no use for a {record.type!r} here")
    try:
        return kind.FromString(record.value)
    except DecodeError as error:
        raise InvalidInputError(f"{record.topic}: damaged {record.type}: {error}") from None


def milliseconds(timestamp: Timestamp, fallback_ms: int) -> int:
    """A timestamp as milliseconds since the epoch; `fallback_ms` where it is not set.

    Raises:
        InvalidInputError: it is before 1970 or after 9998.
    """
    if timestamp.seconds == 0 and timestamp.nanos == 0:
        return fallback_ms
    time_ms = timestamp.seconds * 1000 + timestamp.nanos // 1_000_000
    if not 0 <= time_ms <= TIME_MS_MAX:
        raise InvalidInputError(f"a time of {timestamp.seconds} seconds is not between the years 1970 and 9998")
    return time_ms


def digest_of(record: Record) -> str:
    """A digest of the event that a record holds."""
    return hashlib.sha256(record.value or b"").hexdigest()[:16]


def turn_of(event: gateway_pb2.TurnCompleted, record: Record) -> Turn:
    """What counts of a turn, were it in time; raises InvalidInputError for an impossible time."""
    return Turn(
        conversation_id=event.conversation_id,
        profile_id=event.profile_id,
        asked_as=event.asked_as,
        asked_ms=milliseconds(event.asked_at, record.timestamp_ms),
        digest=digest_of(record),
        too_late=False,
        model=event.model,
        answered=event.answered,
        verified=verified(event),
        latency_ms=event.latency_ms,
        cost=event.cost,
    )


def verified(event: gateway_pb2.TurnCompleted) -> bool | None:
    """Whether a turn has a citation that was found in the document; None where nothing is known of its context."""
    if not event.HasField("context") and not event.citations:
        return None
    return any(citation.verified for citation in event.citations)


def rating_of(event: events_pb2.AnswerRated, record: Record) -> Rating:
    """What counts of a rating.

    Raises:
        InvalidInputError: the scale is not 1 to 5, or the time is impossible.
    """
    return Rating(
        rated_ms=milliseconds(event.rated_at, record.timestamp_ms),
        digest=digest_of(record),
        value=rating_value(event),
        has_text=bool(event.text),
    )


def rating_value(event: events_pb2.AnswerRated) -> int | None:
    """A rating as 0 to RATING_UNIT; None where only a text was given."""
    match event.WhichOneof("rating"):
        case "up":
            return RATING_UNIT if event.up else 0
        case "scale":
            if not 1 <= event.scale <= SCALE_MAX:
                raise InvalidInputError(f"rating {event.scale} is not on the scale from 1 to {SCALE_MAX}")
            return (event.scale - 1) * RATING_UNIT // (SCALE_MAX - 1)
        case _:
            return None


def classified_of(event: events_pb2.TurnClassified, record: Record) -> Classified:
    """What counts of a classification.

    Raises:
        InvalidInputError: the score is no number, or a time is impossible.
    """
    if not math.isfinite(event.score):
        raise InvalidInputError(f"the score {event.score} of a classification is not a number from -1 to 1")
    return Classified(
        words=event.words,
        written_ms=milliseconds(event.written_at, record.timestamp_ms),
        classified_ms=milliseconds(event.classified_at, record.timestamp_ms),
        digest=digest_of(record),
        score=event.score,
        category=event.category,
    )


def names_of_turn(tenant: str, profile_id: str, asked_as: str) -> Iterator[Key]:
    """The names by which an erasure may mean the person of a turn."""
    tenant = tenant or DEFAULT_TENANT
    if profile_id:
        yield Key(tenant, f"profile:{profile_id}")
    if asked_as:
        yield Key(tenant, _name(asked_as))


def names_of_rater(tenant: str, rater: str) -> Iterator[Key]:
    """The names by which an erasure may mean a rater: a profile's id, or as `asked_as` of a turn."""
    tenant = tenant or DEFAULT_TENANT
    if rater:
        yield from {Key(tenant, f"profile:{rater}"): None, Key(tenant, _name(rater)): None}


def _name(text: str) -> str:
    """A record's key may stand for itself."""
    return text if text.startswith(("profile:", "record:")) else f"record:{text}"


def names_of_erasure(event: common_pb2.ErasureRequested) -> list[Key]:
    """The names that an erasure removes."""
    tenant = event.tenant or DEFAULT_TENANT
    return [
        *(Key(tenant, f"profile:{profile_id}") for profile_id in event.profile_ids if profile_id),
        *(Key(tenant, f"record:{record}") for record in event.records if record),
    ]
