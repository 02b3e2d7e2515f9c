"""What is checked of pushed changes."""

import pytest

from headwater.ingest.v1 import events_pb2
from services.ingest.validation import checked_change
from services.kernel.errors import InvalidInputError


def test_only_an_update_can_be_partial() -> None:
    change = events_pb2.Change(
        source="crm", entity="customers", key_json='{"id":1}', after_json='{"tier":"gold"}', partial=True,
        operation=events_pb2.OPERATION_UPDATE,
    )  # fmt: skip
    assert checked_change(change, "change 1", 1000).partial
    change.operation = events_pb2.OPERATION_INSERT
    with pytest.raises(InvalidInputError, match="change 1: only an update can be partial"):
        checked_change(change, "change 1", 1000)
