"""Messages and records in Kafka: there and back, and what others have written."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.kernel.errors import InvalidInputError
from services.kernel.kafka_records import headers_of, records_of
from services.kernel.log import Message, Record

aiokafka = pytest.importorskip("aiokafka")
NAMES = ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject", "content-type", "traceparent")


def raw(headers: list[tuple[str, Any]], key: bytes | None = b"k", value: bytes | None = b"v") -> Any:
    """A record as aiokafka gives it."""
    sizes = (len(key or b""), len(value or b""))
    return aiokafka.ConsumerRecord("prefix.topic", 3, 7, 1_000, 1, key, value, None, *sizes, tuple(headers))


def record_of(headers: list[tuple[str, Any]], key: bytes | None = b"k", value: bytes | None = b"v") -> Record:
    (record,) = records_of([raw(headers, key, value)], "topic")
    return record


@given(
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    kind=st.text(min_size=1),
    timestamp_ms=st.integers(-62135596800000, 253402300799999),
    event_id=st.text(min_size=1),
    headers=st.dictionaries(st.text(min_size=1).filter(lambda name: name not in NAMES[:7]), st.text(), max_size=2),
)
def test_a_message_comes_back_as_it_was(
    key: bytes | None, value: bytes | None, kind: str, timestamp_ms: int, event_id: str, headers: dict[str, str]
) -> None:
    message = Message("topic", key, value, kind, timestamp_ms, 3, event_id, headers)
    assert record_of(headers_of(message), key, value) == Record(
        "topic", 3, 7, key, value, kind, event_id, timestamp_ms, headers
    )


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=30)), max_size=9), st.permutations(NAMES)
)
def test_what_others_write_is_read_header_by_header_in_any_order(
    headers: list[tuple[str, bytes | None]], order: list[str]
) -> None:
    for found in (headers, [(name, name.encode()) for name in order[:7]]):
        record, last = record_of(found), dict(found)
        assert record.type == (last.get("ce_type") or b"").decode(errors="replace")
        assert record.event_id == ((last.get("ce_id") or b"").decode(errors="replace") or "topic/3/7")
        others = {name: (value or b"").decode(errors="replace") for name, value in found if name == "traceparent"}
        assert dict(record.headers) == others


@pytest.mark.parametrize("time", [b"", b"yesterday", b"\xff"])
def test_without_a_time_of_its_own_a_record_has_that_of_kafka(time: bytes) -> None:
    headers = [
        (name, time if name == "ce_time" else value) for name, value in headers_of(Message("t", b"k", b"v", "x", 5))
    ]
    assert record_of(headers).timestamp_ms == 1_000


def test_a_time_outside_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="years 1 to 9999"):
        headers_of(Message("t", b"k", b"v", "x", 10**18))
