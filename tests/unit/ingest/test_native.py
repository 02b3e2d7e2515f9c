import json
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import DecodeError, Hints
from services.ingest.decoders.native import OPERATIONS, decode
from services.kernel.positions import newer

EVENT: dict[str, Any] = {
    "source": "crm",
    "entity": "customers",
    "op": "update",
    "key": {"id": 42},
    "before": {"id": 42, "tier": "basic"},
    "after": {"id": 42, "tier": "gold"},
    "position": 1017,
    "time": "2026-11-23T17:00:00.25Z",
    "tx": "t9",
    "by": "ada",
}


def one(hints: Hints | None = None, **changed: Any) -> events_pb2.Change:
    event = {name: value for name, value in {**EVENT, **changed}.items() if value is not ...}
    (change,) = decode(orjson.dumps(event), hints or Hints())
    assert isinstance(change, events_pb2.Change)
    return change


def refused(**changed: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        one(**changed)
    return str(caught.value)


def test_every_part_of_an_event_is_taken() -> None:
    change = one(Hints(tenant="acme"))
    assert change.tenant == "acme"
    assert (change.source, change.entity, change.record) == ("crm", "customers", "crm/customers/42")
    assert change.operation == events_pb2.OPERATION_UPDATE
    assert change.key_json == '{"id":42}'
    assert json.loads(change.before_json) == EVENT["before"]
    assert json.loads(change.after_json) == EVENT["after"]
    assert change.position == "native:crm:00000000000000001017"
    assert change.source_position == "1017"
    assert change.occurred_at.ToJsonString() == "2026-11-23T17:00:00.250Z"
    assert (change.transaction, change.initiator) == ("t9", "ada")


def test_only_source_entity_operation_key_and_after_are_required() -> None:
    change = one(before=..., position=..., time=..., tx=..., by=...)
    assert change.position == ""
    assert not change.HasField("occurred_at")


@pytest.mark.parametrize("missing", ["source", "entity", "op", "key", "after"])
def test_a_missing_part_is_named(missing: str) -> None:
    assert f'"{missing}"' in refused(**{missing: ...})


def test_a_delete_needs_no_after() -> None:
    change = one(op="delete", after=...)
    assert change.operation == events_pb2.OPERATION_DELETE
    assert change.after_json == ""


def test_a_truncate_needs_no_key_and_has_no_record() -> None:
    change = one(op="truncate", key=..., after=..., before=...)
    assert (change.entity, change.record) == ("customers", "")


def test_a_heartbeat_needs_a_source_only() -> None:
    change = one(op="heartbeat", entity=..., key=..., after=..., before=...)
    assert (change.source, change.entity, change.record) == ("crm", "", "")
    assert change.operation == events_pb2.OPERATION_HEARTBEAT


def test_a_source_that_is_given_outranks_the_events() -> None:
    change = one(Hints(source="shop"))
    assert (change.source, change.record) == ("shop", "shop/customers/42")
    assert change.position.startswith("native:shop:")


def test_a_source_that_is_given_may_be_missing_in_the_event() -> None:
    assert one(Hints(source="shop"), source=...).source == "shop"


def test_unknown_columns_and_retyped_ones_are_kept_as_they_came() -> None:
    row = {"id": "42", "tier": 3, "new": {"deep": [1, None, "x"]}}
    assert json.loads(one(after=row).after_json) == row


def test_a_key_column_that_is_null_is_refused() -> None:
    assert "'id' is null" in refused(key={"id": None})


@pytest.mark.parametrize("position", [-1, 1.5, True, [1], {}])
def test_a_position_that_does_not_compare_is_refused(position: Any) -> None:
    assert '"position"' in refused(position=position)


def test_positions_as_text_compare_naturally() -> None:
    assert one(position="file.9/10").position < one(position="file.10/9").position


def test_a_number_and_a_text_do_not_compare_so_that_neither_holds_the_other_up() -> None:
    number, text = one(position=1018).position, one(position="file.10/9").position
    assert newer(number, text)
    assert newer(text, number)


def test_a_number_that_is_written_as_a_text_is_a_number() -> None:
    assert one(position="1017").position == one(position=1017).position
    assert not newer(one(position="9").position, one(position=10).position)


@given(st.text(min_size=1), st.integers(0, 2**64 - 1))
def test_only_a_text_of_digits_compares_with_a_number(text: str, number: int) -> None:
    position, other = one(position=text).position, one(position=number).position
    is_number = text.isascii() and text.isdigit() and int(text) < 10**20
    assert (position.rpartition(":")[0] == other.rpartition(":")[0]) == is_number


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-11-23T17:00:00Z", "2026-11-23T17:00:00Z"),
        ("2026-11-23T18:30:00+01:30", "2026-11-23T17:00:00Z"),
        ("2026-11-23T17:00:00", "2026-11-23T17:00:00Z"),
        (1795456755681, "2026-11-23T23:19:15.681Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_or_milliseconds(written: Any, read: str) -> None:
    change = one(time=written)
    if written == 1795456755681:
        assert change.occurred_at.ToMilliseconds() == written
    else:
        assert change.occurred_at.ToJsonString() == read


@pytest.mark.parametrize("time", ["yesterday", "", 1.5, True, [], 10**18, "0001-01-01T00:00:00+10:00"])
def test_a_time_that_is_none_is_refused(time: Any) -> None:
    assert "time" in refused(time=time)


@pytest.mark.parametrize("op", ["upsert", "", None, 1, ["insert"]])
def test_an_operation_that_is_none_is_refused_with_those_that_are(op: Any) -> None:
    assert ", ".join(OPERATIONS) in refused(op=op)


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"op":"\xff"}', b'"x"', b"12", b'{"op":"insert"}' * 2]
)
def test_what_is_no_event_is_refused(record: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(record, Hints())


def test_a_byte_order_mark_is_forgiven() -> None:
    assert decode(b"\xef\xbb\xbf" + orjson.dumps(EVENT), Hints()) == decode(orjson.dumps(EVENT), Hints())


def test_what_reads_but_cannot_be_written_again_is_refused() -> None:
    deep = orjson.loads(b'{"x":' * 300 + b"1" + b"}" * 300)
    for name in ("after", "key", "before"):
        event = json.dumps({**EVENT, name: deep}).encode()
        with pytest.raises(DecodeError):
            decode(event, Hints())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)  # fmt: skip
rows = st.dictionaries(st.text(max_size=8), json_values, max_size=4)


@given(rows, rows, st.integers(0, 2**64 - 1), st.sampled_from(["insert", "update", "snapshot"]))
def test_rows_come_out_as_they_went_in(before: Any, after: Any, position: int, op: str) -> None:
    change = one(before=before, after=after, position=position, op=op)
    assert json.loads(change.before_json) == before
    assert json.loads(change.after_json) == after
    assert change.source_position == str(position)
    assert events_pb2.Change.FromString(change.SerializeToString()) == change
