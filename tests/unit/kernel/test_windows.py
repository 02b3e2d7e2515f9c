"""Windows: assignment, watermarks, mergeable aggregates, corrections and retraction."""

import itertools
import random
from statistics import fmean

import orjson
import pytest
from hypothesis import given, strategies as st

from services.kernel.aggregates import Aggregate, Summary, rounded
from services.kernel.window_table import CellKey, Entry, WindowTable
from services.kernel.windows import EventTime, Hopping, Session, Window, parse, tumbling

MINUTE = 60_000
times = st.integers(-10_000_000, 10_000_000)
values = st.integers(-(10**9), 10**9)
entries = st.builds(
    Entry,
    st.integers(0, 1_000_000),
    st.sampled_from([("all",), ("all", "m1"), ("all", "m2")]),
    st.lists(st.tuples(st.sampled_from(["latency", "rating"]), st.integers(0, 5000)), max_size=3).map(tuple),
)
SPECS = (tumbling(MINUTE), Hopping(5 * MINUTE, MINUTE), Session(30_000))


def table_of(observations: dict[str, list[Entry]]) -> dict[CellKey, object]:
    table = WindowTable(SPECS, {"latency"})
    for name, observation in observations.items():
        table.put(name, observation)
    table.settle()
    return content(table)


def content(table: WindowTable) -> dict[CellKey, object]:
    return {key: state for key, cell in table.cells.items() if (state := cell.state())}


def brute_force(observations: dict[str, list[Entry]]) -> dict[CellKey, object]:
    """The fixed windows counted the plain way, for comparison."""
    cells: dict[CellKey, dict[str, Aggregate]] = {}
    for entry in (entry for observation in observations.values() for entry in observation):
        for size, hop in ((MINUTE, MINUTE), (5 * MINUTE, MINUTE)):
            for start in range(-5 * MINUTE, 1_100_000, hop):
                if start <= entry.time_ms < start + size:
                    for group in entry.groups:
                        cell = cells.setdefault(CellKey(Hopping(size, hop).name, group, start, start + size), {})
                        for measure, value in entry.values:
                            spread: dict[int, int] | None = {} if measure == "latency" else None
                            cell.setdefault(measure, Aggregate(spread=spread)).add(value)
    return {
        key: {name: list(cell[name].summary().plain()) for name in sorted(cell)} for key, cell in cells.items() if cell
    }


@given(times, st.integers(1, 50), st.integers(1, 20))
def test_a_moment_is_in_exactly_the_hopping_windows_that_contain_it(time: int, hop: int, ratio: int) -> None:
    windows = Hopping(hop * ratio, hop).windows(time)
    assert len(set(windows)) == ratio
    assert all(w.start_ms <= time < w.end_ms and w.start_ms % hop == 0 for w in windows)


@given(times, st.integers(1, 10_000))
def test_a_moment_is_in_one_tumbling_window(time: int, size: int) -> None:
    (window,) = tumbling(size).windows(time)
    assert window.start_ms <= time < window.end_ms


@given(st.lists(st.integers(0, 2000), max_size=30), st.integers(1, 200))
def test_sessions_are_separated_by_gaps_and_hold_every_moment(moments: list[int], gap: int) -> None:
    sessions = list(Session(gap).windows(moments))
    assert all(sum(s.start_ms <= m < s.end_ms for s in sessions) == 1 for m in moments)
    assert all(a.end_ms <= b.start_ms for a, b in itertools.pairwise(sessions))


def test_a_session_ends_a_gap_after_its_last_member() -> None:
    assert list(Session(10).windows([5, 0, 14, 25])) == [Window(0, 24), Window(25, 35)]


@pytest.mark.parametrize("text", ["60s", "3600s", "300s/60s", "session 1800s"])
def test_windows_are_written_as_they_are_read(text: str) -> None:
    assert parse(text).name == text


@pytest.mark.parametrize(
    "text", ["", "60", "0s", "s", "-1s", "1.5s", "300s/70s", "300s/0s", "session", "session x", "²s"]
)
def test_refuses_what_is_no_window(text: str) -> None:
    if text == "60":
        assert parse(text) == tumbling(MINUTE)
        return
    with pytest.raises(ValueError, match="window"):
        parse(text)


def test_the_watermark_is_the_slowest_partition_that_is_not_idle() -> None:
    event_time = EventTime(out_of_order_ms=10, idle_after_ms=100)
    assert event_time.watermark({}) is None
    assert event_time.watermark({0: 500, 1: 450}) == 440
    assert event_time.watermark({0: 500, 1: 450, 2: 399}) == 440
    assert event_time.watermark({0: 500, 1: 450, 2: 400}) == 390


def test_too_late_is_what_is_behind_its_own_partition_by_more_than_is_allowed() -> None:
    event_time = EventTime(out_of_order_ms=10, allowed_lateness_ms=100)
    assert not event_time.is_too_late(0, None)
    assert not event_time.is_too_late(390, 500)
    assert event_time.is_too_late(389, 500)
    assert not EventTime(allowed_lateness_ms=None).is_too_late(0, 10**15)


def aggregate_of(sample: list[int], *, keeps_spread: bool = True) -> Aggregate:
    aggregate = Aggregate(spread={} if keeps_spread else None)
    for value in sample:
        aggregate.add(value)
    return aggregate


@given(st.lists(values, max_size=40), st.lists(values, max_size=40))
def test_taking_out_what_was_added_leaves_no_trace(kept: list[int], removed: list[int]) -> None:
    changed = aggregate_of(kept + removed)
    for value in removed:
        changed.add(value, -1)
    assert changed == aggregate_of(kept)
    assert changed.summary() == aggregate_of(kept).summary()


