import base64
import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import DecodeError, Hints
from services.ingest.decoders.debezium import from_value
from services.ingest.decoders.detect import FORMATS
from services.kernel.positions import newer

SAMPLES = Path(__file__).parents[2] / "data" / "ingest" / "debezium"
PUBLIC_KEYS = {"id": 1}


def captured(name: str) -> list[Any]:
    (path,) = SAMPLES.glob(f"{name}-*.json")
    records: list[Any] = json.loads(path.read_text())
    return records


def decoded(record: Any, hints: Hints | None = None, format_: str = "auto") -> list[events_pb2.Change]:
    changes = FORMATS[format_](orjson.dumps(record), hints or Hints())
    assert all(isinstance(change, events_pb2.Change) for change in changes)
    return changes  # type: ignore[return-value]  # as asserted


def only(record: Any, hints: Hints | None = None, format_: str = "auto") -> events_pb2.Change:
    (change,) = decoded(record, hints, format_)
    return change


def test_a_snapshot_row() -> None:
    change = only(captured("01")[0])
    assert change.operation == events_pb2.OPERATION_SNAPSHOT
    assert (change.source, change.entity) == ("cdc", "crm.customers")
    assert (change.record, change.key_json) == ("cdc/crm.customers/1", '{"id":1}')
    assert json.loads(change.after_json) == captured("01")[0]["value"]["after"]
    assert change.before_json == ""
    assert change.occurred_at.ToNanoseconds() == 1795456755681564000
    assert change.transaction == "728"
    assert change.source_position == "0/192ABD8"


def test_an_insert_with_every_type() -> None:
    change = only(captured("02")[0])
    assert change.operation == events_pb2.OPERATION_INSERT
    assert json.loads(change.after_json)["tags"] == ["newsletter"]


def test_an_update_under_the_default_replica_identity_has_no_before() -> None:
    change = only(captured("03")[0])
    assert change.operation == events_pb2.OPERATION_UPDATE
    assert change.before_json == ""


def test_an_unchanged_column_that_was_not_sent_is_unavailable_and_left_out() -> None:
    change = only(captured("04")[0])
    assert list(change.unavailable) == ["bio"]
    assert "bio" not in json.loads(change.after_json)


def test_an_update_under_full_replica_identity_has_the_whole_row_before() -> None:
    change = only(captured("05")[0])
    assert json.loads(change.before_json) == captured("05")[0]["value"]["before"]


def test_a_new_primary_key_is_a_delete_and_an_insert() -> None:
    deleted, tombstone, inserted = map(decoded, captured("06"))
    assert [change.record for change in deleted] == ["cdc/crm.customers/3"]
    assert deleted[0].operation == events_pb2.OPERATION_DELETE
    assert tombstone == []
    assert [change.record for change in inserted] == ["cdc/crm.customers/30"]
    assert inserted[0].operation == events_pb2.OPERATION_INSERT


@pytest.mark.parametrize("name", ["06", "07"])
def test_the_fillers_of_a_deleted_row_are_never_believed(name: str) -> None:
    change = only(captured(name)[0])
    assert change.operation == events_pb2.OPERATION_DELETE
    assert change.before_json == change.key_json
    assert change.after_json == ""


def test_a_tombstone_means_nothing() -> None:
    assert decoded(captured("07")[1]) == []


def test_a_column_that_was_added_is_kept() -> None:
    assert json.loads(only(captured("08")[0]).after_json)["locale"] == "fr-FR"


def test_a_truncate_names_the_table_and_no_record() -> None:
    change = only(captured("09")[0])
    assert change.operation == events_pb2.OPERATION_TRUNCATE
    assert (change.entity, change.record, change.key_json) == ("crm.customers", "", "")


def test_the_schema_makes_dates_times_and_decimals_readable() -> None:
    row = json.loads(only(captured("10")[0]).after_json)
    assert row["credit"] == "1250.50"
    assert row["birth_date"] == "1979-05-06"
    assert row["updated_at"] == "2026-04-01T10:00:00"
    assert row["created_at"] == "2026-04-01T10:00:00.000000Z"
    assert row["tags"] == ["vip"]


