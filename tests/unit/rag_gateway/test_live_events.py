"""What the page shows of the log."""

import json
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message as Proto

from headwater.embedder.v1 import events_pb2 as embedder_pb2
from headwater.feedback.v1 import events_pb2 as feedback_pb2
from headwater.identity_graph.v1 import events_pb2 as identity_pb2
from headwater.ingest.v1 import events_pb2 as ingest_pb2
from headwater.profile.v1 import events_pb2 as profile_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import Message, Record, key_of, message_of
from services.kernel.sqlite_log import SqliteLog
from services.rag_gateway.live_events import NEWEST, LiveEvents, summary


def record(topic: str, event: Proto) -> Record:
    message = message_of(topic, key_of("default", "x"), event, 5)
    return Record(topic, 0, 0, message.key, message.value, message.type, "e", 5)


@pytest.mark.parametrize(
    ("topic", "event", "title", "detail"),
    [
        (
            topics.CHANGES,
            ingest_pb2.Change(
                record="crm/customers/1", operation=ingest_pb2.OPERATION_UPDATE, before_json='{"a": 1, "b": 2}',
                after_json='{"a": 1, "b": 3}',
            ),
            "crm/customers/1",
            "update b: 2 → 3",
        ),
        (
            topics.DECISIONS,
            identity_pb2.IdentityDecided(
                kind=identity_pb2.DECISION_KIND_MERGED, profile_id="p1", reason="share an e-mail"
            ),
            "p1",
            "merged: share an e-mail",
        ),
        (
            topics.PROFILES,
            profile_pb2.Profile(profile_id="p1", version=3, suspect=True),
            "p1",
            "version 3, 0 records, suspect",
        ),
        (
            topics.INDEXED,
            embedder_pb2.DocumentIndexed(document_id="d", version="v", chunks=4, embedded=1),
            "d",
            "4 chunks, 1 embedded anew",
        ),
        (topics.INDEXED, embedder_pb2.DocumentIndexed(document_id="d"), "d", "is gone from the index"),
        (
            topics.CONVERSATIONS,
            events_pb2.TurnCompleted(question="Why?", model="extractive", latency_ms=7),
            "Why?",
            "no answer in the context, extractive, 7 ms",
        ),
        (topics.RATINGS, feedback_pb2.AnswerRated(answer_id="a", up=False, text="bad"), "a", "down bad"),
        (topics.RATINGS, feedback_pb2.AnswerRated(answer_id="a", scale=4), "a", "4 of 5"),
    ],
)  # fmt: skip
def test_every_kind_of_event_is_a_line(topic: str, event: Proto, title: str, detail: str) -> None:
    shown = summary(record(topic, event), "default")
    assert shown is not None
    assert (shown["title"], shown["detail"]) == (title, detail)
    assert json.dumps(shown)


def test_heartbeats_other_tenants_and_what_is_not_understood_are_not_shown() -> None:
    heartbeat = ingest_pb2.Change(source="crm", operation=ingest_pb2.OPERATION_HEARTBEAT)
    assert summary(record(topics.CHANGES, heartbeat), "default") is None
    foreign = ingest_pb2.Change(tenant="other", record="crm/customers/1", operation=ingest_pb2.OPERATION_INSERT)
    assert summary(record(topics.CHANGES, foreign), "default") is None
    broken = record(topics.CHANGES, foreign)._replace(value=b"\xff\xff")
    assert summary(broken, "default") is None
    assert summary(broken._replace(type="unknown.v1.Event"), "default") is None


def test_a_profile_that_is_gone_is_shown_to_its_tenant() -> None:
    gone = Record(topics.PROFILES, 0, 0, key_of("default", "p1"), None, "x", "e", 5)
    shown = summary(gone, "default")
    assert shown is not None
    assert (shown["title"], shown["detail"]) == ("p1", "is gone")
    assert summary(gone, "other") is None


def changes(count: int) -> Sequence[Message]:
    return [
        message_of(
            topics.CHANGES,
            key_of("", "x"),
            ingest_pb2.Change(record=f"r/{n}", operation=ingest_pb2.OPERATION_INSERT),
            n,
            0,
        )
        for n in range(count)
    ]


async def test_of_a_flood_the_newest_are_shown_and_all_are_counted(log: SqliteLog) -> None:
    follower = LiveEvents(log).follow("")
    assert (await anext(follower))["events"] == []
    await log.append(changes(1000), durable=False)
    news = await anext(follower)
    assert news["counts"] == {"changes": 1000}
    assert len(news["events"]) == NEWEST
    assert news["events"][-1]["title"] == "r/999"
    await follower.aclose()
