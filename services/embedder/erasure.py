"""What an erasure did to the knowledge base, and how the world is told. Pure."""

from typing import NamedTuple

from headwater.common.v1 import events_pb2 as common_pb2
from services.embedder.events import indexed_event
from services.embedder.state import Erased as Place, Key
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Message, Record, message_of
from services.kernel.processor import Decision, Outcome

SERVICE, GROUP = "embedder", "embedder-erasure"


class Erased(NamedTuple):
    """What was done with a request.

    Attributes:
        request: the request.
        documents: those that were removed.
        removed: how many of each kind of thing were removed.
        remaining: how many a search found afterwards.
        done_ms: when, milliseconds since the epoch.
    """

    request: common_pb2.ErasureRequested
    documents: tuple[Key, ...]
    removed: dict[str, int]
    remaining: dict[str, int]
    done_ms: int


def places_of(request: common_pb2.ErasureRequested, happened_ms: int) -> dict[Key, Place]:
    """Return the documents that a request names, and up to where each is erased: older changes may still come."""
    tenant, records = request.tenant or DEFAULT_TENANT, list(request.records)
    asked_ms = request.requested_at.ToMilliseconds() or happened_ms
    positions = list(request.positions) + [""] * (len(records) - len(request.positions))
    return {Key(tenant, name): Place(place, asked_ms) for name, place in zip(records, positions, strict=True)}


def decide(state: dict[int, Erased], record: Record, *, model_id: str) -> Decision:
    """Tell the world what an erasure did."""
    erased = state.get(record.offset)
    if erased is None:
        raise InvalidInputError(f"{record.topic}/{record.partition}/{record.offset} is not a {record.type}")
    outputs: list[Message] = [
        indexed_event(*key, "", chunks=0, embedded=0, model_id=model_id, occurred_ms=record.timestamp_ms)
        for key in erased.documents
    ]
    answer = common_pb2.ErasureDone(
        erasure_id=erased.request.erasure_id, service=SERVICE, removed=erased.removed, remaining=erased.remaining
    )
    answer.done_at.FromMilliseconds(erased.done_ms)
    outputs.append(message_of(topics.ERASURES_DONE, record.key or b"", answer, erased.done_ms))
    return Decision(Outcome.APPLIED, outputs)
