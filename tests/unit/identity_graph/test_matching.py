"""Who is who among records that links join: conflicts, bounds, doubt; and that order does not count."""

import random
from itertools import pairwise
from typing import Any

from hypothesis import given, strategies as st

from services.identity_graph.columns import Entry, merged
from services.identity_graph.matching import Resolution, is_doubtful, resolve
from services.identity_graph.model import Content, Kinds, split_link, text_of
from services.identity_graph.settings import Settings


def kinds(**table: Any) -> Kinds:
    return Kinds(Settings.from_config(table))


KINDS = kinds(cluster_records_max=4)


def content(*identifiers: str, name: str = "") -> Content:
    pairs = [tuple(text.split(":")) for text in (*identifiers, *([f"name:{name}"] if name else []))]
    return KINDS.content("t", text_of(merged([(f"c{kind}", kind, value) for kind, value in pairs])))


def resolved(*contents: Content, limits: Kinds = KINDS) -> tuple[list[list[Content]], Resolution]:
    ordered = sorted(contents, key=lambda c: c.text)
    resolution = resolve(ordered, (), limits)
    return [[ordered[i] for i in cluster] for cluster in resolution.clusters], resolution


def test_records_that_share_a_value_are_one_person() -> None:
    a, b, c = content("email:a"), content("email:a", "phone:1"), content("phone:1")
    clusters, resolution = resolved(a, b, c)
    assert [len(cluster) for cluster in clusters] == [3]
    assert (resolution.suspect, resolution.refusals) == (frozenset(), [])


def test_two_values_of_a_unique_kind_forbid_a_merge_and_cast_doubt() -> None:
    a, b = content("email:family", "national:1"), content("email:family", "national:2")
    clusters, resolution = resolved(a, b)
    assert [len(cluster) for cluster in clusters] == [1, 1]
    assert resolution.suspect == {0, 1}
    (refusal,) = resolution.refusals
    assert split_link(refusal.link) == ("email", "family")
    assert "national" in refusal.reason


def test_a_stronger_link_is_made_before_a_weaker_one() -> None:
    # The one without a number goes with the one of the same passport, not with the one of the same telephone.
    a, b, c = content("national:1", "phone:7"), content("national:2", "passport:9"), content("passport:9", "phone:7")
    clusters, _ = resolved(a, b, c)
    assert sorted(map(len, clusters)) == [1, 2]
    assert [a] in clusters


def test_a_record_with_two_values_of_a_unique_kind_is_joined_by_either_and_is_suspect() -> None:
    both, one = content("national:1", "national:2"), content("national:1", "email:a")
    clusters, resolution = resolved(both, one)
    assert len(clusters) == 1
    assert resolution.suspect == {0}
    third = content("national:3", "email:a")
    assert len(resolved(both, one, third)[0]) == 2


def test_a_profile_has_a_bound() -> None:
    chain = [content(f"phone:{n}", f"email:{n}", f"email:{n + 1}") for n in range(10)]
    clusters, resolution = resolved(*chain)
    assert max(map(len, clusters)) <= 4
    assert resolution.refusals
    assert "at most 4" in resolution.refusals[0].reason


def test_many_values_of_a_kind_cast_doubt() -> None:
    limits = kinds(kinds={"email": {"values_max": 2}})
    few = [content("phone:1", "email:a"), content("phone:1", "email:b")]
    assert not is_doubtful(few, (), limits)
    assert is_doubtful([*few, content("phone:1", "email:c")], (), limits)


def test_a_device_that_alone_joins_two_who_can_be_reached_casts_doubt() -> None:
    ada, bob = content("device:d", "email:ada"), content("device:d", "email:bob")
    anonymous, login = content("device:d"), content("email:ada", "email:bob")
    assert is_doubtful([ada, bob], (), KINDS)
    assert is_doubtful([ada, bob, anonymous], (), KINDS)
    assert not is_doubtful([ada, anonymous], (), KINDS)
    assert not is_doubtful([ada, bob, login], (), KINDS)


identifiers = st.lists(
    st.tuples(st.sampled_from(["email", "phone", "national", "device"]), st.sampled_from("123")), max_size=4
)


@given(st.lists(identifiers, min_size=1, max_size=9), st.integers(0, 2**16))
def test_the_outcome_is_a_partition_that_depends_on_nothing_but_what_is_held(held: list[list[Any]], seed: int) -> None:
    texts = {text_of(merged([(f"c{k}", k, v) for k, v in pairs])) for pairs in held}
    contents = sorted((KINDS.content("t", text) for text in texts), key=lambda c: c.text)
    resolution = resolve(contents, (), KINDS)
    assert sorted(i for cluster in resolution.clusters for i in cluster) == list(range(len(contents)))
    # What does not concern a component does not change it: resolving all at once equals resolving each alone.
    for cluster in resolution.clusters:
        assert len(cluster) <= 4
        values: dict[str, set[str]] = {}
        for i in cluster:
            for link in contents[i].unique:
                values.setdefault(split_link(link)[0], set()).add(link)
        for kind, found in values.items():
            assert any(found <= {link for link in contents[i].unique if split_link(link)[0] == kind} for i in cluster)
        linked = {cluster[0]}
        while more := {
            i
            for i in cluster
            if i not in linked and any(set(contents[i].links) & set(contents[j].links) for j in linked)
        }:
            linked |= more
        assert linked == set(cluster), "evidence joins all of a cluster"
    shuffled = list(contents)
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda c: c.text)
    assert resolve(shuffled, (), KINDS) == resolution


def test_entries_have_a_canonical_order() -> None:
    entries: list[Entry] = [("b", "email", "x"), ("a", "phone", "y"), ("b", "email", "x")]
    assert list(pairwise(merged(entries))) == [(("a", "phone", "y"), ("b", "email", "x"))]
