"""Changes, documents and dead letters as messages of the log: keys, partitions, times. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import Decoded
from services.kernel import topics
from services.kernel.log import Message, key_of
from services.kernel.records import NOT_WHOLE, record_key

Instant = tuple[int, int]
"""Seconds since the epoch, and nanoseconds."""

_CHANGE = events_pb2.Change.DESCRIPTOR.full_name
_DOCUMENT = events_pb2.DocumentChange.DESCRIPTOR.full_name
_DEAD_LETTER = common_pb2.DeadLetter.DESCRIPTOR.full_name
EVERYWHERE = (events_pb2.OPERATION_TRUNCATE, events_pb2.OPERATION_HEARTBEAT)
"""Operations that concern every partition."""


def messages_of(event: Decoded, partitions: int, now: Instant) -> Sequence[Message]:
    """The messages that carry a change or a document change.

    Args:
        event: what happened; its time is set to `now` where it has none.
        partitions: how many the topic `changes` has: a truncate or a heartbeat is written to each.
        now: the time.
    """
    at = event.occurred_at
    if not (at.seconds or at.nanos):
        at.seconds, at.nanos = now
    timestamp_ms = at.seconds * 1_000 + at.nanos // 1_000_000
    if isinstance(event, events_pb2.DocumentChange):
        key = key_of(event.tenant, event.document_id)
        return (Message(topics.DOCUMENTS, key, event.SerializeToString(), _DOCUMENT, timestamp_ms),)
    value = event.SerializeToString()
    if event.operation not in EVERYWHERE:
        message = Message(topics.CHANGES, key_of(event.tenant, event.record), value, _CHANGE, timestamp_ms)
        return (message._replace(headers=NOT_WHOLE) if event.partial or event.unavailable else message,)
    # Shorter than any record's key, so that it can take the place of none.
    about = record_key(event.source, event.entity, {})
    key = key_of(event.tenant, about)
    return [Message(topics.CHANGES, key, value, _CHANGE, timestamp_ms, partition) for partition in range(partitions)]


class Offer(NamedTuple):
    """How a record was offered.

    Attributes:
        format_: the format that it was offered as.
        origin: where it comes from, for a person: a file and line.
        tenant: whose it is.
        source: the source's name that it was offered under.
    """

    format_: str
    origin: str
    tenant: str
    source: str


def dead_letter(record: bytes, error: str, offer: Offer, now: Instant) -> Message:
    """The message that keeps a record which could not be decoded.

    Args:
        record: the record, byte for byte.
        error: why.
        offer: how it was offered.
        now: the time.
    """
    letter = common_pb2.DeadLetter(
        stage=f"ingest.{offer.format_}",
        error=error,
        attempts=1,
        value=record,
        type=offer.format_,
        origin=offer.origin,
        tenant=offer.tenant,
        source=offer.source,
    )
    letter.occurred_at.seconds, letter.occurred_at.nanos = now
    timestamp_ms = now[0] * 1_000 + now[1] // 1_000_000
    key = key_of(offer.tenant, offer.origin)
    return Message(topics.DEAD_LETTERS, key, letter.SerializeToString(), _DEAD_LETTER, timestamp_ms)
