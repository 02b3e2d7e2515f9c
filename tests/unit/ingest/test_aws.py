"""AWS DMS, DynamoDB and notifications of object stores, and what AWS wraps around them."""

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import Decoded, DecodeError, Hints
from services.ingest.decoders.detect import FORMATS
from services.ingest.decoders.dynamodb import number_of
from services.ingest.decoders.s3 import object_of, reference_of
from services.kernel.positions import newer

SAMPLES = Path(__file__).parents[2] / "data" / "ingest"


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_text())


def decoded(record: Any, hints: Hints | None = None, format_: str = "auto") -> list[Decoded]:
    return FORMATS[format_](orjson.dumps(record), hints or Hints())


def changes(record: Any, hints: Hints | None = None) -> list[events_pb2.Change]:
    found = decoded(record, hints)
    assert all(isinstance(change, events_pb2.Change) for change in found)
    return found  # type: ignore[return-value]  # as asserted


def documents(record: Any, hints: Hints | None = None) -> list[events_pb2.DocumentChange]:
    found = decoded(record, hints)
    assert all(isinstance(change, events_pb2.DocumentChange) for change in found)
    return found  # type: ignore[return-value]  # as asserted


# AWS DMS -------------------------------------------------------------------------------------------------------------

DROP, CREATE, LOAD, INSERT, UPDATE, REKEY, DELETE = sample("dms/records")


def test_control_records_mean_nothing() -> None:
    assert decoded(DROP) == decoded(CREATE) == []


def test_a_truncation_is_one() -> None:
    (change,) = changes({**DROP, "metadata": {**DROP["metadata"], "operation": "truncate-table"}})
    assert (change.operation, change.entity, change.record) == (events_pb2.OPERATION_TRUNCATE, "foo", "")


def test_a_loaded_row_is_of_the_snapshot_and_counts_as_it_arrives() -> None:
    (change,) = changes(LOAD, Hints(source="crm"))
    assert change.operation == events_pb2.OPERATION_SNAPSHOT
    assert (change.source, change.entity, change.record, change.position) == ("crm", "foo", "crm/foo/42", "")


def test_a_change_has_transaction_and_position() -> None:
    (change,) = changes(INSERT)
    assert change.operation == events_pb2.OPERATION_INSERT
    assert (change.record, change.transaction) == ("dms/foo/46", "1139")
    assert change.source_position == "00000002/7C007178.3.00000002/7C007178"
    assert change.occurred_at.ToJsonString() == "2024-07-29T00:58:17.974340Z"


def test_positions_of_the_log_grow() -> None:
    positions = [changes(record)[0].position for record in (INSERT, UPDATE, REKEY, DELETE)]
    assert positions == sorted(positions)
    assert all(newer(later, earlier) for earlier, later in pairwise(positions))


def test_a_position_of_another_database_is_told_and_not_compared() -> None:
    (change,) = changes({**UPDATE, "metadata": {**UPDATE["metadata"], "stream-position": "mysql-bin.000003:484"}})
    assert (change.position, change.source_position) == ("", "mysql-bin.000003:484")


def test_a_new_key_is_a_delete_and_an_insert() -> None:
    gone, new = changes(REKEY)
    assert (gone.operation, gone.record) == (events_pb2.OPERATION_DELETE, "dms/foo/46")
    assert (new.operation, new.record) == (events_pb2.OPERATION_INSERT, "dms/foo/45")
    assert json.loads(new.after_json)["id"] == 45


def test_a_deleted_row_is_told_as_it_was() -> None:
    (change,) = changes(DELETE)
    assert json.loads(change.before_json) == DELETE["data"]


def test_the_key_of_a_table_is_configured() -> None:
    record = {**LOAD, "data": {"no": 7}}
    with pytest.raises(DecodeError, match=r'\[ingest.keys\] "dms/foo"'):
        decoded(record)
    assert changes(record, Hints(keys={"dms/foo": ("no",)}))[0].record == "dms/foo/7"


