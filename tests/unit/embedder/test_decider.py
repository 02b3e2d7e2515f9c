"""What a change leads to: work only when what is embedded changes, and everything else at once."""

from dataclasses import replace

import orjson

from headwater.embedder.v1 import events_pb2 as embedder_pb2
from headwater.ingest.v1 import events_pb2
from services.embedder.decider import Decider
from services.embedder.rows import NOBODY, parse
from services.embedder.state import Document, Erased, Key, WorkingSet
from services.kernel import topics
from services.kernel.jobs import Lane
from services.kernel.log import Record
from services.kernel.processor import Decision, Outcome
from services.kernel.settings import Section
from tests.unit.embedder.examples import HOTELS, T0_MS, document, record, row

DECIDER = Decider({("inventory", "hotels"): parse(Section("hotels", HOTELS))}, "hash/1")
RIVA = {"id": 1, "name": "Riva", "city": "Split", "description": "By the sea.", "price": 90, "rooms": 3}
Changed = events_pb2.DocumentChange | events_pb2.Change
KEY, ROW = Key("default", "docs/a"), Key("default", "inventory/hotels/1")


def apply(*changes: Changed, state: WorkingSet | None = None) -> tuple[WorkingSet, Decision]:
    """Decide on changes in turn; return the state and the last decision."""
    state = state or WorkingSet()
    for offset, change in enumerate(changes):
        decision = DECIDER.decide(state, record(change, offset))
    return state, decision


def indexed(state: WorkingSet, key: Key) -> WorkingSet:
    """The state of the next batch, when the document's job is done."""
    document = state.documents[key]
    done = replace(document, version=document.wanted, waits=False, shown_to=document.access, row_id=7,
                   shown_ms=document.occurred_ms, chunks=1)  # fmt: skip
    return WorkingSet(documents={**state.documents, key: done}, fences=dict(state.fences))


def events(decision: Decision) -> list[embedder_pb2.DocumentIndexed]:
    return [
        embedder_pb2.DocumentIndexed.FromString(m.value or b"") for m in decision.outputs if m.topic == topics.INDEXED
    ]


def test_a_new_document_makes_work_and_a_pending_job() -> None:
    state, decision = apply(document("docs/a", "text", position=1, name="a.txt"))
    assert state.work[KEY].size == 4
    assert state.documents[KEY].waits
    job = embedder_pb2.EmbeddingJob.FromString(decision.outputs[0].value or b"")
    assert (job.state, job.version) == (embedder_pb2.JOB_STATE_PENDING, state.documents[KEY].wanted)


def test_the_same_document_again_is_superseded() -> None:
    state, _ = apply(document("docs/a", "text", position=1))
    state, decision = apply(document("docs/a", "text", position=1), state=indexed(state, KEY))
    assert decision.outcome is Outcome.SUPERSEDED
    assert not state.changed


def test_an_older_position_is_superseded() -> None:
    state, decision = apply(document("docs/a", "new", position=2), document("docs/a", "old", position=1))
    assert decision.outcome is Outcome.SUPERSEDED
    assert state.documents[KEY].position == "docs:00002"


def test_metadata_and_access_are_applied_at_once_with_no_work() -> None:
    state, _ = apply(document("docs/a", "text", position=1))
    change = document("docs/a", "text", position=2, metadata={"team": "x"}, access=["staff"], uri="u")
    state, decision = apply(change, state=indexed(state, KEY))
    stored = state.documents[KEY]
    assert (stored.metadata, stored.shown_to, stored.uri) == ('{"team":"x"}', ("staff",), "u")
    assert not stored.waits
    assert [(e.version, e.embedded) for e in events(decision)] == [(stored.version, 0)]


def test_while_a_new_version_is_waited_for_neither_version_is_shown_to_whom_either_excludes() -> None:
    state, _ = apply(document("docs/a", "secret", position=1, access=["board"]))
    state, _ = apply(document("docs/a", "public now", position=2), state=indexed(state, KEY))
    assert state.documents[KEY].shown_to == ("board",)
    state, _ = apply(document("docs/a", "other", position=3, access=["staff"]), state=state)
    assert state.documents[KEY].shown_to == (NOBODY,)
    assert indexed(state, KEY).documents[KEY].shown_to == ("staff",)


def test_a_return_to_the_indexed_version_drops_the_job() -> None:
    state, _ = apply(document("docs/a", "one", position=1))
    state, _ = apply(document("docs/a", "two", position=2), state=indexed(state, KEY))
    state, decision = apply(document("docs/a", "one", position=3), state=state)
    assert not state.documents[KEY].waits
    assert [m.value for m in decision.outputs if m.topic == topics.JOBS] == [None]


def test_a_deletion_takes_everything_away_and_keeps_older_changes_out() -> None:
    state, _ = apply(document("docs/a", "text", position=1))
    state, decision = apply(document("docs/a", None, position=3), state=indexed(state, KEY))
    assert state.removed == [7]
    assert [e.version for e in events(decision)] == [""]
    _, late = apply(document("docs/a", "late", position=2), state=state)
    assert late.outcome is Outcome.SUPERSEDED
    state, again = apply(document("docs/a", "again", position=4), state=state)
    assert again.outcome is Outcome.APPLIED
    assert KEY in state.work


def test_a_null_record_takes_the_document_away() -> None:
    state, _ = apply(document("docs/a", "text", position=1))
    gone = Record(topics.DOCUMENTS, 0, 9, b"default\x1fdocs/a", None, "", "", 0)
    assert DECIDER.decide(state, gone).outcome is Outcome.APPLIED
    assert not state.documents


