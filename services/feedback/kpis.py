"""What is measured of an answer, and the KPIs that are made of it: definitions as data, and pure functions.

Every measure is an integer (a value times its unit), so that sums are exact and an observation can be taken out of a
window again. An observation belongs to the time of the *question*, whenever its rating comes: a KPI of a window tells
of the answers that were given in it. A conversation that is rated as a whole counts at the time of that rating.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from services.feedback.answers import RATING_UNIT, Answer, Classified, Rating, Turn
from services.kernel.aggregates import Summary
from services.kernel.log import DEFAULT_TENANT, SEPARATOR
from services.kernel.window_table import Change, Entry

MEASURES: Mapping[str, int] = {
    "answered": 1,  # 1 when there was an answer, else 0
    "latency_ms": 1_000,  # where it is known, which it is not of 0
    "cost": 1_000_000_000,
    "verified": 1,  # of an answer whose context is known: 1 when one of its citations was found in the cited document
    "rating": 1_000_000,  # 0 (down, or 1 of 5) to 1 (up, or 5 of 5)
    "sentiment": 1_000_000,  # -1 to 1
    "dissatisfied": 1,  # of a rated or classified answer: 1 when people are dissatisfied, else 0
}
DIMENSIONS: Mapping[str, str] = {"model": "model", "conversation": "conversation_id"}  # dimension -> Turn's attribute
DISSATISFIED_MAX = RATING_UNIT // 4  # a mean rating of down, or 2 of 5, or worse
VALUE_MAX = 1e9  # a latency or cost beyond it (or below 0, or no number) is a fault of the writer: it is not counted


class Kpi(NamedTuple):
    """A KPI: a statistic of a measure. Statistics are mean, sum, count, min, max, and p50, p95 and so on."""

    name: str
    measure: str
    statistic: str


KPIS: tuple[Kpi, ...] = (
    Kpi("satisfaction", "rating", "mean"),
    Kpi("rating_count", "rating", "count"),
    Kpi("answer_rate", "answered", "mean"),
    Kpi("latency_ms_p50", "latency_ms", "p50"),
    Kpi("latency_ms_p95", "latency_ms", "p95"),
    Kpi("cost", "cost", "sum"),
    Kpi("retrieval_quality", "verified", "mean"),
    Kpi("sentiment", "sentiment", "mean"),
    Kpi("dissatisfaction", "dissatisfied", "mean"),
)
_PER_MILLE = {"min": 0, "max": 1000}


class Computed(NamedTuple):
    """The value of a KPI in a window, and of how many observations; no value when there are none."""

    kpi: str
    value: float | None
    size: int


@functools.cache
def per_mille(statistic: str) -> int | None:
    """The percentile that a statistic is (p95 is 950); None when it is none.

    Raises:
        ValueError: there is no such statistic.
    """
    if statistic in ("mean", "sum", "count"):
        return None
    if statistic in _PER_MILLE:
        return _PER_MILLE[statistic]
    digits = statistic.removeprefix("p")
    if statistic != digits and digits.isascii() and digits.isdigit() and 0 < int(digits) < 100:
        return int(digits) * 10
    raise ValueError(f"{statistic!r} is no statistic: there are mean, sum, count, min, max, and p1 to p99")


def measures_with_spread(kpis: Sequence[Kpi]) -> frozenset[str]:
    """The measures whose windows must keep the spread of values."""
    return frozenset(kpi.measure for kpi in kpis if per_mille(kpi.statistic) is not None)


def compute(kpi: Kpi, summary: Summary | None) -> Computed:
    """Return a KPI's value of what a window holds of its measure."""
    if summary is None or summary.size == 0:
        return Computed(kpi.name, None, 0)
    unit, rank = MEASURES[kpi.measure], per_mille(kpi.statistic)
    if rank is not None:
        found = summary.percentile(rank)
        value = None if found is None else found / unit
    elif kpi.statistic == "mean":
        value = summary.total / (summary.size * unit)
    else:
        value = summary.total / unit if kpi.statistic == "sum" else float(summary.size)
    return Computed(kpi.name, value, summary.size)


