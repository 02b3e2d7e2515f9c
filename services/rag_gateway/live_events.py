"""What is happening now, for the page: the newest records of the log's topics, a line each."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from headwater.embedder.v1 import events_pb2 as embedder_pb2
from headwater.feedback.v1 import events_pb2 as feedback_pb2
from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from headwater.profile.v1 import events_pb2 as profile_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Log, Offsets, Record
from services.rag_gateway.fields import decoded

BACKLOG = 12  # records of each partition that a new reader is shown
NEWEST = 25  # records of each partition that a reader is shown at a time: of a flood, the newest
EVERY_S = 0.25
KEEP_ALIVE_S = 15.0
_QUOTED = 120  # characters

# Topic -> what the page calls it.
SHOWN = {
    topics.CHANGES: "changes",
    topics.DECISIONS: "decisions",
    topics.PROFILES: "profiles",
    topics.INDEXED: "indexed",
    topics.CONVERSATIONS: "turns",
    topics.RATINGS: "ratings",
    topics.KPIS: "kpis",
}
Event = dict[str, Any]


class LiveEvents:
    """Follows the log from its end. A reader that is slow, or a flood, costs neither memory nor time: it skips."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def follow(self, tenant: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what is new for a tenant: `{"events": [...], "counts": {"changes": 4980}}`; empty to keep alive."""
        seen: Offsets = {}
        for topic in SHOWN:
            for partition, end in enumerate(await self._log.end(topic)):
                seen[topic, partition] = max(0, end - BACKLOG)
        while True:
            events, counts = await self._new(tenant or DEFAULT_TENANT, seen)
            yield {"events": events, "counts": counts}
            await asyncio.sleep(EVERY_S)
            await self._log.wait_for(SHOWN, seen, KEEP_ALIVE_S)

    async def _new(self, tenant: str, seen: Offsets) -> tuple[list[Event], dict[str, int]]:
        events: list[Event] = []
        counts: dict[str, int] = {}
        for topic, name in SHOWN.items():
            for partition, end in enumerate(await self._log.end(topic)):
                start = seen[topic, partition]
                if end > start:
                    counts[name] = counts.get(name, 0) + end - start
                    records = await self._log.read(topic, partition, max(start, end - NEWEST), max_records=NEWEST)
                    events.extend(event for record in records if (event := summary(record, tenant)) is not None)
                    seen[topic, partition] = end
        events.sort(key=lambda event: event["at"])
        return events, counts


def summary(record: Record, tenant: str) -> Event | None:
    """A record as a line for people; None when it is another tenant's, or nothing to show."""
    owner, *rest = (record.key or b"").decode(errors="replace").split(SEPARATOR)
    kind = _KINDS.get(record.type)
    if record.value is None:
        gone = record.topic == topics.PROFILES and owner == tenant
        return _event(record, SEPARATOR.join(rest), "is gone") if gone else None
    if kind is None:
        return None
    message_type, told = kind
    message = message_type()
    try:
        message.ParseFromString(record.value)
    except DecodeError:
        return None
    if (getattr(message, "tenant", "") or DEFAULT_TENANT) != tenant:
        return None
    words = told(message)
    return None if words is None else _event(record, *words)


def _event(record: Record, title: str, detail: str) -> Event:
    return {
        "id": record.event_id,
        "kind": SHOWN[record.topic],
        "title": title,
        "detail": detail,
        "at": record.timestamp_ms,
        "place": f"{record.topic}/{record.partition}/{record.offset}",
    }


def _change(change: ingest_pb2.Change) -> tuple[str, str] | None:
    if change.operation == ingest_pb2.OPERATION_HEARTBEAT:
        return None
    verb = ingest_pb2.Operation.Name(change.operation).removeprefix("OPERATION_").lower()
    before, after = decoded(change.before_json), decoded(change.after_json)
    moved = [
        f"{name}: {before[name]} → {value}" for name, value in after.items() if name in before and before[name] != value
    ]
    return change.record or f"{change.source}/{change.entity}", _cut(f"{verb} {', '.join(moved)}".strip())


def _decision(decision: identity_pb2.IdentityDecided) -> tuple[str, str]:
    verb = identity_pb2.DecisionKind.Name(decision.kind).removeprefix("DECISION_KIND_").lower()
    return decision.profile_id or "identity", _cut(f"{verb}: {decision.reason}")


def _profile(profile: profile_pb2.Profile) -> tuple[str, str]:
    suspect = ", suspect" if profile.suspect else ""
    return profile.profile_id, f"version {profile.version}, {len(profile.records)} records{suspect}"


def _indexed(indexed: embedder_pb2.DocumentIndexed) -> tuple[str, str]:
    if not indexed.version:
        return indexed.document_id, "is gone from the index"
    return indexed.document_id, f"{indexed.chunks} chunks, {indexed.embedded} embedded anew"


def _turn(turn: events_pb2.TurnCompleted) -> tuple[str, str]:
    answered = "" if turn.answered else "no answer in the context, "
    return _cut(turn.question), f"{answered}{turn.model}, {turn.latency_ms:.0f} ms"


def _rating(rating: feedback_pb2.AnswerRated) -> tuple[str, str]:
    match rating.WhichOneof("rating"):
        case "up":
            given = "up" if rating.up else "down"
        case "scale":
            given = f"{rating.scale} of 5"
        case _:
            given = "words"
    return rating.answer_id or rating.conversation_id, _cut(f"{given} {rating.text}".strip())


def _kpi(kpi: feedback_pb2.KpiComputed) -> tuple[str, str]:
    value = f"{kpi.value:.4g}" if kpi.HasField("value") else "none"
    return kpi.kpi, f"{value} of {kpi.count} until {kpi.window_end.ToDatetime():%H:%M:%S}, revision {kpi.revision}"


def _cut(words: str) -> str:
    return words if len(words) <= _QUOTED else f"{words[: _QUOTED - 1]}…"


_KINDS: dict[str, tuple[type[Message], Callable[[Any], tuple[str, str] | None]]] = {
    kind.DESCRIPTOR.full_name: (kind, told)
    for kind, told in (
        (ingest_pb2.Change, _change),
        (identity_pb2.IdentityDecided, _decision),
        (profile_pb2.Profile, _profile),
        (embedder_pb2.DocumentIndexed, _indexed),
        (events_pb2.TurnCompleted, _turn),
        (feedback_pb2.AnswerRated, _rating),
        (feedback_pb2.KpiComputed, _kpi),
    )
}
