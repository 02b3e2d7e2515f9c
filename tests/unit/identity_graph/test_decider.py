"""What changes do to records: fences, first sightings, values that were left out, truncations."""

from typing import Any

import orjson
import pytest

from headwater.ingest.v1 import events_pb2
from services.identity_graph.changes import Delta, Effect, read_change
from services.identity_graph.columns import Extractor
from services.identity_graph.decider import apply
from services.identity_graph.model import Erased, Kinds, birth_id, entries_of
from services.identity_graph.settings import Settings
from services.identity_graph.working_set import Row, WorkingSet
from services.kernel.errors import InvalidInputError
from services.kernel.log import Record
from services.kernel.processor import Outcome

SETTINGS = Settings()
EXTRACTOR = Extractor(SETTINGS)
KEY = "default\x1fcrm/rows/1"
Type = events_pb2.Operation
KIND = events_pb2.Change.DESCRIPTOR.full_name


def state() -> WorkingSet:
    return WorkingSet(Kinds(SETTINGS), 1)


def delta(
    operation: str,
    position: str,
    row: str = "",
    *,
    at: int = 1000,
    offset: int = 0,
    unavailable: tuple[str, ...] = (),
    partial: bool = False,
) -> Delta:
    """A change of crm/rows/1; the row is `column=value,…`."""
    after = {"id": "1", **dict(pair.split("=") for pair in row.split(",") if pair)}
    change = events_pb2.Change(
        source="crm", entity="rows", record="" if operation == "TRUNCATE" else "crm/rows/1", key_json='{"id":1}',
        operation=Type.Value(f"OPERATION_{operation}"), position=position, unavailable=unavailable,
        partial=partial,
        after_json="" if operation in {"DELETE", "TRUNCATE"} else orjson.dumps(after).decode(),
    )  # fmt: skip
    return read_change(Record("changes", 0, offset, b"", change.SerializeToString(), KIND, "", at), EXTRACTOR)


def held(working: WorkingSet) -> list[str] | None:
    row = working.rows[KEY]
    return None if row.text is None else [f"{kind}:{value}" for _, kind, value in entries_of(row.text)]


def run(*deltas: Delta) -> tuple[WorkingSet, list[Outcome]]:
    working = state()
    return working, [apply(working, one).outcome for one in deltas]


def test_the_newest_position_stands_whatever_comes_when() -> None:
    working, outcomes = run(
        delta("UPDATE", "pg:2", "email=b@x.io"), delta("INSERT", "pg:1", "email=a@x.io"),
        delta("UPDATE", "pg:2", "email=b@x.io"),
    )  # fmt: skip
    assert held(working) == ["email:b@x.io"]
    assert outcomes == [Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.SUPERSEDED]


def test_without_comparable_positions_the_order_of_arrival_decides_and_the_fence_stays() -> None:
    working, _ = run(delta("INSERT", "pg:5", "email=a@x.io"), delta("UPDATE", "", "email=b@x.io"))
    assert held(working) == ["email:b@x.io"]
    assert working.rows[KEY].position == "pg:5"


def test_the_earliest_sighting_counts_even_of_a_change_that_is_stale() -> None:
    working, _ = run(delta("UPDATE", "pg:2", "email=a@x.io", at=9000), delta("INSERT", "pg:1", "email=a@x.io", at=3000))
    assert working.rows[KEY].first_seen == 3000


def test_a_delete_of_a_record_that_was_never_seen_fences_what_comes_late() -> None:
    working, outcomes = run(delta("DELETE", "pg:2"), delta("INSERT", "pg:1", "email=a@x.io"))
    assert held(working) is None
    assert outcomes == [Outcome.APPLIED, Outcome.SUPERSEDED]


def test_a_row_that_is_no_persons_any_more_is_out() -> None:
    working, _ = run(delta("INSERT", "pg:1", "email=a@x.io"), delta("UPDATE", "pg:2", "price=3"))
    assert held(working) is None


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_values_that_were_left_out_are_kept_and_come_in_late(order: tuple[int, ...]) -> None:
    changes = [
        delta("INSERT", "pg:1", "email=a@x.io,phone=4155550101"),
        delta("UPDATE", "pg:2", "email=b@x.io", unavailable=("phone",)),
        delta("UPDATE", "pg:3", "name=Ada", unavailable=("email", "phone")),
    ]
    working, _ = run(*(changes[i] for i in order))
    assert held(working) == ["email:b@x.io", "name:ada", "phone:+14155550101"]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_a_row_told_in_parts_comes_together_in_any_order(order: tuple[int, ...]) -> None:
    changes = [
        delta("INSERT", "pg:1", "email=a@x.io,phone=4155550101,name=Ada"),
        delta("UPDATE", "pg:2", "email=b@x.io", partial=True),
        delta("UPDATE", "pg:3", "name=Bob", partial=True),
    ]
    working, _ = run(*(changes[i] for i in order))
    assert held(working) == ["email:b@x.io", "name:bob", "phone:+14155550101"]