def corrected(kpis: Sequence[Kpi], change: Change) -> Iterator[Computed]:
    """The KPIs of a window that differ from what was told before."""
    for kpi in kpis:
        if kpi.measure in change.before:
            computed = compute(kpi, change.cell.measures.get(kpi.measure))
            before = change.before[kpi.measure]
            if before is None or computed.size != before.size or computed != compute(kpi, before):
                yield computed


def group_of(tenant: str, dimensions: Mapping[str, str]) -> str:
    """The group of a tenant's observations with these dimensions."""
    return (tenant or DEFAULT_TENANT) + SEPARATOR + orjson.dumps(dimensions, option=orjson.OPT_SORT_KEYS).decode()


def parts_of(group: str) -> tuple[str, dict[str, str]]:
    """The tenant and the dimensions of a group."""
    tenant, _, dimensions = group.partition(SEPARATOR)
    return tenant, orjson.loads(dimensions)


def observation_of(tenant: str, answer: Answer, dimensions: Sequence[Sequence[str]]) -> tuple[Entry, ...]:
    """What counts of an answer: nothing while its turn has not come, or when that was too late.

    Args:
        tenant: whose it is.
        answer: all that is known of it.
        dimensions: the sets of dimensions that KPIs are kept by.
    """
    if answer.turn is not None:
        if answer.turn.too_late:
            return ()
        groups = tuple(
            group_of(tenant, {name: getattr(answer.turn, DIMENSIONS[name]) for name in names}) for names in dimensions
        )
        values = [*_turn_values(answer.turn), *_ratings(answer.ratings.values()), *_tone(answer.classified)]
        dissatisfied = _dissatisfied(answer.ratings.values(), answer.classified)
        return (Entry(answer.turn.asked_ms, groups, (*values, *dissatisfied)),)
    if not answer.is_conversation:
        return ()
    return tuple(_of_conversation(tenant, answer, dimensions))


def _of_conversation(tenant: str, answer: Answer, dimensions: Sequence[Sequence[str]]) -> Iterator[Entry]:
    groups = (group_of(tenant, {}),) if () in map(tuple, dimensions) else ()
    newest = max(answer.ratings.values(), key=lambda rating: (rating.rated_ms, rating.digest), default=None)
    for _, rating in sorted(answer.ratings.items()):
        classified = answer.classified if rating is newest else None  # a conversation has one
        values = (*_ratings([rating]), *_tone(classified), *_dissatisfied([rating], classified))
        if groups and values:
            yield Entry(rating.rated_ms, groups, values)


def _turn_values(turn: Turn) -> Iterator[tuple[str, int]]:
    yield "answered", int(turn.answered)
    if math.isfinite(turn.latency_ms) and 0 < turn.latency_ms <= VALUE_MAX:
        yield "latency_ms", round(turn.latency_ms * MEASURES["latency_ms"])
    if math.isfinite(turn.cost) and 0 <= turn.cost <= VALUE_MAX:
        yield "cost", round(turn.cost * MEASURES["cost"])
    if turn.answered and turn.verified is not None:
        yield "verified", int(turn.verified)


def _ratings(ratings: Iterable[Rating]) -> Iterator[tuple[str, int]]:
    """The ratings' values, in an order of their own."""
    return (("rating", value) for value in sorted(r.value for r in ratings if r.value is not None))


def _tone(classified: Classified | None) -> Iterator[tuple[str, int]]:
    if classified is not None:
        yield "sentiment", round(max(-1.0, min(1.0, classified.score)) * MEASURES["sentiment"])


def _dissatisfied(ratings: Iterable[Rating], classified: Classified | None) -> Iterator[tuple[str, int]]:
    """What people say goes before what is read between the lines."""
    values = [rating.value for rating in ratings if rating.value is not None]
    if values:
        yield "dissatisfied", int(sum(values) <= DISSATISFIED_MAX * len(values))
    elif classified is not None:
        yield "dissatisfied", int(classified.category == "dissatisfied")


def entries_state(entries: Sequence[Entry]) -> bytes:
    """An observation as JSON."""
    return orjson.dumps([[entry.time_ms, entry.groups, entry.values] for entry in entries])


def entries_restored(state: bytes) -> tuple[Entry, ...]:
    """The observation that was written as JSON."""
    rows: list[Any] = orjson.loads(state)
    return tuple(Entry(time, tuple(groups), tuple(map(tuple, values))) for time, groups, values in rows)
