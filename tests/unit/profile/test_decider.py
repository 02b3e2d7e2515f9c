"""Given the rows that are there, when changes and assignments come, then these are current and these are touched."""

from typing import Any

import orjson
import pytest

from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Message, Record, key_of
from services.kernel.processor import Outcome
from services.profile.decider import decide, finish
from services.profile.rows import Rows, events_of
from tests.unit.profile.examples import T0_MS, assigned, change, delivered

ADA = "crm/customers/1"
KEY = key_of("default", ADA).decode()


class Scenario:
    """A working set that messages are delivered to, one batch each."""

    def __init__(self) -> None:
        self.state = Rows()

    def deliver(self, *messages: Message) -> list[Outcome]:
        batch = delivered(messages)
        self.state.events = events_of(batch)
        self.state.touched.clear()
        return [decide(self.state, record).outcome for record in batch]

    @property
    def touched(self) -> list[str]:
        return sorted(key.partition("\x1f")[2] for key in self.state.touched)

    def body(self, record: str = ADA) -> Any:
        found = self.state.rows.get(key_of("default", record).decode())
        return None if found is None or found.body is None else orjson.loads(found.body)


@pytest.fixture
def rows() -> Scenario:
    return Scenario()


def test_a_row_is_kept_before_its_assignment_comes_and_touches_nothing(rows: Scenario) -> None:
    assert rows.deliver(change("insert", 1, {"a": 1}, at=1)) == [Outcome.APPLIED]
    assert (rows.body(), rows.touched) == ({"a": 1}, [])


def test_an_assignment_touches_the_profile_of_a_row_that_is_there(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, at=1))
    rows.deliver(assigned(ADA, "p1"))
    assert rows.touched == ["p1"]


def test_an_assignment_that_comes_first_touches_once_the_row_is_there(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"))
    assert rows.touched == []
    rows.deliver(change("insert", 1, {"a": 1}, at=1))
    assert rows.touched == ["p1"]


def test_a_move_touches_the_old_and_the_new_profile(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, at=1))
    rows.deliver(assigned(ADA, "p1", 1))
    rows.deliver(assigned(ADA, "p2", 2))
    assert rows.touched == ["p1", "p2"]


def test_an_older_or_repeated_assignment_is_superseded(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, at=1), assigned(ADA, "p2", 2))
    assert rows.deliver(assigned(ADA, "p1", 1), assigned(ADA, "p2", 2)) == [Outcome.SUPERSEDED] * 2
    assert rows.touched == []


def test_new_identifiers_of_the_same_profile_touch_it(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, at=1), assigned(ADA, "p1", 1))
    rows.deliver(assigned(ADA, "p1", 2, identifiers=[("email", "a@x.org")]))
    assert rows.touched == ["p1"]


def test_an_older_or_repeated_change_is_superseded(rows: Scenario) -> None:
    rows.deliver(change("update", 1, {"a": 2}, at=2))
    assert (
        rows.deliver(change("insert", 1, {"a": 1}, at=1), change("update", 1, {"a": 2}, at=2))
        == [Outcome.SUPERSEDED] * 2
    )
    assert rows.body() == {"a": 2}


def test_without_positions_the_order_of_arrival_decides(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, time_ms=T0_MS + 5), change("update", 1, {"a": 2}, time_ms=T0_MS))
    assert rows.body() == {"a": 2}


def test_a_deleted_row_stays_deleted_when_an_older_change_comes_late(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"), change("delete", 1, at=3))
    assert rows.deliver(change("update", 1, {"a": 2}, at=2)) == [Outcome.SUPERSEDED]
    assert rows.body() is None


def test_a_delete_touches_the_profile(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"), change("insert", 1, {"a": 1}, at=1))
    rows.deliver(change("delete", 1, at=2))
    assert (rows.body(), rows.touched) == (None, ["p1"])


def test_the_row_is_stored_as_it_came(rows: Scenario) -> None:
    message = change("insert", 1, {"b": 1, "a": 2}, at=1)
    rows.deliver(message)
    assert rows.state.rows[KEY].body == '{"b":1,"a":2}'


def test_columns_that_a_change_leaves_out_keep_their_value(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "photo": "big"}, at=1))
    rows.deliver(change("update", 1, {"a": 2}, at=2, unavailable=["photo"]))
    assert rows.body() == {"a": 2, "photo": "big"}
    rows.deliver(change("update", 1, {"a": 3}, at=3, unavailable=["photo"]))
    assert rows.body() == {"a": 3, "photo": "big"}


