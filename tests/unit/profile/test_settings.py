"""The table [profile] of the configuration."""

from typing import Any

import pytest

from services.kernel.errors import InvalidInputError
from services.profile.settings import ColumnName, FieldRule, Rule, Settings


def test_nothing_configured_is_a_valid_configuration() -> None:
    assert Settings.from_config({}) == Settings()


def test_reads_a_declared_field_with_its_columns_in_order_of_trust() -> None:
    settings = Settings.from_config(
        {"fields": {"Name": {"from": ["crm.customers.Full_Name", "web.accounts.display_name"], "rule": "most_trusted"}}}
    )
    assert settings.fields == {
        "name": FieldRule(
            (ColumnName("crm", "customers", "full_name"), ColumnName("web", "accounts", "display_name")),
            Rule.MOST_TRUSTED,
        )
    }


def test_an_entity_may_hold_dots() -> None:
    settings = Settings.from_config({"fields": {"name": {"from": ["crm.public.customers.name"]}}})
    assert settings.fields["name"].columns == (ColumnName("crm", "public.customers", "name"),)


def test_reads_consent_and_policies() -> None:
    settings = Settings.from_config({"consent": {"marketing": "Opt_In"}, "policies": {"Income": ["credit"]}})
    assert settings.consent == {"marketing": "opt_in"}
    assert settings.policies == {"income": frozenset({"credit"})}


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"feilds": {}}, r"^\[profile\] feilds is not a setting; known are fields, "),
        ({"fields": []}, r"^\[profile.fields\] must be a table"),
        ({"fields": {"name": {"from": ["crm.name"]}}}, "crm.name"),
        ({"fields": {"name": {"from": []}}}, r"^\[profile.fields.name\] from must not be empty"),
        ({"fields": {"name": {}}}, r"^\[profile.fields.name\] from must not be empty"),
        (
            {"fields": {"name": {"from": "crm.customers.name"}}},
            r"^\[profile.fields.name\] from must be a list of texts",
        ),
        (
            {"fields": {"name": {"from": ["crm.customers.name"], "rule": "newest"}}},
            "rule must be one of latest, most_trusted, most_frequent, union, longest, not 'newest'",
        ),
        ({"fields": {"name": {"from": ["crm.customers.name"], "rules": "latest"}}}, "rules"),
        ({"records_max": 0}, r"^\[profile\] records_max must be a whole number from 1, not 0"),
        ({"records_max": True}, r"^\[profile\] records_max"),
        ({"only_declared": "yes"}, r"^\[profile\] only_declared must be true or false"),
        ({"exclude": "password"}, r"^\[profile\] exclude must be a list of texts"),
        ({"consent": {"marketing": 1}}, r"^\[profile.consent\] marketing must be a text"),
        ({"policies": {"income": "credit"}}, r"^\[profile.policies\] income must be a list of texts"),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Settings.from_config(table)
