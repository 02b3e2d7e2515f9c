"""The composition of contexts: laws over any ingredients."""

import json

from hypothesis import given, settings, strategies as st

from headwater.embedder.v1 import service_pb2 as embedder_pb2
from headwater.profile.v1 import events_pb2 as profile_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.context import SUSPECT, Ingredients, compose, references_only
from services.rag_gateway.prompt import part_tokens

WORDS = st.lists(
    st.sampled_from(["refund", "hotel", "Lisbon", "24 hours", "price", "€", "Tromsø", "cancel", "the", "of"]),
    max_size=60,
).map(" ".join)
NAMES = st.sampled_from(["a", "b", "c", "d/1", "d/2"])


@st.composite
def hits(draw: st.DrawFn) -> embedder_pb2.Hit:
    text = draw(WORDS)
    start = draw(st.integers(0, 400))
    hit = embedder_pb2.Hit(
        document_id=draw(NAMES), version=draw(st.sampled_from(["v1", "v2"])), ordinal=draw(st.integers(0, 3)),
        text=text, start=start, end=start + len(text), score=draw(st.floats(0, 1)),
        live_json=draw(st.sampled_from(["", '{"rooms_left": 4}', "not json", "[1]"])),
    )  # fmt: skip
    hit.occurred_at.FromSeconds(draw(st.integers(0, 3)))
    return hit


@st.composite
def profiles(draw: st.DrawFn) -> profile_pb2.Profile:
    profile = profile_pb2.Profile(profile_id="p1", version=draw(st.integers(1, 9)), suspect=draw(st.booleans()))
    for name in draw(st.lists(st.sampled_from(["tier", "email", "city"]), unique=True)):
        profile.fields[name].value_json = json.dumps(draw(WORDS))
    for number in range(draw(st.integers(0, 6))):
        row = {"id": f"B{number}", "kind": draw(st.sampled_from(["hotel", "flight"])), "note": draw(WORDS)}
        profile.records.add(record=f"bookings/bookings/B{number}", entity="bookings", row_json=json.dumps(row))
    return profile


def turn_of(number: int, question: str, answer: str) -> events_pb2.TurnCompleted:
    return events_pb2.TurnCompleted(answer_id=f"a{number}", question=question, answer=answer)


turns = st.builds(turn_of, st.integers(0, 9), WORDS, WORDS)
ingredients = st.builds(
    Ingredients,
    question=WORDS,
    hits=st.lists(hits(), max_size=12),
    profile=st.none() | profiles(),
    turns=st.lists(turns, max_size=8, unique_by=lambda turn: turn.answer_id),
    missing=st.lists(st.sampled_from(["profile: down"]), max_size=1),
)
budgets = st.integers(1, 900)


def key(part: events_pb2.ContextPart) -> tuple[int, str, str, int]:
    return part.kind, part.reference, part.version, part.ordinal


