"""What an erasure leads to: null profiles, touches for what is left, and the acknowledgement. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from headwater.common.v1 import events_pb2 as common_pb2
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Message, Record, message_of
from services.kernel.processor import Decision, Outcome
from services.profile.decider import touch
from services.profile.documents import PROFILE_TYPE

SERVICE = "profile"


class Erased(NamedTuple):
    """What the store did with a request.

    Attributes:
        request: the request.
        profiles: the keys of the profiles whose documents were removed, or were to be.
        removed: how many of each kind of thing were removed.
        remaining: how many a search found afterwards.
        done_ms: when, milliseconds since the epoch.
    """

    request: common_pb2.ErasureRequested
    profiles: tuple[str, ...]
    removed: dict[str, int]
    remaining: dict[str, int]
    done_ms: int


@dataclass(slots=True)
class Erasures:
    """The working set of a batch: what was done, by offset. What could not be decoded is not in it."""

    done: dict[int, Erased] = field(default_factory=dict)


def decide(state: Erasures, record: Record) -> Decision:
    """Tell the world what an erasure did."""
    erased = state.done.get(record.offset)
    if erased is None:
        raise InvalidInputError(f"{record.topic}/{record.partition}/{record.offset} is not a {record.type}")
    request, happened_ms = erased.request, record.timestamp_ms
    outputs: list[Message] = []
    for profile in erased.profiles:
        outputs.append(Message(topics.PROFILES, profile.encode(), None, PROFILE_TYPE, happened_ms))
        # Rows of the profile that are not the subject's get their document back.
        outputs.append(touch(profile, happened_ms))
    answer = common_pb2.ErasureDone(
        erasure_id=request.erasure_id, service=SERVICE, removed=erased.removed, remaining=erased.remaining
    )
    answer.done_at.FromMilliseconds(erased.done_ms)
    outputs.append(message_of(topics.ERASURES_DONE, record.key or b"", answer, erased.done_ms))
    return Decision(Outcome.APPLIED, outputs)
