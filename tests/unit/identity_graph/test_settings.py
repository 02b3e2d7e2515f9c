"""The table [identity_graph]: defaults, overrides, and errors that name the setting."""

from typing import Any

import pytest

from services.identity_graph.settings import KINDS, Format, Settings, Strength
from services.kernel.errors import InvalidInputError


def test_without_a_table_the_defaults_hold() -> None:
    assert Settings.from_config({}) == Settings()
    assert Settings().kinds["national"].strength is Strength.UNIQUE


def test_a_kind_can_be_changed_and_one_can_be_added() -> None:
    table = {"kinds": {"email": {"records_max": 5}, "badge": {"strength": "unique", "format": "number"}}}
    kinds = Settings.from_config(table).kinds
    assert kinds["email"] == KINDS["email"]._replace(records_max=5)
    assert (kinds["badge"].strength, kinds["badge"].format) == (Strength.UNIQUE, Format.NUMBER)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"colour": 1}, "[identity_graph] colour is not a setting; known are kinds, entities, "),
        ({"kinds": {"record": {}}}, "[identity_graph.kinds] record cannot be the name of a kind"),
        (
            {"kinds": {"email": {"strength": "huge"}}},
            "[identity_graph.kinds.email] strength must be one of unique, strong, weak, not 'huge'",
        ),
        (
            {"kinds": {"email": {"records_max": 0}}},
            "[identity_graph.kinds.email] records_max must be a whole number from 1, not 0",
        ),
        ({"kinds": {"email": {"casts_doubt": 1}}}, "[identity_graph.kinds.email] casts_doubt must be true or false"),
        ({"kinds": 3}, "[identity_graph.kinds] must be a table"),
        ({"entities": {"customers": {}}}, "customers"),
        ({"entities": {"crm/customers": {"columns": {"id": "accuont"}}}}, "accuont"),
        (
            {"entities": {"crm/customers": {"columns": {"id": {"scope": "crm"}}}}},
            '[identity_graph.entities."crm/customers".columns.id] kind is missing',
        ),
        (
            {"entities": {"crm/customers": {"person": "yes"}}},
            '[identity_graph.entities."crm/customers"] person must be true or false',
        ),
        ({"cluster_records_max": 0}, "[identity_graph] cluster_records_max must be a whole number from 1"),
        ({"component_records_max": "many"}, "[identity_graph] component_records_max must be a whole number from 1"),
        ({"default_region": 1}, "[identity_graph] default_region must be a text"),
        ({"default_region": "Sweden"}, "[identity_graph] default_region must be a country's two letters, such as SE"),
        ({"default_region": "ZZ"}, "[identity_graph] default_region must be a country's two letters, such as SE"),
        ({"junk": "null"}, "[identity_graph] junk must be a list of texts"),
        ({"erasure_services": [1]}, "[identity_graph] erasure_services must be a list of texts"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_config(table)
    assert words in str(caught.value)


def test_the_fingerprint_tells_settings_apart_that_lead_to_other_persons() -> None:
    tables: list[dict[str, Any]] = [
        {}, {"cluster_records_max": 9}, {"component_records_max": 9}, {"default_region": "SE"}, {"junk": ["x"]},
        {"email_tags_ignored": ["gmail.com"]}, {"kinds": {"email": {"values_max": 9}}},
        {"entities": {"crm/customers": {"person": False}}},
        {"entities": {"crm/customers": {"columns": {"a": "email"}}}},
    ]  # fmt: skip
    assert len({Settings.from_config(table).fingerprint() for table in tables}) == len(tables)
    assert Settings.from_config({"erasure_services": ["log"]}).fingerprint() == Settings().fingerprint()
    assert (
        Settings.from_config({"junk": ["b", "a"]}).fingerprint()
        == Settings.from_config({"junk": ["a", "b"]}).fingerprint()
    )