def test_positions_grow_through_the_whole_capture() -> None:
    changes = [only(record) for n in range(1, 10) for record in captured(f"{n:02d}") if record["value"] is not None]
    changes = [changes[0], *changes[2:]]  # the second row of the snapshot stands where the first does
    for earlier, later in pairwise(changes):
        if (earlier.operation, later.operation) == (events_pb2.OPERATION_DELETE, events_pb2.OPERATION_INSERT):
            assert earlier.position == later.position or newer(later.position, earlier.position)
        else:
            assert newer(later.position, earlier.position)
            assert not newer(earlier.position, later.position)


def postgresql(op: str, sequence: str | None, **more: Any) -> Any:
    source = {"connector": "postgresql", "name": "cdc", "schema": "public", "table": "t", "ts_ms": 1, "lsn": 5}
    row = {"id": 1, "v": "x"}
    return {
        "op": op,
        "before": row if op == "d" else None,
        "after": None if op == "d" else row,
        "source": {**source, "sequence": sequence},
        **more,
    }


def position(op: str, sequence: str | None, **more: Any) -> str:
    return only(postgresql(op, sequence, **more)).position


def test_a_commit_orders_changes_whose_lsn_goes_down() -> None:
    assert newer(position("u", '["200","90"]'), position("u", '["100","150"]'))


def test_snapshot_rows_stand_below_what_is_streamed_afterwards() -> None:
    snapshot = position("r", '[null,"100"]')
    for later in ('[null,"101"]', '["100","100"]', '["150","99"]'):
        assert newer(position("u", later), snapshot)
        assert not newer(snapshot, position("u", later))


def test_a_snapshot_that_is_taken_again_stands_above_what_was_streamed_before() -> None:
    assert newer(position("r", '[null,"500"]'), position("u", '["400","420"]'))


def test_an_incremental_snapshot_stands_between_transactions() -> None:
    row = position("r", '["400","420"]')
    assert newer(row, position("u", '["390","399"]'))
    assert newer(position("u", '["400","399"]'), row)


def test_the_order_within_a_transaction_decides_at_last() -> None:
    first, second = (
        position("u", '["1","2"]', transaction={"id": "7:1", "total_order": n, "data_collection_order": n})
        for n in (9, 10)
    )
    assert newer(second, first)


@pytest.mark.parametrize("sequence", [None, "", "x", "[]", "[null,null]", '["a","b"]', "[1,2,3]", "7"])
def test_without_a_usable_sequence_the_order_of_arrival_decides(sequence: str | None) -> None:
    assert position("u", sequence) == ""


def mysql(op: str, file: str = "mysql-bin.000003", pos: int = 484, row: int = 0, **source: Any) -> Any:
    block = {
        "version": "3.6.1.Final", "connector": "mysql", "name": "shop", "ts_ms": 1795456757601, "snapshot": "false",
        "db": "inventory", "table": "customers", "server_id": 223344, "gtid": None, "file": file, "pos": pos,
        "row": row, "thread": 7, "query": None,
    }  # fmt: skip
    image = {"id": 1004, "first_name": "Anne", "email": "annek@noanswer.org"}
    return {
        "before": None if op in "cr" else image,
        "after": None if op == "d" else {**image, "email": "anne@example.com"},
        "source": {**block, **source},
        "op": op,
        "ts_ms": 1795456757700,
        "transaction": None,
    }


def test_mysql_leaves_the_database_out_of_the_entity() -> None:
    change = only({"key": {"id": 1004}, "value": mysql("u")})
    assert (change.source, change.entity, change.record) == ("shop", "customers", "shop/customers/1004")
    assert json.loads(change.before_json)["email"] == "annek@noanswer.org"


def test_mysql_tells_the_whole_row_that_was_deleted() -> None:
    change = only({"key": {"id": 1004}, "value": mysql("d")})
    assert json.loads(change.before_json)["first_name"] == "Anne"


def test_mysql_orders_by_file_position_and_row() -> None:
    places = [
        only(mysql("r", "mysql-bin.000999", 100, snapshot="true")),
        only(mysql("u", "mysql-bin.000999", 100, 0)),
        only(mysql("u", "mysql-bin.000999", 100, 1)),
        only(mysql("u", "mysql-bin.000999", 1000, 0)),
        only(mysql("u", "mysql-bin.001000", 4, 0)),
    ]
    for earlier, later in pairwise(places):
        assert newer(later.position, earlier.position)
        assert not newer(earlier.position, later.position)


