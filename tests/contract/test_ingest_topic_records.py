"""Records of raw topics without a Kafka: which are taken, what they mean, how they are kept and shared out."""

import contextlib
import re
from typing import Any

import orjson
import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given, strategies as st

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.ingest.v1 import events_pb2
from services.ingest.app import build
from services.ingest.bucket_source import Buckets
from services.ingest.decoders.common import DecodeError, Hints
from services.ingest.decoders.detect import FORMATS
from services.ingest.decoders.kcat import kept
from services.ingest.settings import Settings, TopicsSettings
from services.ingest.topic_group import BUCKETS, BucketAssignor, bucket_of
from services.ingest.topic_records import RecordDecoder, Selection, Taken
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from tests.conftest import RunService
from tests.unit.ingest.test_avro import HINTS, encoded, envelope

NATIVE = {"source": "crm", "entity": "t", "op": "insert", "key": {"id": 1}, "after": {"id": 1}}
DOCUMENT = {"_id": "1", "text": "The bus leaves at nine."}
ROW = {"id": 7, "tier": "gold"}


def record(value: bytes | None, key: bytes | None = None, topic: str = "raw.t", offset: int = 5) -> ConsumerRecord:
    return ConsumerRecord(
        topic, 2, offset, 1_795_456_757_601, 0, key, value, None, len(key or b""), len(value or b""), ()
    )


async def taken(*records: ConsumerRecord, entry: dict[str, Any] | None = None, **settings: Any) -> Taken:
    read = Settings.from_config({"topics": [{"pattern": "raw.*", **(entry or {})}], **settings})
    decoder = RecordDecoder(read, Buckets([]), None, lambda: 3, lambda: 1_000.0)
    return await decoder.take(records, Selection(read.topics), lambda _: None)


