from hypothesis import given, strategies as st

from services.kernel.positions import natural, newer, padded
from services.kernel.records import record_key, record_parts

numbers = st.integers(0, 2**64 - 1)
texts = st.text(min_size=1)


@given(numbers, numbers)
def test_numbers_compare_as_numbers(a: int, b: int) -> None:
    assert newer(f"native:crm:{padded(a)}", f"native:crm:{padded(b)}") == (a > b)


@given(st.lists(numbers, min_size=1, max_size=4), st.lists(numbers, min_size=1, max_size=4))
def test_runs_of_digits_within_a_text_compare_as_numbers(a: list[int], b: list[int]) -> None:
    def position(parts: list[int]) -> str:
        return "d:" + natural(".".join(map(str, parts)))

    assert newer(position(a), position(b)) == (a > b)


def test_a_position_that_is_not_there_leaves_it_to_the_order_of_arrival() -> None:
    assert newer("", "d:1")
    assert newer("d:1", "")
    assert newer("", "")


def test_positions_of_different_domains_do_not_compare() -> None:
    assert newer("pg:crm:1", "pg:shop:2")
    assert newer("pg:crm:1", "mysql:crm:2")
    assert newer("pg:crm:1", "pg:crm2:2")
    assert newer("1", "2")


def test_the_same_position_again_is_not_newer() -> None:
    assert not newer("pg:crm:1", "pg:crm:1")


def test_the_source_in_a_domain_may_hold_colons() -> None:
    assert newer("native:a:b:2", "native:a:b:1")
    assert not newer("native:a:b:1", "native:a:b:2")


@given(texts)
def test_a_natural_text_holds_no_colon_so_that_the_domain_ends_at_the_last_one(text: str) -> None:
    assert ":" not in natural(text)


def test_a_record_key_names_source_entity_and_key() -> None:
    assert record_key("crm", "customers", {"id": 42}) == "crm/customers/42"


def test_the_order_of_key_columns_does_not_matter() -> None:
    assert record_key("shop", "lines", {"order": 7, "line": 2}) == record_key("shop", "lines", {"line": 2, "order": 7})
    assert record_key("shop", "lines", {"order": 7, "line": 2}) == "shop/lines/2/7"


def test_a_number_and_the_same_number_as_text_name_the_same_row() -> None:
    assert record_key("crm", "customers", {"id": "42"}) == record_key("crm", "customers", {"id": 42})


def test_separators_within_a_value_are_escaped() -> None:
    assert record_key("a/b", "c", {"id": "d/e%"}) == "a%2Fb/c/d%2Fe%25"
    assert record_key("a", "b", {"id": "x\x1fy"}) == "a/b/x%1Fy"


def test_booleans_and_structures_have_a_text_too() -> None:
    assert record_key("a", "b", {"id": True}) == "a/b/true"
    assert record_key("a", "b", {"id": {"y": 1, "x": [2]}}) == 'a/b/{"x":[2],"y":1}'


@given(texts, texts, st.lists(texts, min_size=1, max_size=3))
def test_a_record_key_comes_apart_again(source: str, entity: str, values: list[str]) -> None:
    key = {f"k{number}": value for number, value in enumerate(values)}
    assert record_parts(record_key(source, entity, key)) == [source, entity, *values]


@given(st.lists(texts, min_size=2, max_size=2), st.lists(texts, min_size=2, max_size=2))
def test_different_keys_have_different_record_keys(a: list[str], b: list[str]) -> None:
    one, other = ({"x": values[0], "y": values[1]} for values in (a, b))
    assert (record_key("s", "e", one) == record_key("s", "e", other)) == (a == b)