@given(ingredients, budgets)
def test_is_never_over_the_budget(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    assert context.used_tokens == sum(part.tokens for part in context.parts) <= budget
    assert all(part.tokens == part_tokens(part) for part in context.parts)


@given(ingredients, budgets)
def test_nothing_is_both_in_and_left_out_and_nothing_is_in_twice(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    inside = [key(part) for part in context.parts]
    outside = [key(part) for part in context.left_out]
    assert len(inside) == len(set(inside))
    assert not set(inside) & set(outside)
    texts = [" ".join(p.text.split()) for p in context.parts if p.kind == events_pb2.PART_KIND_KNOWLEDGE]
    assert len(texts) == len(set(texts))
    assert all(not part.text for part in context.left_out)


@given(ingredients, budgets)
def test_the_same_ingredients_give_the_same_context(found: Ingredients, budget: int) -> None:
    again = Ingredients(found.question, list(found.hits), found.profile, list(found.turns), list(found.missing))
    assert compose(found, budget) == compose(again, budget)


@given(ingredients, budgets)
def test_no_part_is_from_anything_that_was_not_found(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    documents = {(hit.document_id, hit.version, hit.ordinal): hit for hit in found.hits}
    for part in (*context.parts, *context.left_out):
        if part.kind == events_pb2.PART_KIND_KNOWLEDGE:
            hit = documents[part.reference, part.version, part.ordinal]
            assert not part.text or any(
                part.text.startswith(h.text) for h in found.hits if h.document_id == hit.document_id
            )
        elif part.kind == events_pb2.PART_KIND_TURN:
            assert part.reference in {turn.answer_id for turn in found.turns}


@given(ingredients, budgets)
def test_one_version_of_a_document_is_used_the_newest(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    newest: dict[str, int] = {}
    for hit in found.hits:
        if hit.text:
            newest[hit.document_id] = max(newest.get(hit.document_id, 0), hit.occurred_at.seconds)
    versions: dict[str, set[str]] = {}
    for part in (*context.parts, *context.left_out):
        if part.kind == events_pb2.PART_KIND_KNOWLEDGE:
            versions.setdefault(part.reference, set()).add(part.version)
    assert all(len(used) == 1 for used in versions.values())


@given(ingredients, budgets)
def test_a_suspected_profile_gives_nothing_personal_and_this_is_named(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    personal = [
        part
        for part in (*context.parts, *context.left_out)
        if part.kind in (events_pb2.PART_KIND_PROFILE, events_pb2.PART_KIND_LIVE_ROW)
    ]
    if found.profile is None:
        assert not personal
    elif found.profile.suspect:
        assert not personal
        assert SUSPECT in context.missing
    else:
        assert SUSPECT not in context.missing


@given(ingredients, budgets)
def test_parts_that_can_be_cited_are_numbered_in_order(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    numbers = [part.number for part in context.parts if part.kind != events_pb2.PART_KIND_TURN]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(part.number == 0 for part in context.parts if part.kind == events_pb2.PART_KIND_TURN)


@settings(max_examples=50)
@given(ingredients)
def test_with_room_for_everything_nothing_is_left_out(found: Ingredients) -> None:
    assert not compose(found, 1_000_000).left_out


@given(ingredients, budgets)
def test_what_the_log_keeps_has_the_references_and_no_words(found: Ingredients, budget: int) -> None:
    context = compose(found, budget)
    bare = references_only(context)
    assert [key(part) for part in bare.parts] == [key(part) for part in context.parts]
    assert not any(part.text for part in bare.parts)


def test_live_columns_stand_in_the_text_as_they_are_now() -> None:
    hit = embedder_pb2.Hit(
        document_id="hotels/1", version="v", text="Riva, Split.", score=1.0,
        live_json='{"rooms_left": 2, "price": "80.00", "note": null}',
    )  # fmt: skip
    (part,) = compose(Ingredients("rooms", [hit]), 500).parts
    assert part.text == "Riva, Split.\nNow: rooms left: 2; price: 80.00"


def test_a_row_of_the_person_replaces_the_same_row_found_by_search() -> None:
    profile = profile_pb2.Profile(profile_id="p", version=1)
    profile.records.add(record="b/b/1", entity="b", row_json='{"seat": "4A"}')
    hit = embedder_pb2.Hit(document_id="b/b/1", version="v", text="seat 3C", score=1.0)
    parts = compose(Ingredients("seat", [hit], profile), 500).parts
    assert [part.text for part in parts] == ["seat: 4A"]


def test_value_per_token_decides_but_crumbs_do_not_win_over_the_answer() -> None:
    long = embedder_pb2.Hit(document_id="long", version="v", text="word " * 100, score=1.0)
    crumbs = [embedder_pb2.Hit(document_id=f"c{n}", version="v", text=f"crumb {n}", score=0.05) for n in range(10)]
    context = compose(Ingredients("word", [*crumbs, long]), 150)
    assert "long" in [part.reference for part in context.parts]