def test_mysql_files_of_another_server_do_not_compare() -> None:
    here, there = only(mysql("u", "a-bin.000009")), only(mysql("u", "b-bin.000001"))
    assert newer(here.position, there.position)
    assert newer(there.position, here.position)


def test_a_gtid_is_kept_for_people() -> None:
    change = only(mysql("u", gtid="3e11fa47-71ca-11e1-9e33-c80aa9429562:23"))
    assert change.source_position == "3e11fa47-71ca-11e1-9e33-c80aa9429562:23"


def test_the_key_columns_may_be_configured() -> None:
    event = postgresql("u", '["1","2"]')
    event["after"] = {"tenant_no": 7, "no": "a/b"}
    change = only(event, Hints(keys={"cdc/t": ("tenant_no", "no")}))
    assert change.record == "cdc/t/a%2Fb/7"


def test_without_key_and_id_the_cure_is_told() -> None:
    event = postgresql("u", '["1","2"]')
    event["after"] = {"no": 1}
    with pytest.raises(DecodeError, match=r'\[ingest.keys\] "cdc/t"'):
        decoded(event)


def test_a_delete_needs_only_its_key() -> None:
    change = only({"key": {"id": 9}, "value": {**postgresql("d", '["1","2"]'), "before": None}})
    assert (change.record, change.before_json) == ("cdc/t/9", '{"id":9}')


def test_the_public_schema_is_left_out_and_others_are_kept() -> None:
    assert only(postgresql("u", '["1","2"]')).entity == "t"
    assert only(captured("02")[0]).entity == "crm.customers"


FLAT = {"id": 3, "email": "lin@example.com", "__op": "u", "__deleted": "false", "__source_ts_ms": 1795456757601}
NAMED = {**FLAT, "__name": "cdc", "__schema": "crm", "__table": "customers", "__source_sequence": '["5","6"]'}


def test_a_flattened_event_keeps_the_row_and_reads_the_rest() -> None:
    change = only(NAMED)
    assert change.operation == events_pb2.OPERATION_UPDATE
    assert (change.source, change.entity, change.record) == ("cdc", "crm.customers", "cdc/crm.customers/3")
    assert json.loads(change.after_json) == {"id": 3, "email": "lin@example.com"}
    assert change.position == position("u", '["5","6"]')
    assert change.occurred_at.ToMilliseconds() == 1795456757601


def test_a_flattened_delete_believes_its_key_only() -> None:
    change = only({**NAMED, "__op": "d", "__deleted": "true", "email": ""})
    assert change.operation == events_pb2.OPERATION_DELETE
    assert change.before_json == '{"id":3}'


def test_a_flattened_event_takes_source_and_table_from_its_topic() -> None:
    change = only({"topic": "cdc.crm.customers", "key": {"id": 3}, "value": FLAT, "partition": 1, "offset": 70})
    assert (change.source, change.entity) == ("cdc", "crm.customers")
    assert change.position == "kafka:cdc.crm.customers/1:00000000000000000070"


def test_a_flattened_row_without_any_metadata_needs_its_format_named() -> None:
    record = {"topic": "cdc.public.customers", "key": {"id": 3}, "value": {"id": 3, "email": "x"}}
    assert only(record, format_="debezium").record == "cdc/customers/3"


def test_a_flattened_event_that_names_no_table_tells_the_cure() -> None:
    with pytest.raises(DecodeError, match=r"add\.fields"):
        decoded(FLAT)


def test_a_column_of_the_users_own_that_begins_with_underscores_is_kept() -> None:
    assert json.loads(only({**NAMED, "__v": 7}).after_json)["__v"] == 7


def test_a_heartbeat_names_its_source_by_its_topic() -> None:
    record = {"topic": "__debezium-heartbeat.cdc", "key": {"serverName": "cdc"}, "value": {"ts_ms": 1795456757601}}
    change = only(record)
    assert change.operation == events_pb2.OPERATION_HEARTBEAT
    assert (change.source, change.entity, change.record, change.position) == ("cdc", "", "", "")
    assert change.occurred_at.ToMilliseconds() == 1795456757601


def test_a_bare_heartbeat_needs_its_source_named() -> None:
    assert only({"ts_ms": 5}, Hints(source="cdc")).source == "cdc"
    with pytest.raises(DecodeError, match="does not name its source"):
        decoded({"ts_ms": 5})


