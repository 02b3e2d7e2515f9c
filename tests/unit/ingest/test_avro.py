"""Avro in Confluent's wire format."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import example, given, strategies as st

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.avro import compiled
from services.ingest.decoders.common import DecodeError, Hints, UnknownSchemaError
from services.ingest.decoders.detect import FORMATS

SAMPLES = Path(__file__).parents[2] / "data" / "ingest" / "avro"
TEXTS = {7: (SAMPLES / "key.json").read_text(), 300: (SAMPLES / "envelope.json").read_text()}
HINTS = Hints(schemas={number: compiled(text) for number, text in TEXTS.items()})
SOURCE = {
    "version": "3.6.1.Final", "connector": "postgresql", "name": "cdc", "ts_ms": 1795456757601, "snapshot": "false",
    "db": "shop", "sequence": '["1","2"]', "schema": "public", "table": "customers", "txId": 730, "lsn": 2,
}  # fmt: skip
ROW = {
    "id": 1, "email": "lin@example.com", "credit": (125050).to_bytes(3, "big"), "birth_date": 3412,
    "updated_at": 1775037600000001, "signed_at": 1775037600123, "photo": b"\x00\xff", "tags": ["vip", None],
    "weight": {"scale": 1, "value": b"\x19"},
}  # fmt: skip


def encoded(number: int, value: Any, *, logical: bool = False) -> bytes:
    """A value in the wire format; Debezium hands the writer what its types count in, not dates."""
    text = TEXTS[number] if logical else TEXTS[number].replace("logicalType", "note")
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(text)), value)
    return b"\0" + number.to_bytes(4, "big") + body.getvalue()


def envelope(op: str = "c", **rows: Any) -> bytes:
    return encoded(300, {"before": None, "after": ROW, "source": SOURCE, "op": op, "ts_ms": 5, **rows})


def only(record: bytes, hints: Hints = HINTS, format_: str = "auto") -> events_pb2.Change:
    (change,) = FORMATS[format_](record, hints)
    assert isinstance(change, events_pb2.Change)
    return change


def test_an_envelope_of_debezium_with_its_logical_types() -> None:
    change = only(envelope())
    assert (change.record, change.operation) == ("cdc/customers/1", events_pb2.OPERATION_INSERT)
    assert json.loads(change.after_json) == {
        "id": 1, "email": "lin@example.com", "credit": "1250.50", "birth_date": "1979-05-06",
        "updated_at": "2026-04-01T10:00:00.000001", "signed_at": "2026-04-01T10:00:00.123", "photo": "AP8=",
        "tags": ["vip", None], "weight": "2.5",
    }  # fmt: skip
    assert change.position.startswith("pg:cdc:")
    assert only(envelope(), format_="avro") == change


def test_key_and_value_come_as_base64_in_a_kafka_record() -> None:
    def text(record: bytes) -> str:
        return base64.b64encode(record).decode()

    record = {"topic": "t", "partition": 0, "offset": 3, "key": text(encoded(7, {"id": 9})), "value": text(envelope())}
    assert only(orjson.dumps(record)).record == "cdc/customers/9"


def test_a_schema_that_is_not_known_is_asked_for_by_its_number() -> None:
    with pytest.raises(UnknownSchemaError) as caught:
        only(envelope(), Hints(schemas={}))
    assert caught.value.schema_id == 300


def test_without_a_registry_the_cure_is_told() -> None:
    with pytest.raises(DecodeError, match=r"\[ingest.schema_registry\]"):
        only(envelope(), Hints())


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b + b"x", lambda b: b[:4], lambda b: b"\0\0\0\0\7" + b])
def test_what_is_not_of_its_schema_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DecodeError):
        only(damage(envelope()))


@pytest.mark.parametrize("text", ["", "{}", '{"type":"x"}', "[1]", '{"type":"record","name":"a","fields":3}', "7"])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="register an Avro schema"):
        compiled(text)


def test_logical_types_of_avro_itself_and_types_within_themselves() -> None:
    schema = {
        "type": "record", "name": "node", "namespace": "a.b", "fields": [
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}},
            {"name": "hash", "type": {"type": "fixed", "name": "two", "size": 2}},
            {"name": "again", "type": ["null", "two"]},
            {"name": "either", "type": ["null", "bytes", "string"]},
            {"name": "next", "type": ["null", "node"]},
        ],
    }  # fmt: skip
    text = json.dumps(schema)
    leaf = {"day": 0, "at": 1, "price": b"\x7b", "hash": b"ab", "again": b"cd", "either": b"x", "next": None}
    body = io.BytesIO()
    bare = json.loads(text.replace("logicalType", "note"))
    fastavro.schemaless_writer(body, fastavro.parse_schema(bare), {**leaf, "next": leaf})
    body.seek(0)
    made = compiled(text)
    plain = made.plain(fastavro.schemaless_reader(body, made.parsed, None))
    read = {"day": "1970-01-01", "at": "1970-01-01T00:00:00.001", "price": "1.23", "hash": "YWI=", "again": "Y2Q=",
            "either": "eA==", "next": None}  # fmt: skip
    assert plain == {**read, "next": read}


@given(st.binary(max_size=40), st.sampled_from([7, 300]))
@example(b"\xff" * 30, 300)
def test_any_bytes_are_decoded_or_refused(body: bytes, number: int) -> None:
    for record in (b"\0" + number.to_bytes(4, "big") + body, body):
        try:
            FORMATS["avro"](record, HINTS)
        except DecodeError as error:
            assert error.cure
        except UnknownSchemaError:
            assert record[:1] == b"\0"