def test_dms_may_come_through_kafka() -> None:
    (change,) = changes(
        {"topic": "t", "partition": 1, "offset": 5, "key": "public.foo.42", "payload": json.dumps(LOAD)}
    )
    assert (change.record, change.position) == ("dms/foo/42", f"kafka:t/1:{5:020d}")


# DynamoDB ------------------------------------------------------------------------------------------------------------

LAMBDA = sample("dynamodb/lambda-event")
KINESIS = sample("dynamodb/kinesis-record")


def test_records_of_a_stream() -> None:
    inserted, modified, removed = changes(LAMBDA)
    assert inserted.operation == events_pb2.OPERATION_INSERT
    assert (inserted.source, inserted.entity, inserted.record) == (
        "dynamodb",
        "ExampleTableWithStream",
        "dynamodb/ExampleTableWithStream/101",
    )
    assert json.loads(inserted.after_json) == {"Id": 101, "Message": "New item!"}
    assert inserted.occurred_at.seconds == 1428537600
    assert (modified.operation, json.loads(modified.before_json)["Message"]) == (
        events_pb2.OPERATION_UPDATE,
        "New item!",
    )
    assert (removed.operation, removed.initiator) == (events_pb2.OPERATION_DELETE, "dynamodb.amazonaws.com")
    assert newer(removed.position, modified.position)
    assert newer(modified.position, inserted.position)


def test_sequence_numbers_compare_as_numbers() -> None:
    first, second = LAMBDA["Records"][0], LAMBDA["Records"][1]
    short = {**first, "dynamodb": {**first["dynamodb"], "SequenceNumber": "9" * 21}}
    long = {**second, "dynamodb": {**second["dynamodb"], "SequenceNumber": "1" + "0" * 21}}
    assert newer(changes(long)[0].position, changes(short)[0].position)


def test_a_record_of_kinesis_with_every_type() -> None:
    (change,) = changes(KINESIS)
    row = json.loads(change.after_json)
    assert change.key_json == '{"device":"foo","timestamp":"2024-07-12T01:17:42"}'
    assert (row["temperature"], row["count"], row["wide"]) == (42.42, 7, "12345678901234567890123456789012345678")
    assert (row["on"], row["nothing"], row["blob"]) == (True, None, "U3Vubnk=")
    assert (row["tags"], row["numbers"], row["list"]) == (["a", "b"], [1, 2.5], [1, {"deep": "x"}])
    assert change.occurred_at.ToMicroseconds() == 1720740233012995
    assert change.position.startswith("dynamodb-time:")


def test_times_in_milliseconds_are_no_order() -> None:
    record = {**KINESIS, "dynamodb": {**KINESIS["dynamodb"], "ApproximateCreationDateTime": 1660598951097}}
    record["dynamodb"].pop("ApproximateCreationDateTimePrecision")
    (change,) = changes(record)
    assert (change.occurred_at.ToMilliseconds(), change.position) == (1660598951097, "")


def test_a_record_in_lambdas_event_of_kinesis_has_its_place_in_the_shard() -> None:
    record = {**KINESIS, "dynamodb": {**KINESIS["dynamodb"], "ApproximateCreationDateTimePrecision": "MILLISECOND"}}
    record["dynamodb"]["ApproximateCreationDateTime"] //= 1000
    data = base64.b64encode(json.dumps(record).encode()).decode()
    event = {"eventSource": "aws:kinesis", "kinesis": {"data": data, "sequenceNumber": "49590338271490256608"}}
    (change,) = changes({"Records": [event]})
    assert change.position == "kinesis::" + "49590338271490256608".zfill(56)


def test_a_stream_of_keys_only_is_refused_with_the_cure() -> None:
    record = json.loads(json.dumps(LAMBDA["Records"][0]))
    del record["dynamodb"]["NewImage"]
    with pytest.raises(DecodeError, match="NEW_AND_OLD_IMAGES"):
        decoded(record)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=5) | st.integers(-(10**37), 10**37))
