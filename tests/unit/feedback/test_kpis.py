"""What counts of an answer, and the KPIs that are made of it."""

import math

import pytest

from services.feedback.answers import Answer, Classified, Rating, Turn
from services.feedback.kpis import (
    KPIS,
    MEASURES,
    Computed,
    Kpi,
    compute,
    corrected,
    entries_restored,
    entries_state,
    measures_with_spread,
    observation_of,
    per_mille,
)
from services.kernel.window_table import WindowTable
from services.kernel.windows import tumbling

TURN = Turn("c1", "p1", "", 61_000, "d", False, "m1", True, True, 250.0, 0.002)
UP, DOWN = Rating(70_000, "x", 1_000_000, False), Rating(71_000, "y", 0, True)


def kpis_of(*answers: Answer) -> dict[str, Computed]:
    table = WindowTable([tumbling(60_000)], measures_with_spread(KPIS))
    for index, answer in enumerate(answers):
        table.put(str(index), observation_of("t", answer, [()]))
    return {computed.kpi: computed for change in table.settle() for computed in corrected(KPIS, change)}


def test_an_answer_counts_at_the_time_of_its_question() -> None:
    (entry,) = observation_of("t", Answer(turn=TURN, ratings={"": UP}), [(), ("model",)])
    assert entry.time_ms == 61_000
    assert entry.groups == ("t\x1f{}", 't\x1f{"model":"m1"}')
    assert dict(entry.values)["rating"] == 1_000_000


def test_a_rating_without_its_answer_waits() -> None:
    assert observation_of("t", Answer(ratings={"": UP}), [()]) == ()


def test_a_turn_that_came_too_late_is_not_counted() -> None:
    assert observation_of("t", Answer(turn=TURN._replace(too_late=True)), [()]) == ()


def test_every_rater_counts_once() -> None:
    kpis = kpis_of(Answer(turn=TURN, ratings={"ada": UP, "bob": DOWN}))
    assert kpis["satisfaction"] == Computed("satisfaction", 0.5, 2)
    assert kpis["rating_count"].value == 2


def test_the_built_in_kpis_of_some_answers() -> None:
    unanswered = TURN._replace(answered=False, verified=False, latency_ms=750.0, cost=0.0)
    kpis = kpis_of(
        Answer(turn=TURN, ratings={"": UP}, classified=Classified(1, 0, 0, "", 0.5, "satisfied")),
        Answer(turn=unanswered, classified=Classified(1, 0, 0, "", -0.1, "dissatisfied")),
    )
    values = {name: computed.value for name, computed in kpis.items()}
    assert values == {
        "satisfaction": 1.0, "rating_count": 1.0, "answer_rate": 0.5, "latency_ms_p50": 250.0, "latency_ms_p95": 750.0,
        "cost": 0.002, "retrieval_quality": 1.0, "sentiment": 0.2, "dissatisfaction": 0.5,
    }  # fmt: skip
    assert kpis["retrieval_quality"].size == 1  # what was not answered says nothing of retrieval


def test_what_people_say_goes_before_what_is_read_between_the_lines() -> None:
    said = Answer(turn=TURN, ratings={"": UP}, classified=Classified(1, 0, 0, "", -0.9, "dissatisfied"))
    assert kpis_of(said)["dissatisfaction"].value == 0.0


def test_what_is_not_known_is_not_counted() -> None:
    strange = TURN._replace(latency_ms=math.nan, cost=math.inf, verified=None)
    kpis = kpis_of(Answer(turn=strange))
    assert set(kpis) == {"answer_rate"}
    assert "latency_ms_p50" not in kpis_of(Answer(turn=TURN._replace(latency_ms=0.0)))


def test_a_conversation_counts_at_the_time_of_each_of_its_ratings() -> None:
    conversation = Answer(is_conversation=True, ratings={"": UP, "bob": DOWN})
    entries = observation_of("t", conversation, [(), ("model",)])
    assert [(entry.time_ms, entry.groups) for entry in entries] == [(70_000, ("t\x1f{}",)), (71_000, ("t\x1f{}",))]
    assert observation_of("t", conversation, [("model",)]) == ()


def test_an_observation_survives_json() -> None:
    observation = observation_of("t", Answer(turn=TURN, ratings={"": UP}), [(), ("model",)])
    assert entries_restored(entries_state(observation)) == observation


@pytest.mark.parametrize(
    ("statistic", "expected"), [("mean", None), ("min", 0), ("max", 1000), ("p50", 500), ("p99", 990)]
)
def test_statistics_are_named(statistic: str, expected: int | None) -> None:
    assert per_mille(statistic) == expected


@pytest.mark.parametrize("statistic", ["median", "p0", "p100", "p", "p5.5", "50", ""])
def test_refuses_what_is_no_statistic(statistic: str) -> None:
    with pytest.raises(ValueError, match="statistic"):
        per_mille(statistic)


def test_every_kpi_is_of_a_known_measure() -> None:
    assert {kpi.measure for kpi in KPIS} <= set(MEASURES)
    assert compute(Kpi("x", "cost", "sum"), None) == Computed("x", None, 0)