def test_a_row_becomes_a_document_by_its_template() -> None:
    state, _ = apply(row(1, RIVA, position=1))
    stored = state.documents[ROW]
    assert stored.name == "Riva"
    assert state.work[ROW].content == b"Riva in Split. By the sea."
    assert orjson.loads(stored.live) == {"price": 90}
    assert orjson.loads(stored.metadata) == {"city": "Split"}


def test_a_live_column_costs_no_work_but_is_told() -> None:
    state, _ = apply(row(1, RIVA, position=1))
    state, decision = apply(row(1, {**RIVA, "price": 75}, position=2), state=indexed(state, ROW))
    assert orjson.loads(state.documents[ROW].live) == {"price": 75}
    assert not state.documents[ROW].waits
    assert len(events(decision)) == 1


def test_a_column_that_no_document_needs_is_neither_work_nor_told() -> None:
    state, _ = apply(row(1, RIVA, position=1))
    state, decision = apply(row(1, {**RIVA, "rooms": 2}, position=2), state=indexed(state, ROW))
    assert not decision.outputs
    assert state.documents[ROW].position == "inv:00002"


def test_rows_of_other_tables_are_passed_without_decoding() -> None:
    other = record(row(1, RIVA))._replace(key=b"default\x1fcrm/people/1", value=b"\xff")
    assert DECIDER.decide(WorkingSet(), other).outcome is Outcome.APPLIED


def test_columns_that_the_source_did_not_send_are_kept() -> None:
    state, _ = apply(row(1, RIVA, position=1))
    change = row(1, {"id": 1, "name": "Riva", "city": "Zadar", "price": 90}, position=2, unavailable=["description"])
    state, _ = apply(change, state=indexed(state, ROW))
    assert state.work[ROW].content == b"Riva in Zadar. By the sea."


def test_a_late_change_fills_in_what_a_newer_one_left_out_and_nothing_else() -> None:
    newer = row(1, {"id": 1, "name": "Riva", "city": "Zadar"}, position=3, unavailable=["description", "price"])
    state, _ = apply(newer, row(1, RIVA, position=1), row(1, {**RIVA, "description": "Newer."}, position=2))
    assert state.work[ROW].content == b"Riva in Zadar. Newer."
    assert state.documents[ROW].position == "inv:00003"
    in_order, _ = apply(row(1, RIVA, position=1), row(1, {**RIVA, "description": "Newer."}, position=2), newer)
    assert state.documents[ROW].row == in_order.documents[ROW].row


def test_a_partial_change_keeps_all_columns_that_it_does_not_name() -> None:
    first, second = row(1, RIVA, position=1), row(1, {"id": 1, "city": "Zadar"}, position=2, partial=True)
    in_order, _ = apply(first, second)
    assert in_order.work[ROW].content == b"Riva in Zadar. By the sea."
    reverse, _ = apply(second, first)
    assert reverse.work[ROW].content == in_order.work[ROW].content
    assert reverse.documents[ROW].row == in_order.documents[ROW].row


def test_a_truncation_takes_all_older_rows_of_its_partition_away() -> None:
    state, _ = apply(row(1, RIVA, position=1), row(1, RIVA, position=5))
    other = replace(state.documents[ROW], key=Key("default", "inventory/hotels/2"), partition=99)
    state.documents[other.key] = other
    partition = state.documents[ROW].partition
    truncation = record(row(0, None, position=6, op="truncate"))._replace(partition=partition)
    assert DECIDER.truncated(truncation) == ("default", "inventory", "hotels")
    DECIDER.decide(state, truncation)
    assert set(state.documents) == {other.key}
    late = record(row(1, RIVA, position=5))
    assert DECIDER.decide(state, late).outcome is Outcome.SUPERSEDED


def test_a_repeated_truncation_does_not_take_newer_rows_away() -> None:
    truncation = record(row(0, None, position=6, op="truncate"))
    state = WorkingSet()
    DECIDER.decide(state, truncation)
    DECIDER.decide(state, record(row(1, RIVA, position=7)))
    assert DECIDER.decide(state, truncation).outcome is Outcome.SUPERSEDED
    assert ROW in state.documents


def test_snapshot_rows_and_backlogs_go_to_the_backfill() -> None:
    assert apply(row(1, RIVA, op="snapshot"))[0].work[ROW].lane is Lane.BACKFILL
    assert apply(row(1, RIVA))[0].work[ROW].lane is Lane.LIVE
    assert apply(row(1, RIVA), state=WorkingSet(lane=Lane.BACKFILL))[0].work[ROW].lane is Lane.BACKFILL


def test_what_was_erased_comes_back_only_by_newer_data() -> None:
    state = WorkingSet(erased={KEY: Erased("docs:00005", T0_MS)})
    assert apply(document("docs/a", "old", position=5), state=state)[1].outcome is Outcome.SUPERSEDED
    assert apply(document("docs/a", "new", position=6), state=state)[1].outcome is Outcome.APPLIED
    state = WorkingSet(erased={KEY: Erased("", T0_MS + 5000)})
    assert apply(document("docs/a", "old", seconds=5), state=state)[1].outcome is Outcome.SUPERSEDED
    assert apply(document("docs/a", "new", seconds=6), state=state)[1].outcome is Outcome.APPLIED


def test_a_document_that_waits_is_not_shown_by_a_change_of_its_metadata() -> None:
    state, _ = apply(document("docs/a", "one", position=1), document("docs/a", "one", position=2, uri="u"))
    stored: Document = state.documents[KEY]
    assert stored.waits
    assert stored.shown_ms == T0_MS + 2000 or not stored.version
    assert state.work[KEY].offset == 1