def test_a_number_is_never_rounded(value: Any) -> None:
    from decimal import Decimal

    read = number_of(str(value))
    assert Decimal(read if isinstance(read, str) else repr(read)) == Decimal(value)


# Object stores -------------------------------------------------------------------------------------------------------

NOTIFICATION, MINIO = sample("s3/notification"), sample("s3/minio")


def test_a_notification_refers_to_the_object() -> None:
    put, gone = documents(NOTIFICATION)
    assert put.operation == events_pb2.DOCUMENT_OPERATION_PUT
    assert put.document_id == "amzn-s3-demo-bucket/red flower.md"
    assert put.reference == "s3://amzn-s3-demo-bucket/red%20flower.md"
    assert (put.name, put.media_type, put.content) == ("red flower.md", "text/markdown", b"")
    assert (gone.operation, gone.document_id) == (events_pb2.DOCUMENT_OPERATION_DELETE, put.document_id)
    assert newer(gone.position, put.position)


def test_sequencers_compare_as_numbers_whatever_their_length() -> None:
    def position(sequencer: str) -> str:
        record = json.loads(json.dumps(NOTIFICATION["Records"][0]))
        record["s3"]["object"]["sequencer"] = sequencer
        return documents(record)[0].position

    assert newer(position("100"), position("FF"))
    assert newer(position("00ab"), position("A9"))


def test_envelopes_mean_what_is_in_them() -> None:
    put = documents(NOTIFICATION)[0]
    sns = sample("s3/sns")
    assert documents(sns) == [put]
    assert documents({"Records": [{"eventSource": "aws:sqs", "body": json.dumps(sns)}]}) == [put]
    assert documents({"Records": [{"EventSource": "aws:sns", "Sns": sns}]}) == [put]
    assert documents({"topic": "t", "key": "k", "value": NOTIFICATION["Records"][0]}) == [put]


def test_event_bridge() -> None:
    put, gone = [documents(event)[0] for event in sample("s3/event-bridge")]
    assert put.document_id == gone.document_id == "amzn-s3-demo-bucket1/example-key"
    assert gone.operation == events_pb2.DOCUMENT_OPERATION_DELETE
    assert newer(gone.position, put.position)


def test_minio() -> None:
    (put,) = documents(MINIO, Hints(source="photos"))
    assert put.document_id == "photos/photos/my photo.jpg"
    assert put.occurred_at.ToJsonString() == "2017-07-07T18:46:37Z"


@pytest.mark.parametrize("name", ["ObjectRestore:Completed", "ObjectTagging:Put", "s3:ObjectAccessed:Get"])
def test_what_changes_no_content_means_nothing(name: str) -> None:
    assert decoded({**NOTIFICATION["Records"][0], "eventName": name}) == []


def test_the_message_that_tests_a_subscription_means_nothing() -> None:
    assert decoded(sample("s3/test-event")) == []


def test_a_subscription_asks_to_be_confirmed() -> None:
    with pytest.raises(DecodeError, match="SubscribeURL"):
        decoded({"Type": "SubscriptionConfirmation", "TopicArn": "arn:x", "Message": "You have chosen …"})


@given(st.text(min_size=1), st.text(min_size=1).filter(lambda name: "/" not in name))
def test_a_reference_names_its_object(key: str, bucket: str) -> None:
    try:
        key.encode(), bucket.encode()
    except UnicodeEncodeError:
        return
    assert object_of(reference_of(bucket, key)) == (bucket, key)


def test_each_name_of_a_format_reads_its_records() -> None:
    for format_, record in (("dms", INSERT), ("dynamodb", LAMBDA), ("s3", NOTIFICATION)):
        assert decoded(record, format_=format_) == decoded(record)