def change(result: Taken, number: int = 0) -> events_pb2.Change:
    return events_pb2.Change.FromString(result.messages[number].value or b"")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "number 1: pattern is missing"),
        ({"pattern": "("}, "number 1: pattern is not a regular expression"),
        ({"pattern": "(a)\\1"}, "must not name groups, nor refer back to them"),
        ({"pattern": "(?P<a>b)"}, "must not name groups"),
        ({"names": ["a"], "format": "kcat"}, "format must be one of auto, native, debezium"),
        ({"names": ["a"], "tenant": "a\x1fb"}, "tenant must not hold the character U+001F"),
        ({"names": ["a"], "security_protocol": "SSL"}, "bootstrap_servers is missing"),
        ({"names": ["a"], "bootstrap_servers": "k:1", "security_protocol": "SASL_SSL"}, "sasl_username and"),
        ({"names": ["a"], "prefix": "x"}, "prefix is not a setting"),
    ],
)
def test_wrong_settings_are_named(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^\[\[ingest.topics\]\]") as caught:
        Settings.from_config({"topics": [entry]})
    assert words in str(caught.value)


async def test_an_embedded_installation_must_be_told_the_cluster(run_service: RunService) -> None:
    with pytest.raises(InvalidInputError, match="bootstrap_servers is missing"):
        async with run_service(build, settings_tables={"ingest": {"topics": [{"names": ["a"]}]}}):
            raise AssertionError


def test_a_clusters_password_is_not_shown() -> None:
    entry = {"names": ["a"], "bootstrap_servers": "k:1", "security_protocol": "SASL_SSL", "sasl_username": "ada"}
    (read,) = Settings.from_config({"topics": [{**entry, "sasl_password": "hidden"}]}).topics
    assert "hidden" not in repr(read)
    cluster = read.cluster()
    assert cluster is not None
    assert (cluster.sasl_username, cluster.sasl_password) == ("ada", "hidden")


@pytest.mark.parametrize(
    "topic", ["crm", "crm.public.t", "__debezium-heartbeat.crm", "crmx", "xcrm", "a.b", "ab", "own.changes", "crm.own"]
)
def test_the_one_pattern_takes_what_the_entries_take(topic: str) -> None:
    entries = [
        TopicsSettings(pattern=r"(__debezium-heartbeat\.)?crm(\..*)?"),
        TopicsSettings(names=("a.b", "own.changes")),
    ]
    selection = Selection(entries, own=["own.changes", "crm.own"])
    assert (re.match(selection.pattern(), topic) is not None) is (selection.entry(topic) is not None)
    assert (selection.entry(topic) is not None) is (topic in {"crm", "crm.public.t", "__debezium-heartbeat.crm", "a.b"})


def test_the_first_entry_that_takes_a_topic_says_as_what() -> None:
    entries = [TopicsSettings(names=("a",), source="first"), TopicsSettings(pattern=".", source="second")]
    found = [Selection(entries).entry(topic) for topic in ("a", "b", "bb")]
    assert [entry.source if entry else None for entry in found] == ["first", "second", None]


async def test_a_record_without_a_position_stands_where_it_stood_in_its_topic() -> None:
    result = await taken(record(orjson.dumps(NATIVE)), entry={"tenant": "acme", "source": "shop"})
    found = change(result)
    assert (found.tenant, found.source, found.record) == ("acme", "shop", "shop/t/1")
    assert found.position == f"kafka:raw.t/2:{5:020d}"
    assert found.occurred_at.ToMilliseconds() == 1_795_456_757_601
    assert result.messages[0].event_id == "ingest:raw.t/2/5#0"
    assert result.outcomes == {"accepted": 1, "skipped": 0, "dead_lettered": 0}


async def test_what_concerns_all_is_written_to_every_partition() -> None:
    event = {"source": "crm", "entity": "t", "op": "truncate"}
    result = await taken(record(orjson.dumps(event)))
    assert [message.partition for message in result.messages] == [0, 1, 2]
    assert len({message.event_id for message in result.messages}) == 3


@pytest.mark.parametrize("value", [None, b"", b" \n", b"null"])
async def test_what_holds_nothing_is_passed_over(value: bytes | None) -> None:
    result = await taken(record(value, b"\x00\x01"))
    assert (list(result.messages), result.outcomes["skipped"]) == ([], 1)


@pytest.mark.parametrize(
    ("format_", "value", "topic"),
    [
        ("documents", DOCUMENT, topics.DOCUMENTS),
        ("native", NATIVE, topics.CHANGES),
        ("debezium", {"before": None, "after": ROW, "op": "c", "source": {"name": "s", "table": "t"}}, topics.CHANGES),
        ("debezium", {**ROW, "__op": "u", "__name": "s", "__table": "t"}, topics.CHANGES),
        ("native", DOCUMENT, topics.DEAD_LETTERS),
        ("dms", DOCUMENT, topics.DEAD_LETTERS),
        ("auto", NATIVE, topics.CHANGES),
    ],
)
async def test_the_format_that_is_set_is_the_one_that_is_read(format_: str, value: Any, topic: str) -> None:
    result = await taken(record(orjson.dumps(value), b'{"id":7}'), entry={"format": format_})
    assert [message.topic for message in result.messages] == [topic]


@pytest.mark.parametrize("key", [b"AAPL", b"AAAA", b"42", b"plain", b'{"id":"x"}', None])
async def test_what_is_kept_means_what_the_record_meant(key: bytes | None) -> None:
    """The columns of the key may be any text, also one that looks like base64."""
    value = {"before": None, "after": ROW, "op": "c", "source": {"name": "s", "table": "t"}}
    raw = record(orjson.dumps(value), key)
    (event,) = FORMATS["kcat"](kept(raw, "auto"), Hints(tenant="default"))
    assert isinstance(event, events_pb2.Change)
    assert event == change(await taken(raw))


@given(st.none() | st.binary(), st.none() | st.binary(), st.sampled_from(["auto", "debezium", "documents"]))
async def test_whatever_a_record_holds_the_others_go_on(key: bytes | None, value: bytes | None, format_: str) -> None:
    good = record(orjson.dumps(NATIVE), offset=6)
    result = await taken(record(value, key), good, entry={"format": "auto"})
    assert change(result, len(result.messages) - 1).record == "crm/t/1"
    assert sum(result.outcomes.values()) == 2
    again = kept(record(value, key), format_)
    with contextlib.suppress(DecodeError):
        FORMATS["kcat"](again, Hints())


async def test_a_record_that_is_too_long_is_kept_and_says_what_to_do() -> None:
    result = await taken(record(b'"' + b"x" * 200 + b'"'), record_bytes_max=100)
    letter = common_pb2.DeadLetter.FromString(result.messages[0].value or b"")
    assert (letter.type, letter.origin) == ("kcat", "raw.t/2/5")
    assert "record_bytes_max" in letter.error
    assert orjson.loads(letter.value)["payload"] == '"' + "x" * 200 + '"'


def test_avro_is_kept_as_avro() -> None:
    raw = record(envelope(), encoded(7, {"id": 1}))
    (event,) = FORMATS["kcat"](kept(raw, "auto"), HINTS)
    assert isinstance(event, events_pb2.Change)
    assert event.record == "cdc/customers/1"


class Cluster:
    """What an assignor asks."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {"a": {0, 1, 2, 3}, "b": {0, 1}}.get(topic)


@pytest.mark.parametrize("workers", [1, 2, 3, BUCKETS + 1])
def test_each_partition_goes_to_one_worker_and_each_bucket_too(workers: int) -> None:
    members = {f"m{n}": BucketAssignor.metadata(["a", "b", "gone"]) for n in range(workers)}
    shares = BucketAssignor.assign(Cluster(), members)
    places = [(member, p.topic, p.partition) for member, share in shares.items() for p in share.partitions()]
    assert sorted(place[1:] for place in places) == [("a", n) for n in range(4)] + [("b", n) for n in range(2)]
    owners: dict[int, set[str]] = {}
    for member, topic, partition in places:
        owners.setdefault(bucket_of(topic, partition), set()).add(member)
    assert all(len(members_) == 1 for members_ in owners.values())


def test_a_topic_that_not_all_workers_know_yet_waits_for_the_next_round() -> None:
    members = {"m0": BucketAssignor.metadata(["a", "b"]), "m1": BucketAssignor.metadata(["a"])}
    shares = BucketAssignor.assign(Cluster(), members)
    assert {place.topic for share in shares.values() for place in share.partitions()} == {"a"}