def test_transaction_markers_schema_changes_and_messages_mean_nothing() -> None:
    assert from_value({"status": "BEGIN", "id": "7:1", "ts_ms": 1, "event_count": None}, Hints()) == []
    assert from_value({"source": {"name": "shop"}, "ddl": "ALTER TABLE t", "databaseName": "d"}, Hints()) == []
    assert from_value({"source": {"name": "cdc"}, "op": "m", "message": {}}, Hints()) == []


def schema_of(**columns: Any) -> Any:
    fields = [{"field": name, **column} for name, column in columns.items()]
    return {"type": "struct", "fields": [{"type": "struct", "field": "after", "fields": fields}]}


@pytest.mark.parametrize(
    ("type_name", "value", "read"),
    [
        ("io.debezium.time.Date", -1, "1969-12-31"),
        ("io.debezium.time.Timestamp", 1500, "1970-01-01T00:00:01.5"),
        ("io.debezium.time.MicroTimestamp", -1, "1969-12-31T23:59:59.999999"),
        ("io.debezium.time.NanoTimestamp", 1, "1970-01-01T00:00:00.000000001"),
        ("io.debezium.time.MicroTimestamp", -62135596800000000, "0001-01-01T00:00:00"),
        ("io.debezium.time.MicroTime", 86400000000, "24:00:00"),
        ("io.debezium.time.Time", 3723004, "01:02:03.004"),
        ("org.apache.kafka.connect.data.Timestamp", 0, "1970-01-01T00:00:00"),
        ("io.debezium.time.MicroTimestamp", 9223372036825200000, 9223372036825200000),  # PostgreSQL's infinity
        ("io.debezium.time.Date", "2026-01-01", "2026-01-01"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 3, "value": base64.b64encode(b"\xff").decode()}, "-0.001"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": -2, "value": base64.b64encode(b"\x05").decode()}, "500"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 10**9, "value": "BQ=="}, {"scale": 10**9, "value": "BQ=="}),
        ("some.other.Type", 7, 7),
    ],
)
def test_logical_types(type_name: str, value: Any, read: Any) -> None:
    payload = {**postgresql("u", '["1","2"]'), "after": {"id": 1, "v": value}}
    change = only({"schema": schema_of(v={"name": type_name}), "payload": payload})
    assert json.loads(change.after_json)["v"] == read


def test_logical_types_within_arrays() -> None:
    payload = {**postgresql("u", '["1","2"]'), "after": {"id": 1, "v": [0, None, 1]}}
    schema = schema_of(v={"type": "array", "items": {"type": "int32", "name": "io.debezium.time.Date"}})
    assert json.loads(only({"schema": schema, "payload": payload}).after_json)["v"] == [
        "1970-01-01", None, "1970-01-02",
    ]  # fmt: skip


PLACEHOLDER = "__debezium_unavailable_value"


@pytest.mark.parametrize(
    "value",
    [
        PLACEHOLDER,
        base64.b64encode(PLACEHOLDER.encode()).decode(),
        [PLACEHOLDER],
        list(PLACEHOLDER.encode()),
        {PLACEHOLDER: PLACEHOLDER},
    ],
)
def test_every_form_of_the_placeholder_is_known(value: Any) -> None:
    change = only({**postgresql("u", '["1","2"]'), "after": {"id": 1, "v": value}})
    assert list(change.unavailable) == ["v"]
    assert json.loads(change.after_json) == {"id": 1}


def test_a_source_that_is_given_outranks_the_events() -> None:
    change = only(captured("02")[0], Hints(source="crm"))
    assert (change.source, change.record) == ("crm", "crm/crm.customers/3")
    assert change.position.startswith("pg:crm:")


def test_the_schema_wrapper_changes_nothing_but_the_readable_types() -> None:
    wrapped = captured("10")[0]
    bare = copy.deepcopy(wrapped)
    bare["key"], bare["value"] = wrapped["key"]["payload"], wrapped["value"]["payload"]
    with_schema, without = only(wrapped), only(bare)
    assert json.loads(without.after_json)["credit"] == "Aeh6"
    with_schema.after_json = without.after_json = ""
    assert with_schema == without


def test_a_schema_that_leaves_out_a_types_parameters_leaves_its_values_as_they_came() -> None:
    record = captured("10")[0]
    for field in record["value"]["schema"]["fields"]:
        for column in field.get("fields", ()):
            column.pop("parameters", None)
    assert json.loads(only(record).after_json)["credit"] == "Aeh6"