@given(st.lists(values, max_size=40), st.lists(values, max_size=40))
def test_merging_equals_adding_all(left: list[int], right: list[int]) -> None:
    one = aggregate_of(left)
    one.merge(aggregate_of(right).summary())
    assert one == aggregate_of(left + right)


@given(st.lists(values, min_size=1, max_size=60), st.integers(0, 1000))
def test_a_percentile_is_the_nearest_rank_of_the_rounded_values(sample: list[int], per_mille: int) -> None:
    summary = aggregate_of(sample).summary()
    rank = max(1, -(-len(sample) * per_mille // 1000))
    exact = sorted(sample)[rank - 1]
    assert summary.percentile(per_mille) == rounded(exact)
    assert abs(rounded(exact) - exact) <= abs(exact) * 0.005
    assert summary.mean == pytest.approx(fmean(sample))


def test_an_empty_summary_has_no_mean_and_no_percentile() -> None:
    assert Summary().mean is None
    assert Summary().percentile(500) is None


def test_refuses_percentiles_of_a_summary_without_values() -> None:
    with pytest.raises(ValueError, match="keeps its values"):
        Summary(1, 5).percentile(500)


def test_refuses_to_take_out_what_is_not_in() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        Aggregate().add(1, -1)


@given(st.lists(values, max_size=20), st.booleans())
def test_a_summary_survives_json_and_can_be_gone_on_from(sample: list[int], keeps_spread: bool) -> None:
    aggregate = aggregate_of(sample, keeps_spread=keeps_spread)
    summary = Summary(*orjson.loads(orjson.dumps(list(aggregate.summary().plain()))))
    assert summary == aggregate.summary()
    assert Aggregate.of(summary, with_spread=keeps_spread) == aggregate


histories = st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(entries, max_size=2)), max_size=25)


@given(histories)
def test_the_table_depends_on_the_last_version_of_each_observation(
    history: list[tuple[str, list[Entry]]],
) -> None:
    table = WindowTable(SPECS, {"latency"})
    for name, observation in history:
        table.put(name, observation)
    table.settle()
    final = dict(history)
    assert content(table) == table_of(final)
    assert {k: v for k, v in content(table).items() if not k.spec.startswith("session")} == brute_force(final)


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.lists(entries, max_size=2)), st.randoms())
def test_any_order_of_arrival_gives_the_same_table(observations: dict[str, list[Entry]], chance: random.Random) -> None:
    names = list(observations)
    chance.shuffle(names)
    assert table_of({name: observations[name] for name in names}) == table_of(observations)


@given(histories, st.integers(1, 7))
def test_the_table_does_not_depend_on_the_size_of_batches(history: list[tuple[str, list[Entry]]], size: int) -> None:
    table = WindowTable(SPECS, {"latency"})
    for begin in range(0, len(history), size):
        for name, observation in history[begin : begin + size]:
            table.put(name, observation)
        table.settle()
    assert content(table) == table_of(dict(history))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 500_000)), max_size=60), st.integers(0, 100_000))
def test_every_observation_is_in_a_window_or_counted_as_too_late(arrivals: list[tuple[int, int]], allowed: int) -> None:
    event_time = EventTime(out_of_order_ms=5_000, allowed_lateness_ms=allowed)
    table, too_late = WindowTable([tumbling(MINUTE)]), 0
    newest: dict[int, int] = {}
    for index, (partition, time) in enumerate(arrivals):
        if event_time.is_too_late(time, newest.get(partition)):
            too_late += 1
        else:
            table.put(str(index), [Entry(time, ("all",), (("seen", 1),))])
        newest[partition] = max(time, newest.get(partition, time))
    table.settle()
    assert sum(cell.measures["seen"].size for cell in table.cells.values()) + too_late == len(arrivals)


def test_a_late_observation_corrects_a_window_that_was_handed_out() -> None:
    table = WindowTable([tumbling(MINUTE)])
    table.put("a", [Entry(1_000, ("all",), (("seen", 1),))])
    (first,) = table.settle()
    assert first.cell.revision == 1
    table.put("b", [Entry(2_000, ("all",), (("seen", 1),))])
    (second,) = table.settle()
    assert (second.cell.revision, second.before) == (2, {"seen": Summary(1, 1)})
    assert second.cell.measures == {"seen": Summary(2, 2)}
    assert second.key == first.key


def test_what_changes_and_changes_back_is_no_correction() -> None:
    table = WindowTable([tumbling(MINUTE), Session(1_000)])
    table.put("a", [Entry(1_000, ("all",), (("seen", 1),))])
    table.settle()
    table.put("a", [])
    table.put("a", [Entry(1_000, ("all",), (("seen", 1),))])
    assert table.settle() == []
    assert not table.put("a", [Entry(1_000, ("all",), (("seen", 1),))])


def test_sessions_merge_and_come_apart_with_their_members() -> None:
    table = WindowTable([Session(10_000)])
    for name, time in (("a", 0), ("c", 16_000)):
        table.put(name, [Entry(time, ("all",), (("seen", 1),))])
    table.settle()
    apart = content(table)
    table.put("b", [Entry(8_000, ("all",), (("seen", 1),))])
    changes = table.settle()
    assert content(table) == {CellKey("session 10s", "all", 0, 26_000): {"seen": [3, 3]}}
    assert len(changes) == 3  # the two that are no more, and the one that is
    table.put("b", [])
    table.settle()
    assert content(table) == apart
