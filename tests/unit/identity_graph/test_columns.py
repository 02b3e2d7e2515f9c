"""From rows to identifiers: names of columns, configuration, and what is nobody's."""

from typing import Any

import pytest

from services.identity_graph.columns import Extractor
from services.identity_graph.settings import Settings


def entries(
    row: dict[str, Any], *, source: str = "crm", entity: str = "rows", key: dict[str, Any] | None = None, **config: Any
) -> list[tuple[str, str, str]] | None:
    extractor = Extractor(Settings.from_config(config))
    person, found = extractor.read(source, entity, key or {"id": 7}, row)
    return list(found) if person else None


def kinds(row: dict[str, Any], **options: Any) -> dict[str, str]:
    return {kind: value for _, kind, value in entries(row, **options) or ()}


@pytest.mark.parametrize(
    ("column", "value", "kind", "normal"),
    [
        ("email", "Ada@X.io", "email", "ada@x.io"),
        ("E-Mail", "ada@x.io", "email", "ada@x.io"),
        ("emailAddress", "ada@x.io", "email", "ada@x.io"),
        ("customer_email", "ada@x.io", "email", "ada@x.io"),
        ("mail", "ada@x.io", "email", "ada@x.io"),
        ("MOBILE", "(415) 555-0134", "phone", "+14155550134"),
        ("home_phone", "(415) 555-0134", "phone", "+14155550134"),
        ("telephone_number", "(415) 555-0134", "phone", "+14155550134"),
        ("deviceId", "AB-1", "device", "ab-1"),
        ("loyalty_number", "SK 123", "loyalty", "sk123"),
        ("frequent_flyer_no", 10048211, "loyalty", "10048211"),
        ("account_id", "ACC-9", "account", "acc-9"),
        ("ssn", "078-05-1120", "national", "078051120"),
        ("soc_sec_id", 7805112, "national", "7805112"),
        ("passport_number", "X 123.456", "passport", "x123456"),
        ("tax_id", "DE-99", "tax", "de99"),
    ],
)
def test_names_of_columns_tell_what_they_hold(column: str, value: object, kind: str, normal: str) -> None:
    assert kinds({"id": 7, column: value}) == {kind: normal}


@pytest.mark.parametrize(
    "column",
    [
        "agent_email",
        "created_by_email",
        "emergency_contact_phone",
        "hotel_phone",
        "email_verified",
        "phone_type",
        "fax",
    ],
)
def test_columns_about_others_hold_nothing_of_the_person(column: str) -> None:
    assert entries({"id": 7, column: "someone@x.io"}) is None


def test_a_row_without_a_persons_column_is_nobodys() -> None:
    assert entries({"id": 7, "name": "Ritz", "price": 3}) is None
    assert entries({"id": 7, "email": None}) == [("email", "", "")]
    assert entries({"id": 7, "email": "no address", "phones": []}) == [("email", "", ""), ("phones", "", "")]
    extractor = Extractor(Settings())
    assert extractor.ignores("inventory", "public.Hotels")
    assert not extractor.ignores("crm", "customers")


def test_names_and_birth_dates_tell_apart_but_do_not_make_a_person() -> None:
    assert kinds({"id": 7, "full_name": " Ada  L", "date_of_birth": "1815-12-10", "email": "a@x.io"}) == {
        "name": "ada l", "birth_date": "1815-12-10", "email": "a@x.io",
    }  # fmt: skip


def test_numbers_of_rows_count_within_their_source_only() -> None:
    customer = kinds({"id": 42, "email": "a@x.io"}, entity="customers", key={"id": 42})
    booking = kinds({"id": 7, "customer_id": 42}, entity="bookings")
    assert customer["account"] == booking["account"] == "crm/customer/42"
    assert kinds({"id": 7, "customer_id": 42}, source="shop")["account"] == "shop/customer/42"
    assert kinds({"id": 7, "customer_id": "C-42"}, source="shop")["account"] == "c-42"
    assert kinds({"id": 7, "user_id": 42})["account"] == "crm/user/42"


def test_a_reference_beside_the_key_is_not_taken_for_a_key() -> None:
    row = {"id": 7, "customer_id": 42}
    found = entries(row, entity="customers", key={"id": 7})
    assert found == [("customer_id", "account", "crm/customer_id/42"), ("id", "account", "crm/customer/7")]


def test_of_several_references_the_customer_is_the_person() -> None:
    assert entries({"id": 7, "user_id": 3, "customer_id": 42}) == [("customer_id", "account", "crm/customer/42")]
    assert len(entries({"id": 9, "customer_id": 42}, entity="accounts", key={"id": 9}) or ()) == 2


def test_numbers_that_a_system_gives_are_no_junk_but_zero_is() -> None:
    assert kinds({"id": 7, "customer_id": 111}) == {"account": "crm/customer/111"}
    assert kinds({"id": 7, "customer_id": 0}) == {"~account": "crm/customer/0"}


def test_values_come_in_lists_and_in_objects_and_as_numbers() -> None:
    row = {
        "id": 7,
        "emails": ["B@x.io", "a@x.io", None, "a@x.io"],
        "contact": {"phone": "4155550134"},
        "account_id": 7.0,
    }
    assert entries(row) == [
        ("account_id", "account", "crm/account/7"), ("contact.phone", "phone", "+14155550134"),
        ("emails", "email", "a@x.io"), ("emails", "email", "b@x.io"),
    ]  # fmt: skip


def test_a_row_names_the_country_of_its_numbers() -> None:
    assert kinds({"id": 7, "phone": "01 99 00 41 07", "country": "FR"}) == {"phone": "+33199004107"}
    assert kinds({"id": 7, "phone": "01 99 00 41 07", "country": "France"}, default_region="FR") == {
        "phone": "+33199004107"
    }


def test_junk_is_kept_apart() -> None:
    assert entries({"id": 7, "email": "test@x.io"}) == [("email", "~email", "test@x.io")]


def test_the_configuration_says_more_than_names() -> None:
    config: dict[str, Any] = {
        "kinds": {"member": {"strength": "unique", "format": "number"}},
        "entities": {
            "crm/rows": {
                "columns": {
                    "card": "member",
                    "email": "",
                    "ref": {"kind": "account", "scope": "shop"},
                    "c.tel": "phone",
                }
            },
            "crm/products": {"person": True},
            "crm/people": {"person": False},
            "crm/strict": {"defaults": False, "columns": {"card": "member"}},
        },
    }
    row = {"id": 7, "card": "A 1", "email": "a@x.io", "ref": 42, "c": {"tel": "4155550134"}}
    assert kinds(row, **config) == {"member": "a1", "account": "shop/42", "phone": "+14155550134"}
    assert entries({"id": 7}, entity="products", **config) == []
    assert kinds({"id": 7, "card": "x9", "email": "a@x.io"}, entity="strict", **config) == {"member": "x9"}
    extractor = Extractor(Settings.from_config(config))
    assert extractor.ignores("crm", "people")
    assert not extractor.ignores("crm", "products")


def test_one_shape_of_rows_does_not_stand_for_another() -> None:
    extractor = Extractor(Settings())
    assert extractor.read("m", "docs", {"id": 1}, {"id": 1, "contact": None}) == (False, ())
    assert extractor.read("m", "docs", {"id": 1}, {"id": 1, "contact": {"email": "a@x.io"}}) == (
        True, (("contact.email", "email", "a@x.io"),),
    )  # fmt: skip