def test_parts_that_make_no_person_wait_for_those_that_do() -> None:
    working, _ = run(delta("UPDATE", "pg:2", "name=Ada", partial=True))
    assert held(working) is None
    apply(working, delta("UPDATE", "pg:3", "email=a@x.io", partial=True))
    assert held(working) == ["email:a@x.io", "name:ada"]


def test_what_was_there_before_a_delete_does_not_come_back_with_a_value_that_was_left_out() -> None:
    changes = [
        delta("INSERT", "pg:1", "email=old@x.io"), delta("DELETE", "pg:2"), delta("INSERT", "pg:3", "email=new@x.io"),
        delta("UPDATE", "pg:4", "name=Ada", unavailable=("email",)),
    ]  # fmt: skip
    for order in ((0, 1, 3, 2), (3, 0, 1, 2), (3, 2, 1, 0)):
        working, _ = run(*(changes[i] for i in order))
        assert held(working) == ["email:new@x.io", "name:ada"], order


def test_a_truncation_takes_what_is_older_and_fences_what_comes_late() -> None:
    working, outcomes = run(
        delta("INSERT", "pg:1", "email=a@x.io"), delta("TRUNCATE", "pg:5"), delta("UPDATE", "pg:3", "email=b@x.io"),
        delta("TRUNCATE", "pg:4"),
    )  # fmt: skip
    assert held(working) is None
    assert outcomes == [Outcome.APPLIED, Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.SUPERSEDED]
    apply(working, delta("INSERT", "pg:6", "email=c@x.io"))
    apply(working, delta("TRUNCATE", "pg:5"))
    assert held(working) == ["email:c@x.io"]


def test_after_an_erasure_only_new_data_counts() -> None:
    working = state()
    working.erased = {birth_id(KEY): Erased(offset=10, position="pg:4")}
    assert apply(working, delta("INSERT", "pg:9", "email=a@x.io", offset=9)).outcome is Outcome.SUPERSEDED
    assert apply(working, delta("INSERT", "pg:4", "email=a@x.io", offset=12)).outcome is Outcome.SUPERSEDED
    assert KEY not in working.rows
    assert apply(working, delta("INSERT", "pg:5", "email=a@x.io", offset=13)).outcome is Outcome.APPLIED


def test_a_change_that_changes_nothing_moves_nothing() -> None:
    working, _ = run(delta("INSERT", "pg:1", "email=a@x.io,price=1"))
    row = working.rows[KEY]
    stored = Row(KEY, None, 0, 0, "pg:1", 1000, row.text)
    working.rows[KEY] = stored
    apply(working, delta("UPDATE", "pg:2", "email=A@X.io,price=2"))
    assert stored.text == row.text
    assert stored.position == "pg:2"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"operation": Type.OPERATION_INSERT, "entity": "rows"}, "names no record"),
        ({"operation": Type.OPERATION_INSERT, "entity": "rows", "record": "crm/rows/1"}, "has no row"),
        (
            {"operation": Type.OPERATION_INSERT, "record": "r", "entity": "rows", "after_json": "[1]"},
            "not a JSON object",
        ),
        ({"operation": 99, "entity": "rows"}, "unknown operation 99"),
        ({}, "unknown operation 0"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    value = events_pb2.Change(source="crm", **fields).SerializeToString()
    with pytest.raises(InvalidInputError, match=words):
        read_change(Record("changes", 0, 0, b"", value, KIND, "", 0), EXTRACTOR)


def test_what_is_not_about_records_does_nothing_here() -> None:
    heartbeat = events_pb2.Change(source="crm", operation=Type.OPERATION_HEARTBEAT).SerializeToString()
    effects = [
        read_change(Record("changes", 0, 0, b"", value, kind, "", 5), EXTRACTOR).effect
        for value, kind in ((heartbeat, KIND), (None, KIND), (b"?", "headwater.future.v1.Thing"))
    ]
    assert effects == [Effect.HEARTBEAT, Effect.NONE, Effect.NONE]


def test_a_partial_change_keeps_the_identifiers_of_columns_that_it_does_not_name() -> None:
    first, second = delta("INSERT", "pg:1", "email=a@x.io,phone=+14155550101"), delta("UPDATE", "pg:2", "email=b@x.io",
                                                                                     partial=True)  # fmt: skip
    for order in ((first, second), (second, first)):
        working, _ = run(*order)
        assert held(working) == ["email:b@x.io", "phone:+14155550101"]
        apply(working, delta("UPDATE", "pg:3", "tier=gold", partial=True))
        assert held(working) == ["email:b@x.io", "phone:+14155550101"]


def test_a_partial_change_that_names_no_person_makes_none() -> None:
    working, _ = run(delta("UPDATE", "pg:2", "tier=gold", partial=True))
    assert held(working) is None
    apply(working, delta("INSERT", "pg:1", "email=a@x.io"))
    assert held(working) == ["email:a@x.io"]
