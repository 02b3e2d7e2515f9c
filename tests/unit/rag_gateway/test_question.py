"""What a question asks for."""

import pytest

from services.rag_gateway.fields import Kind
from services.rag_gateway.question import analyse, kin, leans_on, related, standalone
from services.rag_gateway.ranges import Range, counted, ranges
from services.rag_gateway.words import term_of


@pytest.mark.parametrize(
    ("question", "wants"),
    [
        ("How much is a room?", Kind.MONEY),
        ("What does it cost?", Kind.MONEY),
        ("How many seats are left?", Kind.NUMBER),
        ("When do I check in?", Kind.TIME),
        ("How long is a voucher valid?", Kind.TIME),
        ("Where am I staying?", Kind.PLACE),
        ("Is breakfast included?", Kind.OTHER),
    ],
)
def test_the_kind_of_value_that_is_wanted(question: str, wants: Kind) -> None:
    assert analyse(question).wants is wants


@pytest.mark.parametrize("question", ["What is my tier?", "When do I check in?", "show my bookings", "I'm lost"])
def test_questions_about_the_askers_own_data(question: str) -> None:
    assert analyse(question).own


@pytest.mark.parametrize("question", ["What does the hotel cost?", "When does the gate close?", "Mystery tours?"])
def test_questions_about_no_one_in_particular(question: str) -> None:
    assert not analyse(question).own


def test_codes_and_names_are_told_apart_from_words() -> None:
    asked = analyse("What does MT101 to Lisbon cost at 06:40?")
    assert asked.codes == {"mt101"}
    assert asked.names == {term_of("Lisbon")} | {"mt101"}


@pytest.mark.parametrize(
    ("question", "extreme"),
    [("the cheapest hotel", -1), ("my next trip", -1), ("the latest flight", 1), ("a hotel", 0)],
)
def test_superlatives(question: str, extreme: int) -> None:
    assert analyse(question).extreme == extreme


@pytest.mark.parametrize("question", ["And for flights?", "What about flights?", "What does it cost?", "Flights?"])
def test_a_question_that_leans_on_the_one_before_is_looked_up_with_its_words(question: str) -> None:
    earlier = "Until when can hotels be cancelled?"
    assert leans_on(question, earlier) == earlier
    assert earlier in standalone(question, earlier)


@pytest.mark.parametrize(
    "question",
    [
        "When do I check in?",
        "How many seats are left on MT103, and what does it cost?",
        "Do Irish citizens need a visa?",
    ],
)
def test_a_question_that_stands_alone_is_looked_up_as_it_is(question: str) -> None:
    assert standalone(question, "Until when can hotels be cancelled?") == question


def test_words_of_the_question_before_count_half() -> None:
    asked = analyse("And for flights?", "Is my hotel refunded?")
    assert asked.weights == {"flight": 1.0, "hotel": 0.5, "refund": 0.5}
    assert asked.own


def test_kin_words_may_stand_for_one_another() -> None:
    assert related(term_of("fare"), "price")
    assert term_of("reservation") in kin(term_of("bookings"))
    assert not related(term_of("fare"), "hotel")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("7 to 13 days", Range(7, 13, "day")),
        ("**30 days or more**", Range(30, float("inf"), "day")),
        ("three hours or more", Range(3, float("inf"), "hour")),
        ("up to 1,500 km", Range(0, 1500, "km")),
        ("at least 48 hours", Range(48, float("inf"), "hour")),
    ],
)
def test_ranges_in_words(words: str, found: Range) -> None:
    assert ranges(words) == (found,)


def test_a_number_is_in_a_range_of_the_same_unit_only() -> None:
    ((number, unit),) = counted("cancelled 10 days before")
    assert ranges("7 to 13 days")[0].holds(number, unit)
    assert not ranges("14 to 29 days")[0].holds(number, unit)
    assert not ranges("within 24 hours")[0].holds(number, unit)
    assert not ranges("less than 10 days")[0].holds(number, unit)