def test_a_column_that_is_gone_and_not_left_out_is_gone(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "b": 2}, at=1), change("update", 1, {"a": 2}, at=2))
    assert rows.body() == {"a": 2}


def test_an_older_change_that_comes_late_fills_in_what_a_newer_one_left_out(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"), change("update", 1, {"a": 3}, at=3, unavailable=["photo"]))
    assert rows.deliver(change("insert", 1, {"a": 1, "photo": "old"}, at=1)) == [Outcome.APPLIED]
    assert rows.touched == ["p1"]
    rows.deliver(change("update", 1, {"a": 2, "photo": "new"}, at=2))
    assert rows.body() == {"a": 3, "photo": "new"}
    assert rows.deliver(change("insert", 1, {"a": 1, "photo": "old"}, at=1)) == [Outcome.SUPERSEDED]
    assert rows.body() == {"a": 3, "photo": "new"}


def test_a_value_kept_twice_is_still_as_old_as_it_is(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "photo": "old"}, at=1))
    rows.deliver(change("update", 1, {"a": 3}, at=3, unavailable=["photo"]))
    rows.deliver(change("update", 1, {"a": 4}, at=4, unavailable=["photo"]))
    rows.deliver(change("update", 1, {"a": 2, "photo": "new"}, at=2))
    assert rows.body() == {"a": 4, "photo": "new"}


def test_a_late_delete_takes_away_what_was_kept_from_before_it(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "photo": "old"}, at=1))
    rows.deliver(change("update", 1, {"a": 3}, at=3, unavailable=["photo"]))
    rows.deliver(change("delete", 1, at=2))
    assert rows.body() == {"a": 3}


def test_a_partial_change_keeps_all_columns_that_it_does_not_name(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "b": 1}, at=1))
    rows.deliver(change("update", 1, {"a": 2, "c": None}, at=3, partial=True))
    assert rows.body() == {"a": 2, "b": 1, "c": None}
    rows.deliver(change("update", 1, {"a": 9, "b": 9, "c": 9, "d": 9}, at=2, partial=True))
    assert rows.body() == {"a": 2, "b": 9, "c": None, "d": 9}
    rows.deliver(change("update", 1, {"a": 4}, at=4))
    assert rows.body() == {"a": 4}


def test_a_row_that_comes_after_its_partial_change_fills_it_in(rows: Scenario) -> None:
    rows.deliver(change("update", 1, {"a": 2}, at=2, partial=True))
    assert rows.body() == {"a": 2}
    rows.deliver(change("insert", 1, {"a": 1, "b": 1}, at=1))
    assert rows.body() == {"a": 2, "b": 1}


def test_a_truncation_removes_older_rows_of_its_entity_only(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"), assigned("crm/customers/2", "p2"))
    rows.deliver(
        change("insert", 1, {"a": 1}, at=1),
        change("insert", 2, {"a": 2}, at=9),
        change("insert", 1, {"a": 3}, at=1, entity="orders"),
        change("insert", 1, {"a": 4}, at=1, source="web"),
    )
    rows.deliver(change("truncate", at=5, partition=0))
    assert rows.body() is None
    assert rows.body("crm/customers/2") == {"a": 2}
    assert rows.body("crm/orders/1") == {"a": 3}
    assert rows.body("web/customers/1") == {"a": 4}
    assert rows.touched == ["p1"]


def test_a_truncation_fences_off_older_changes_of_rows_that_were_never_seen(rows: Scenario) -> None:
    rows.deliver(change("truncate", at=5, partition=0))
    assert rows.deliver(change("insert", 1, {"a": 1}, at=4), change("insert", 2, {"a": 2}, at=6)) == [
        Outcome.SUPERSEDED,
        Outcome.APPLIED,
    ]
    assert rows.deliver(change("truncate", at=5, partition=0)) == [Outcome.SUPERSEDED]


def test_a_late_truncation_takes_what_a_newer_row_kept_from_before_it(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1, "photo": "old"}, at=1))
    rows.deliver(change("update", 1, {"a": 3}, at=3, unavailable=["photo"]))
    rows.deliver(change("truncate", at=2, partition=0))
    assert rows.body() == {"a": 3}


