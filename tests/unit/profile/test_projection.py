"""Survivorship: which value a profile gets, by example and by law."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from headwater.profile.v1 import events_pb2
from services.profile.projection import Projection, SourceRow
from tests.unit.profile.examples import T0_MS, row, settings

BOTH = {"from": ["crm.customers.full_name", "web.accounts.display_name"]}


def fold(rows: Sequence[SourceRow], **table: Any) -> events_pb2.Profile:
    """The document; an empty one where there is none."""
    folded = Projection(settings(**table)).fold("default", "p1", rows)
    return events_pb2.Profile() if folded is None else events_pb2.Profile.FromString(folded.content)


def values(profile: events_pb2.Profile) -> dict[str, Any]:
    return {name: orjson.loads(field.value_json) for name, field in profile.fields.items()}


def name_by(rule: str, *rows: SourceRow) -> Any:
    return values(fold(rows, fields={"name": {**BOTH, "rule": rule}}))["name"]


def test_no_rows_make_no_document() -> None:
    assert Projection(settings()).fold("default", "p1", []) is None


def test_without_configuration_every_column_is_a_field_of_its_own_name() -> None:
    profile = fold([row("crm/customers/1", {"Name": "Ada", "age": 36, "tags": ["a"], "address": {"city": "London"}})])
    assert values(profile) == {"name": "Ada", "age": 36, "tags": ["a"], "address": {"city": "London"}}


def test_the_latest_value_prevails_and_tells_where_it_is_from() -> None:
    profile = fold([row("crm/customers/1", {"city": "London"}, at=2), row("web/accounts/7", {"city": "Paris"}, at=1)])
    field = profile.fields["city"]
    assert (field.value_json, field.record, field.source) == ('"London"', "crm/customers/1", "crm")
    assert field.occurred_at.ToMilliseconds() == T0_MS + 2000


def test_of_two_values_of_one_time_the_smaller_record_key_has_its_way() -> None:
    rows = [row("web/accounts/7", {"city": "Paris"}), row("crm/customers/1", {"city": "London"})]
    assert values(fold(rows))["city"] == "London"


def test_nulls_and_empty_texts_do_not_hide_a_value() -> None:
    rows = [row("crm/customers/1", {"city": "London"}, at=1), row("web/accounts/7", {"city": None, "mail": ""}, at=2)]
    assert values(fold(rows)) == {"city": "London"}


def test_zero_and_false_are_values() -> None:
    rows = [row("crm/customers/1", {"n": 5, "b": True}, at=1), row("web/accounts/7", {"n": 0, "b": False}, at=2)]
    assert values(fold(rows)) == {"n": 0, "b": False}


def test_latest_of_declared_columns() -> None:
    early, late = row("crm/customers/1", {"full_name": "A"}, at=1), row("web/accounts/7", {"display_name": "B"}, at=2)
    assert name_by("latest", early, late) == "B"


def test_most_trusted_prefers_the_column_that_is_named_first_even_if_it_is_older() -> None:
    early, late = row("crm/customers/1", {"full_name": "A"}, at=1), row("web/accounts/7", {"display_name": "B"}, at=2)
    assert name_by("most_trusted", early, late) == "A"


def test_most_trusted_falls_back_where_the_trusted_column_is_empty() -> None:
    rows = row("crm/customers/1", {"full_name": ""}, at=3), row("web/accounts/7", {"display_name": "B"}, at=2)
    assert name_by("most_trusted", *rows) == "B"


def test_most_trusted_takes_the_latest_row_of_the_trusted_source() -> None:
    rows = [row("crm/customers/1", {"full_name": "old"}, at=1), row("crm/customers/2", {"full_name": "new"}, at=2)]
    assert name_by("most_trusted", *rows) == "new"


def test_most_frequent_counts_rows() -> None:
    rows = [
        row("crm/customers/1", {"full_name": "Ada"}, at=1),
        row("crm/customers/2", {"full_name": "Ada"}, at=2),
        row("web/accounts/7", {"display_name": "A."}, at=3),
    ]
    assert name_by("most_frequent", *rows) == "Ada"


def test_most_frequent_takes_the_latest_where_counts_are_equal() -> None:
    rows = [row("crm/customers/1", {"full_name": "old"}, at=1), row("web/accounts/7", {"display_name": "new"}, at=2)]
    assert name_by("most_frequent", *rows) == "new"


def test_longest_takes_the_most_complete_text() -> None:
    rows = [
        row("crm/customers/1", {"full_name": "Ada King Lovelace"}, at=1),
        row("web/accounts/7", {"display_name": "Ada"}, at=2),
    ]
    assert name_by("longest", *rows) == "Ada King Lovelace"


def test_union_is_a_sorted_list_without_repetitions_and_takes_lists_apart() -> None:
    rows = [
        row("crm/customers/1", {"full_name": ["b", "a", None]}, at=1),
        row("web/accounts/7", {"display_name": "b"}, at=2),
        row("web/accounts/8", {"display_name": {"y": 1, "x": 2}}, at=3),
    ]
    assert name_by("union", *rows) == ["a", "b", {"x": 2, "y": 1}]


def test_a_declared_field_is_made_of_its_columns_only_and_takes_them() -> None:
    rows = [
        row("crm/customers/1", {"full_name": "A"}, at=1),
        row("erp/clients/3", {"name": "X", "full_name": "Y"}, at=2),
    ]
    assert values(fold(rows, fields={"name": {**BOTH, "rule": "latest"}})) == {"name": "A", "full_name": "Y"}


def test_one_column_may_feed_several_fields() -> None:
    fields = {
        "name": {"from": ["crm.customers.full_name"], "rule": "latest"},
        "names": {"from": ["crm.customers.full_name"], "rule": "union"},
    }
    assert values(fold([row("crm/customers/1", {"full_name": "A"})], fields=fields)) == {"name": "A", "names": ["A"]}


def test_only_declared_leaves_other_columns_to_the_rows() -> None:
    profile = fold(
        [row("crm/customers/1", {"full_name": "A", "city": "London"})],
        only_declared=True,
        fields={"name": {**BOTH, "rule": "latest"}},
    )
    assert values(profile) == {"name": "A"}
    assert orjson.loads(profile.records[0].row_json)["city"] == "London"


def test_secrets_are_neither_fields_nor_in_the_rows() -> None:
    profile = fold([row("web/accounts/7", {"login": "ada", "Password_Hash": "x", "api_key": "y"})])
    assert values(profile) == {"login": "ada"}
    assert orjson.loads(profile.records[0].row_json) == {"login": "ada"}


def test_a_secret_cannot_be_declared_a_field_by_mistake() -> None:
    profile = fold(
        [row("web/accounts/7", {"password_hash": "x"})],
        fields={"p": {"from": ["web.accounts.password_hash"], "rule": "latest"}},
    )
    assert values(profile) == {}


def test_rows_are_listed_as_they_came_the_latest_first() -> None:
    profile = fold([row("crm/customers/1", {"a": 1}, at=1), row("crm/customers/2", {"a": None}, at=2)])
    assert [(r.record, r.row_json) for r in profile.records] == [
        ("crm/customers/2", '{"a":null}'),
        ("crm/customers/1", '{"a":1}'),
    ]
    assert profile.as_of.ToMilliseconds() == T0_MS + 2000


def test_of_very_many_rows_the_latest_are_listed_and_the_others_counted_but_all_make_the_fields() -> None:
    rows = [row(f"crm/customers/{n}", {"n": n, f"c{n}": n}, at=n) for n in range(10)]
    profile = fold(rows, records_max=3)
    assert [r.record for r in profile.records] == ["crm/customers/9", "crm/customers/8", "crm/customers/7"]
    assert profile.records_omitted == 7
    assert values(profile)["c0"] == 0


def test_identifiers_are_gathered_and_one_suspicion_is_enough() -> None:
    rows = [
        row("crm/customers/1", {}, identifiers='[["email","a@x.org"],["phone","+441"]]'),
        row("web/accounts/7", {}, identifiers='[["email","a@x.org"]]', suspect=True),
    ]
    profile = fold(rows)
    assert [(i.kind, i.value) for i in profile.identifiers] == [("email", "a@x.org"), ("phone", "+441")]
    assert profile.suspect


COLUMNS = ("full_name", "display_name", "City", "age", "password")
SCALARS = st.one_of(st.none(), st.just(""), st.booleans(), st.integers(-3, 3), st.sampled_from(["Ada", "A.", "Ada K."]))
ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from([f"{kind}/{n}" for kind in ("crm/customers", "web/accounts", "erp/clients") for n in range(4)]),
        st.dictionaries(st.sampled_from(COLUMNS), st.one_of(SCALARS, st.lists(SCALARS, max_size=3))),
        st.integers(0, 3),
        identifiers=st.sampled_from(["[]", '[["email","a@x.org"]]', '[["email","b@x.org"],["phone","+1"]]']),
    ),
    max_size=8,
    unique_by=lambda r: r.record,
)


@pytest.mark.parametrize("rule", ["latest", "most_trusted", "most_frequent", "union", "longest"])
@given(rows=ROWS, data=st.data())
def test_the_document_does_not_depend_on_the_order_of_the_rows(
    rule: str, rows: list[SourceRow], data: st.DataObject
) -> None:
    projection = Projection(settings(fields={"name": {**BOTH, "rule": rule}}))
    shuffled = data.draw(st.permutations(rows))
    assert projection.fold("default", "p1", rows) == projection.fold("default", "p1", shuffled)


@pytest.mark.parametrize("rule", ["latest", "most_trusted", "most_frequent", "longest"])
@given(rows=ROWS)
def test_every_value_is_one_that_its_record_offers_for_the_field(rule: str, rows: list[SourceRow]) -> None:
    profile = fold(rows, fields={"name": {**BOTH, "rule": rule}})
    bodies = {r.record: {k.lower(): v for k, v in orjson.loads(r.body).items()} for r in rows}
    for name, field in profile.fields.items():
        offered = bodies[field.record]
        columns = ("full_name", "display_name") if name == "name" else (name,)
        assert orjson.loads(field.value_json) in [offered.get(column) for column in columns]


@given(rows=ROWS)
def test_a_field_is_missing_only_where_no_row_has_a_value(rows: list[SourceRow]) -> None:
    profile = fold(rows)
    offered = {
        column.lower()
        for r in rows
        for column, value in orjson.loads(r.body).items()
        if value is not None and value != "" and column != "password"
    }
    assert set(profile.fields) == offered
