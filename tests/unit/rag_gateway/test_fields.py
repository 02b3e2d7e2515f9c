"""Rows as lines for people."""

import pytest

from services.rag_gateway.fields import Field, Kind, decoded, displayed, fields_of, month_of, readable, singular

ROW = {
    "id": "MB-1",
    "check_in": "2027-03-12Z",
    "departs": "2027-03-12T06:40:00.000000Z",
    "price": "384.00",
    "currency": "EUR",
    "nights": 3.0,
    "city": "Lisbon",
    "note": None,
    "vip": True,
    "amenities": ["lift", "bar"],
    "preferences": '{"seat": "window", "meal": {"diet": "vegan"}}',
}


def by_name() -> dict[str, Field]:
    return {field.name: field for field in fields_of(ROW)}


def test_values_are_shown_as_people_read_them_and_empty_ones_are_not() -> None:
    shown = {name: field.shown for name, field in by_name().items()}
    assert shown == {
        "id": "MB-1", "check in": "2027-03-12Z", "departs": "2027-03-12T06:40:00.000000Z", "price": "384.00",
        "currency": "EUR", "nights": "3", "city": "Lisbon", "vip": "yes", "amenities": "lift, bar",
        "preferences seat": "window", "preferences meal diet": "vegan",
    }  # fmt: skip


def test_a_value_is_known_by_its_form_and_its_columns_name() -> None:
    kinds = {name: field.kind for name, field in by_name().items()}
    assert kinds["check in"] is kinds["departs"] is Kind.TIME
    assert kinds["price"] is Kind.MONEY
    assert kinds["nights"] is Kind.NUMBER
    assert kinds["city"] is Kind.PLACE
    assert kinds["id"] is Kind.OTHER


def test_an_answer_tells_money_with_its_currency_and_times_without_seconds() -> None:
    row = fields_of(ROW)
    told = {field.name: displayed(field, row) for field in row}
    assert told["price"] == "384.00 EUR"
    assert told["departs"] == "2027-03-12 06:40 UTC"
    assert told["check in"] == "2027-03-12"
    assert month_of(by_name()["check in"]) == "march"
    assert month_of(by_name()["city"]) == ""


@pytest.mark.parametrize("broken", ["", "not json", "[1]", "null", b"\xff"])
def test_a_row_that_is_no_object_is_empty(broken: str | bytes) -> None:
    assert decoded(broken) == {}


@pytest.mark.parametrize(
    ("name", "one"), [("bookings", "booking"), ("categories", "category"), ("boxes", "box"), ("address", "address")]
)
def test_one_of_an_entity(name: str, one: str) -> None:
    assert singular(name) == one


def test_names_of_columns_are_readable() -> None:
    assert readable("pricePerNight") == readable("price_per_night") == "price per night"