def test_a_truncation_of_one_tenant_leaves_another_alone(rows: Scenario) -> None:
    rows.deliver(change("insert", 1, {"a": 1}, at=1))
    rows.deliver(change("truncate", at=5, partition=0, tenant="other"))
    assert rows.body() == {"a": 1}


def test_a_heartbeat_tells_of_the_source_and_changes_no_row(rows: Scenario) -> None:
    assert rows.deliver(change("heartbeat", at=7, partition=0, entity="")) == [Outcome.APPLIED]
    sighting = rows.state.sightings.newest["default", "crm"]
    assert sighting.heartbeat_ms == T0_MS + 7000
    assert not rows.state.rows


def test_a_batch_touches_a_profile_once_at_the_newest_event_time(rows: Scenario) -> None:
    rows.deliver(assigned(ADA, "p1"), assigned("crm/customers/2", "p1"))
    rows.deliver(change("insert", 1, {"a": 1}, at=4), change("insert", 2, {"a": 1}, at=3))
    [message] = finish(rows.state)
    assert (message.topic, message.key, message.timestamp_ms) == (
        topics.TOUCHED,
        key_of("default", "p1"),
        T0_MS + 4000,
    )
    touched = events_pb2.ProfileTouched.FromString(message.value or b"")
    assert (touched.tenant, touched.profile_id) == ("default", "p1")


@pytest.mark.parametrize("body", ["", "[]", "{", "7"])
def test_a_row_that_is_no_json_object_is_refused_before_it_can_poison_its_profile(rows: Scenario, body: str) -> None:
    message = change("insert", 1, {"a": 1}, at=1)
    broken = message._replace(value=(message.value or b"").replace(b'{"a":1}', body.encode().ljust(7)))
    with pytest.raises(InvalidInputError, match=ADA):
        rows.deliver(broken)


def test_what_is_no_change_is_refused(rows: Scenario) -> None:
    record = Record(topics.CHANGES, 0, 0, b"k", b"\xff\xff", "headwater.ingest.v1.Change", "e", 0)
    rows.state.events = events_of([record])
    with pytest.raises(InvalidInputError, match="changes/0/0"):
        decide(rows.state, record)


def test_a_record_that_the_log_has_forgotten_changes_nothing(rows: Scenario) -> None:
    assert rows.deliver(change("insert", 1, {"a": 1}, at=1)._replace(value=None)) == [Outcome.SUPERSEDED]


def test_changes_from_before_an_erasure_do_not_bring_the_record_back(rows: Scenario) -> None:
    rows.state.erased = {KEY: T0_MS + 5000}
    assert rows.deliver(
        change("insert", 1, {"a": 1}, at=5), assigned(ADA, "p1", time_ms=T0_MS + 5000), change("delete", 1, at=9),
        assigned(ADA, "", 2, time_ms=T0_MS + 9000),
    ) == [Outcome.SUPERSEDED] * 4  # fmt: skip
    assert not rows.state.rows


def test_a_person_who_comes_back_after_an_erasure_is_a_new_one(rows: Scenario) -> None:
    rows.state.erased = {KEY: T0_MS + 5000}
    assert rows.deliver(change("insert", 1, {"a": 1}, at=6)) == [Outcome.APPLIED]
    assert rows.body() == {"a": 1}
