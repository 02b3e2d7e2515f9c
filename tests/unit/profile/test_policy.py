"""Who may read what of a profile."""

from typing import Any

import orjson
import pytest

from headwater.profile.v1 import events_pb2
from services.profile.policy import Policy, View
from services.profile.projection import Projection
from services.profile.settings import Settings
from tests.unit.profile.examples import row, settings

IDENTIFIERS = '[["email","a@x.org"],["phone","+441"]]'


def view(purpose: str, values: dict[str, Any], **table: Any) -> View:
    configured = settings(**table)
    return Policy(configured).view(profile_of(values, configured), purpose)


def profile_of(values: dict[str, Any], configured: Settings) -> events_pb2.Profile:
    folded = Projection(configured).fold("default", "p1", [row("crm/customers/1", values, identifiers=IDENTIFIERS)])
    assert folded is not None
    return events_pb2.Profile.FromString(folded.content)


def test_without_policies_everybody_sees_everything() -> None:
    seen = view("", {"income": 1, "city": "London"})
    assert set(seen.profile.fields) == {"income", "city"}
    assert seen.withheld == ()


def test_a_field_under_a_policy_is_only_for_its_purposes() -> None:
    policies = {"income": ["credit"]}
    assert set(view("credit", {"income": 1, "city": "x"}, policies=policies).profile.fields) == {"income", "city"}
    seen = view("marketing", {"income": 1, "city": "x"}, policies=policies)
    assert set(seen.profile.fields) == {"city"}
    assert seen.withheld == ("income",)


def test_a_reader_without_a_purpose_gets_only_what_has_no_policy() -> None:
    assert set(view("", {"income": 1, "city": "x"}, policies={"income": ["credit"]}).profile.fields) == {"city"}


def test_what_is_withheld_is_not_in_the_rows_either_under_whatever_column_name() -> None:
    table = {
        "policies": {"income": ["credit"], "salary": ["credit"]},
        "fields": {"income": {"from": ["crm.customers.yearly"], "rule": "latest"}},
    }
    seen = view("", {"yearly": 1, "Salary": 2, "city": "x"}, **table)
    assert orjson.loads(seen.profile.records[0].row_json) == {"city": "x"}


def test_an_identifier_of_a_withheld_kind_is_withheld() -> None:
    seen = view("", {"email": "a@x.org"}, policies={"email": ["support"]})
    assert [i.kind for i in seen.profile.identifiers] == ["phone"]


@pytest.mark.parametrize("granted", [True, 1, "true", "Yes", "granted"])
def test_a_purpose_that_needs_consent_is_served_where_it_is_given(granted: object) -> None:
    seen = view("marketing", {"opt_in": granted, "city": "x"}, consent={"marketing": "opt_in"})
    assert set(seen.profile.fields) == {"opt_in", "city"}


@pytest.mark.parametrize("values", [{"opt_in": False}, {"opt_in": "no"}, {"opt_in": None}, {}, {"opt_in": [1]}])
def test_without_consent_nothing_of_the_person_is_told(values: dict[str, Any]) -> None:
    seen = view("marketing", {**values, "city": "x"}, consent={"marketing": "opt_in"})
    assert seen.profile.profile_id == "p1"
    assert not seen.profile.fields
    assert not seen.profile.records
    assert not seen.profile.identifiers
    assert "city" in seen.withheld


def test_consent_for_one_purpose_does_not_bind_another() -> None:
    assert "city" in view("support", {"city": "x"}, consent={"marketing": "opt_in"}).profile.fields


def test_the_whole_profile_is_left_as_it_was() -> None:
    configured = settings(policies={"city": ["support"]})
    profile = profile_of({"city": "x"}, configured)
    Policy(configured).view(profile, "")
    assert profile == profile_of({"city": "x"}, configured)
