"""What the names of columns and entities tell: kinds of identifiers, whose rows are persons', and whose never. Pure."""

import re

from services.identity_graph.normalise import word_set
from services.identity_graph.settings import ColumnRule

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORD = re.compile(r"[\W_]+")

# Whose rows are persons, and which columns refer to such a row: by the singular of the entity's name. Where a row
# refers to several, the first in this order is its person: a booking's customer, not the user who typed it in.
PERSONS = ("customer", "member", "client", "guest", "passenger", "traveller", "traveler", "patient", "subscriber",
           "contact", "person", "user", "account")  # fmt: skip
PLURALS = {f"{noun}s": noun for noun in PERSONS} | {noun: noun for noun in PERSONS} | {"people": "person"}

# Rows that may have an e-mail address or a telephone number of their own, and are no person.
THINGS = word_set("""
    airline airlines airport airports branch branches companies company department departments flight flights hotel
    hotels inventory office offices organisation organisations organization organizations price prices product products
    property properties room rooms route routes seat seats shop shops site sites stock store stores supplier suppliers
    vendor vendors warehouse warehouses
""")

# A column with one of these words in its name is about somebody or something else than the row's person.
OTHERS = word_set("""
    agent airline approved approver assigned assignee author branch company created creator deleted emergency employee
    employer hotel manager merchant modified office operator owner parent partner property recruiter referred referrer
    referral rep reply seller spouse staff store supervisor supplier support updated vendor
""")

_NAMES: tuple[tuple[str, str], ...] = (
    ("email", r"(.*_)?e_?mails?(_address(es)?|_addr)?|mail"),
    ("phone", r"(.*_)?(phone|telephone|mobile|cellphone|cell|msisdn|tel)s?(_numbers?|_num|_no|_nr)?"),
    ("device", r"(.*_)?device(_?id|_uuid)?|idfa|gaid|advertising_id|anonymous_id|visitor_id"),
    ("loyalty", r"(loyalty|frequent_flyer|membership)(_?card)?(_?id|_?number|_no|_nr)|member_(number|no)"),
    ("account", r"account(_?id|_?number|_no|_nr)?"),
    ("national", r"ssn|social_security_(number|no)|soc_sec_id|national_id(_number)?|national_insurance_number|nino"),
    ("tax", r"tax_?(id|number|no)|tin"),
    ("passport", r"passport(_number|_no|_nr|_id)?"),
    ("name", r"(full_?|first_?|middle_?|last_?|given_?|family_?|sur|customer_|guest_|passenger_|traveller_)?name"),
    ("birth_date", r"dob|(date_of_birth|birth_?date|birthday)"),
)  # fmt: skip
_KIND_OF_NAME = [(kind, re.compile(pattern)) for kind, pattern in _NAMES]


def kind_of(name: str) -> str | None:
    """Return the kind of identifier that a column's name, in words, tells; None when it tells none."""
    return next((kind for kind, pattern in _KIND_OF_NAME if pattern.fullmatch(name)), None)


def rule_of(kind: str, name: str, source: str) -> ColumnRule:
    """Return the rule for a column whose name tells a kind."""
    # A bare number is of its source, unless it is a member's and long enough to be told apart from others'.
    if kind == "account":
        return ColumnRule(kind, scope_of_numbers=f"{source}/{name.partition('_')[0]}")
    return (
        ColumnRule(kind, scope_of_numbers=f"{source}/{kind}", digits_min=6) if kind == "loyalty" else ColumnRule(kind)
    )


def column_words(name: str) -> str:
    """Return a column's name in words: `emailAddress` and `E-Mail Address` as `email_address` and `e_mail_address`."""
    return _NOT_WORD.sub("_", _CAMEL.sub("_", name)).strip("_").lower()


def entity_words(entity: str) -> str:
    """Return the last part of an entity's name, `public.Customers` being `customers`."""
    return column_words(entity.rpartition(".")[2])
