"""All formats at once: recognition, the kcat envelope, documents, and fuzzing."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, strategies as st

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import Decoded, DecodeError, Hints
from services.ingest.decoders.detect import FORMATS

SAMPLES = Path(__file__).parents[2] / "data" / "ingest" / "debezium"
CAPTURED = [record for path in sorted(SAMPLES.glob("*.json")) for record in json.loads(path.read_text())]
# Those that are written from the documentation of other formats.
WRITTEN = [
    record
    for folder in ("mongodb", "dms", "dynamodb", "s3")
    for path in sorted((SAMPLES.parent / folder).glob("*.json"))
    for value in [json.loads(path.read_text())]
    for record in (value if type(value) is list else [value])
]
NATIVE = {
    "source": "crm",
    "entity": "t",
    "op": "insert",
    "key": {"id": 1},
    "after": {"id": 1},
    "time": 5,
    "position": 3,
}
DOCUMENT = {"_id": "7", "title": "Refunds", "text": "Refunds take 5 days.", "metadata": {"year": 2026}}


def auto(record: Any, hints: Hints | None = None) -> list[Decoded]:
    return FORMATS["auto"](orjson.dumps(record), hints or Hints())


def kcat(record: Any) -> Any:
    """A captured record as `kcat -J` prints it: key and payload as JSON text, headers in one flat list."""

    def text(value: Any) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    return {
        "topic": record["topic"], "partition": record["partition"], "offset": record["offset"], "tstype": "create",
        "ts": record["timestamp"], "broker": 1, "headers": [part for header in record["headers"] for part in header],
        "key": text(record["key"]), "payload": text(record["value"]),
    }  # fmt: skip


@pytest.mark.parametrize("record", CAPTURED, ids=lambda record: f"{record['topic']}-{record['offset']}")
def test_kcat_lines_and_plain_objects_mean_the_same(record: Any) -> None:
    assert auto(kcat(record)) == auto(record)
    assert FORMATS["kcat"](orjson.dumps(kcat(record)), Hints()) == auto(record)
    assert FORMATS["debezium"](orjson.dumps(kcat(record)), Hints()) == auto(record)


@pytest.mark.parametrize("record", CAPTURED, ids=lambda record: f"{record['topic']}-{record['offset']}")
def test_a_value_without_its_kafka_record_means_the_same_where_the_key_is_in_the_row(record: Any) -> None:
    assert auto(record["value"]) == auto(record)


def test_native_events_may_come_through_kafka() -> None:
    (change,) = auto({"key": None, "value": NATIVE, "topic": "t", "partition": 0, "offset": 1})
    assert [change] == auto(NATIVE)


def test_the_place_in_the_partition_is_the_last_resort() -> None:
    native = {name: value for name, value in NATIVE.items() if name not in ("position", "time")}
    (change,) = auto(kcat({"key": None, "value": native, "topic": "t", "partition": 2, "offset": 30, "timestamp": 1500,
                           "headers": []}))  # fmt: skip
    assert change.position == "kafka:t/2:00000000000000000030"
    assert change.occurred_at.ToMilliseconds() == 1500


def test_a_key_that_is_plain_text_is_the_keys_one_value() -> None:
    value = CAPTURED[0]["value"]
    (change,) = auto({"key": "C-17", "payload": json.dumps(value), "topic": "cdc.crm.customers"})
    assert isinstance(change, events_pb2.Change)
    assert change.key_json == '{"id":"C-17"}'


def test_a_document() -> None:
    (document,) = auto(DOCUMENT, Hints(source="faq", tenant="acme"))
    assert isinstance(document, events_pb2.DocumentChange)
    assert (document.tenant, document.source, document.document_id) == ("acme", "faq", "faq/7")
    assert document.operation == events_pb2.DOCUMENT_OPERATION_PUT
    assert document.content == b"Refunds take 5 days."  # it begins with the title already
    assert document.name == "Refunds"
    assert dict(document.metadata) == {"year": "2026"}


def test_a_title_that_the_text_does_not_repeat_is_part_of_the_content() -> None:
    (document,) = auto({**DOCUMENT, "title": "Policy"})
    assert isinstance(document, events_pb2.DocumentChange)
    assert document.content == b"Policy\n\nRefunds take 5 days."


def test_a_document_may_be_taken_away() -> None:
    (document,) = auto({"id": 7, "deleted": True})
    assert isinstance(document, events_pb2.DocumentChange)
    assert (document.document_id, document.operation) == ("documents/7", events_pb2.DOCUMENT_OPERATION_DELETE)


def test_access_in_a_wrong_form_is_refused_rather_than_widened() -> None:
    for access in ("staff", [""], [1], {"staff": True}):
        with pytest.raises(DecodeError, match="access"):
            auto({**DOCUMENT, "access": access})


@pytest.mark.parametrize("record", [{}, {"id": 1, "name": "x"}, {"op": 1}, {"payload": 1}, {"value": {}}])
def test_what_is_not_recognised_is_refused_with_the_formats(record: Any) -> None:
    with pytest.raises(DecodeError, match="auto, native, debezium, kcat, documents"):
        auto(record)


# Fuzzing: any bytes give a result or DecodeError, nothing else ------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.sampled_from(["id", "op", "ts_ms", "fields"]), children, max_size=3)
    ),
    max_leaves=5,
)
SEEDS = [*CAPTURED, *WRITTEN, *map(kcat, CAPTURED), *(r["value"] for r in CAPTURED), NATIVE, DOCUMENT,
         {"id": 1, "__op": "u", "__name": "a", "__table": "b", "__source_sequence": '["1","2"]'}]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, ...]] = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in items:
        inner.extend(places(child, (*path, name)))
    return inner


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A true event in which one to three values, at any depth, are replaced by others or left out."""
    event = json.loads(json.dumps(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(1, 3))):
        found = places(event)
        if not found:
            break
        *parents, last = draw(st.sampled_from(found))
        target = event
        for name in parents:
            target = target[name]
        if draw(st.booleans()):
            target[last] = draw(json_values)
        else:
            del target[last]
    return json.dumps(event).encode()


def survives(record: bytes) -> None:
    for decode in FORMATS.values():
        try:
            events = decode(record, Hints())
        except DecodeError as error:
            assert error.what
            assert error.cure
            continue
        for event in events:
            assert event.SerializeToString()


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf" * 3000)
@example(b"[" * 2000)
@example(b'{"op":"insert","source":"\\ud800"}')
@example(b'{"id":' + b"9" * 400 + b',"text":"x"}')
def test_any_bytes_are_decoded_or_refused(record: bytes) -> None:
    survives(record)


@given(json_values.map(orjson.dumps))
def test_any_json_is_decoded_or_refused(record: bytes) -> None:
    survives(record)


@given(mutated())
def test_damaged_events_are_decoded_or_refused(record: bytes) -> None:
    survives(record)
