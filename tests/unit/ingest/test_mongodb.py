"""Debezium's events of MongoDB."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import orjson
import pytest

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import DecodeError, Hints
from services.ingest.decoders.detect import FORMATS
from services.ingest.decoders.extended_json import plain, plain_text
from services.kernel.positions import newer

SAMPLES = Path(__file__).parents[2] / "data" / "ingest" / "mongodb"
OID = "596e275826f08b2730779e1f"
CURE = "capture.mode=change_streams_update_full"


def sample(name: str) -> list[Any]:
    (path,) = SAMPLES.glob(f"{name}-*.json")
    records: list[Any] = json.loads(path.read_text())
    return records


def decoded(record: Any) -> list[events_pb2.Change]:
    return FORMATS["auto"](orjson.dumps(record), Hints())  # type: ignore[return-value]  # documents come otherwise


def only(record: Any) -> events_pb2.Change:
    (change,) = decoded(record)
    return change


def test_a_snapshot_document_is_plain() -> None:
    change = only(sample("01")[0])
    assert change.operation == events_pb2.OPERATION_SNAPSHOT
    assert (change.source, change.entity) == ("fulfillment", "customers")
    assert (change.record, change.key_json) == (f"fulfillment/customers/{OID}", f'{{"_id":"{OID}"}}')
    row = json.loads(change.after_json)
    assert (row["_id"], row["credit"], row["joined"], row["visits"]) == (OID, "1250.50", "2019-05-27T13:58:28Z", 12)
    assert change.source_position == "Timestamp(1558965500, 1)"


def test_the_key_of_an_event_and_the_id_in_its_document_name_one_record() -> None:
    record = sample("02")[0]
    assert only(record) == only(record["value"])
    assert only(record).record == "fulfillment/customers/1004"


def test_an_update_with_the_whole_document_is_whole() -> None:
    change = only(sample("03")[0])
    assert not change.partial
    assert json.loads(change.after_json)["first_name"] == "Anne Marie"
    assert json.loads(change.before_json)["first_name"] == "unknown"


def test_an_update_without_the_document_tells_only_what_it_sets() -> None:
    change = only(sample("04")[0])
    assert change.partial
    assert json.loads(change.after_json) == {"_id": OID, "first_name": "Anne Marie", "email": None}


def test_a_pre_image_makes_an_update_whole() -> None:
    change = only(sample("05")[0])
    assert not change.partial
    row = json.loads(change.after_json)
    assert row["address"] == {"city": "Bergen", "lines": ["A 1"], "zip": "5003"}
    assert "email" not in row
    assert row["last_name"] == "Kretchmar"


def test_a_part_of_a_field_cannot_be_told_without_the_field() -> None:
    for name in ("updatedFields", "removedFields", "truncatedArrays"):
        record = sample("05")[0]
        record["value"]["before"] = None
        told = record["value"]["updateDescription"]
        record["value"]["updateDescription"] = {**dict.fromkeys(told), name: told[name]}
        if name == "removedFields":
            record["value"]["updateDescription"][name] = ["address.city"]
        with pytest.raises(DecodeError, match=CURE):
            decoded(record)


def test_an_update_that_says_nothing_names_the_cure() -> None:
    record = sample("04")[0]
    record["value"]["updateDescription"] = None
    with pytest.raises(DecodeError, match=CURE):
        decoded(record)


def test_a_delete_has_its_key_and_a_tombstone_means_nothing() -> None:
    deleted, tombstone = sample("06")
    change = only(deleted)
    assert (change.operation, change.before_json) == (events_pb2.OPERATION_DELETE, f'{{"_id":"{OID}"}}')
    assert decoded(tombstone) == []


def test_a_patch_of_the_operation_log_is_a_partial_update() -> None:
    change = only(sample("07")[0])
    assert change.partial
    assert json.loads(change.after_json) == {"_id": 1004, "first_name": "Anne Marie", "email": None}
    replaced = sample("07")[0]
    replaced["value"]["patch"] = '{"_id": 1004, "first_name": "B"}'
    assert not only(replaced).partial


def test_the_clusters_time_orders_events() -> None:
    changes = [only(sample(name)[0]) for name in ("01", "02", "03", "04", "05", "06")]
    for (n, one), (m, other) in permutations(enumerate(changes), 2):
        assert newer(one.position, other.position) == (n > m)


def test_within_a_transaction_only_its_order_tells() -> None:
    record = sample("02")[0]
    record["value"]["source"]["txnNumber"] = 7
    assert only(record).position == ""
    positions = []
    for order in (1, 2):
        record["value"]["transaction"] = {"id": "x", "total_order": order, "data_collection_order": order}
        positions.append(only(record).position)
    assert newer(positions[1], positions[0])


def test_a_flattened_document_names_the_same_record() -> None:
    row = {"_id": OID, "first_name": "Anne", "__op": "u", "__name": "fulfillment", "__collection": "customers"}
    with_key = only({"key": sample("01")[0]["key"], "value": row})
    assert with_key == only(row)
    assert with_key.record == only(sample("01")[0]).record
    gone = {"id": f'{{"$oid": "{OID}"}}', "__deleted": True, "__name": "fulfillment", "__collection": "customers"}
    assert (only(gone).record, only(gone).operation) == (with_key.record, events_pb2.OPERATION_DELETE)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"$oid": "596e"}', "596e"),
        ('"1234"', "1234"),
        ("1234", 1234),
        ("12.5", 12.5),
        ('{"hi": "kafka", "nums": [10.0]}', {"hi": "kafka", "nums": [10.0]}),
        ('{"$binary": "a2Fma2E=", "$type": "00"}', "a2Fma2E="),
        ("no json", "no json"),
    ],
)
def test_keys_of_every_type(written: str, read: Any) -> None:
    assert plain_text(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"$date": {"$numberLong": "-1"}}, "1969-12-31T23:59:59.999Z"),
        ({"$date": "2019-05-27T15:58:28+02:00"}, "2019-05-27T13:58:28Z"),
        ({"$date": "soon"}, {"$date": "soon"}),
        ({"$numberDouble": "1.5"}, 1.5),
        ({"$numberDouble": "Infinity"}, "Infinity"),
        ({"$numberInt": "7"}, 7),
        ({"$numberLong": "x"}, {"$numberLong": "x"}),
        ({"$binary": {"base64": "a2Fma2E=", "subType": "00"}}, "a2Fma2E="),
        ({"$timestamp": {"t": 5, "i": 1}}, {"t": 5, "i": 1}),
        ({"$undefined": True}, None),
        ([{"$oid": "a"}, {"deep": {"$oid": "b"}}], ["a", {"deep": "b"}]),
        ({"$minKey": 1}, {"$minKey": 1}),
    ],
)
def test_extended_json_becomes_plain(written: Any, read: Any) -> None:
    assert plain(written) == read
