"""Citations: read from a stream however it is cut, and never verified when they should not be."""

from hypothesis import given, strategies as st

from headwater.embedder.v1 import service_pb2 as embedder_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.rag_gateway.citations import CitationReader, Draft, drafted, drafted_from, locate, verified
from services.rag_gateway.context import Ingredients, compose
from services.rag_gateway.extract import Quote

POLICY = "Refunds\n\nYou may cancel free of charge within 24 hours. We send the money within **7 days**."
HOTEL = "Casa do Alecrim is a townhouse in Lisbon. Breakfast is served until 11:00."
TEXTS: dict[tuple[str, str], str | None] = {("policy", "v1"): POLICY, ("hotel", "v1"): HOTEL}


def context() -> events_pb2.Context:
    hits = [
        embedder_pb2.Hit(document_id="policy", version="v1", text=POLICY[9:], start=9, end=len(POLICY), score=1.0),
        embedder_pb2.Hit(
            document_id="hotel", version="v1", text=HOTEL, end=len(HOTEL), score=0.5, live_json='{"rooms_left": 4}'
        ),
    ]
    return compose(Ingredients("q", hits), 1000)


def read(*pieces: str) -> CitationReader:
    reader = CitationReader()
    shown = "".join([*(reader.feed(piece) for piece in pieces), reader.close()])
    assert shown == reader.text
    return reader


def checked(said: str, texts: dict[tuple[str, str], str | None] | None = None) -> list[Draft]:
    reader = read(said)
    return [
        verified(draft, TEXTS if texts is None else texts) for draft in drafted(reader.text, reader.mentions, context())
    ]


SAID = 'Free for a day [1 "within 24 hours"]. It is in Lisbon [2: "a townhouse in Lisbon"][1, 2]. See [note] and [2027.'


@given(st.lists(st.integers(0, len(SAID)), max_size=20).map(sorted))
def test_however_the_stream_is_cut_the_answer_and_its_marks_are_the_same(cuts: list[int]) -> None:
    pieces = [SAID[a:b] for a, b in zip([0, *cuts], [*cuts, len(SAID)], strict=True)]
    reader = read(*pieces)
    whole = read(SAID)
    assert reader.text == whole.text == "Free for a day [1]. It is in Lisbon [2][1][2]. See [note] and [2027."
    assert reader.mentions == whole.mentions
    assert [(m.number, m.quote) for m in whole.mentions] == [
        (1, "within 24 hours"), (2, "a townhouse in Lisbon"), (1, ""), (2, "")
    ]  # fmt: skip
    assert all(whole.text[m.place :].startswith(f"[{m.number}]") for m in whole.mentions)


@given(st.text(alphabet='[]"12, ab', max_size=80), st.integers(1, 5))
def test_no_word_of_a_model_is_lost_but_the_copied_ones(said: str, size: int) -> None:
    reader = read(*(said[i : i + size] for i in range(0, len(said), size)))
    if '"' not in said:
        assert "".join(reader.text.split()).count("a") == said.count("a")
    assert reader.text == read(said).text


def test_a_true_citation_is_verified_and_resolves_to_its_place() -> None:
    (draft,) = checked('You have a day [1 "free of charge within 24 hours"].')
    citation = draft.citation
    assert citation.verified
    assert not draft.problem
    assert POLICY[citation.start : citation.end] == citation.quote == "free of charge within 24 hours"
    assert (citation.document_id, citation.version, citation.number) == ("policy", "v1", 1)


def test_emphasis_and_typography_may_differ_and_the_quote_is_the_documents() -> None:
    (draft,) = checked('Soon [1 "the money  within 7 days."].')
    assert draft.citation.verified
    assert draft.citation.quote == "the money within **7 days"


def test_a_fabricated_quote_is_caught() -> None:
    (draft,) = checked('All is free [1 "free of charge within 99 hours"].')
    assert not draft.citation.verified
    assert "does not hold" in draft.problem


def test_a_quote_of_another_part_is_caught() -> None:
    (draft,) = checked('In Lisbon [1 "a townhouse in Lisbon"].')
    assert not draft.citation.verified


def test_a_part_that_is_not_there_is_caught() -> None:
    (draft,) = checked('So they say [7 "free"].')
    assert not draft.citation.verified
    assert "[7] names no part" in draft.problem


def test_a_version_that_has_gone_is_caught() -> None:
    (draft,) = checked('A day [1 "within 24 hours"].', {("policy", "v1"): None})
    assert not draft.citation.verified
    assert "changed or gone" in draft.problem


def test_a_version_that_does_not_hold_the_words_is_caught() -> None:
    (draft,) = checked('A day [1 "within 24 hours"].', {("policy", "v1"): "something else"})
    assert not draft.citation.verified


def test_a_mark_without_words_is_given_the_sentence_that_supports_it() -> None:
    (draft,) = checked("You may cancel free of charge within 24 hours [1].")
    assert draft.citation.verified
    assert "24 hours" in draft.citation.quote


def test_a_mark_without_words_whose_part_says_something_else_is_caught() -> None:
    (draft,) = checked("Penguins live in Antarctica [2].")
    assert not draft.citation.verified
    assert "does not say" in draft.problem


def test_words_of_live_columns_are_verified_and_have_no_place_in_the_text() -> None:
    (draft,) = checked('Four rooms [2 "rooms left: 4"].')
    assert draft.citation.verified
    assert (draft.citation.start, draft.citation.end) == (0, 0)


def test_a_short_quote_proves_nothing() -> None:
    (draft,) = checked('Penguins live in Antarctica [2 "is"].')
    assert not draft.citation.verified


@given(st.data())
def test_true_quotes_raise_no_alarm_and_shifted_ones_always_do(data: st.DataObject) -> None:
    part = data.draw(st.sampled_from([p for p in context().parts if p.number]))
    text = POLICY[9:] if part.reference == "policy" else HOTEL
    start = data.draw(st.integers(0, len(text) - 12))
    quote = text[start : start + data.draw(st.integers(12, 40))].strip()
    if '"' in quote or "\n" in quote or sum(c.isalnum() for c in quote) < 4:
        return
    (true,) = checked(f'Said [{part.number} "{quote}"].')
    assert true.citation.verified
    (false,) = checked(f'Said [{part.number} "{quote[:6]}zzz{quote[6:]}"].')
    assert not false.citation.verified


def test_the_same_words_are_cited_once() -> None:
    assert len(checked('A [1 "within 24 hours"] and b [1 "within 24 hours"].')) == 1


def test_the_quotes_of_an_extract_are_checked_like_all_others() -> None:
    quote = "We send the money within **7 days**."
    (draft,) = drafted_from([Quote(1, quote, POLICY[9:].index(quote))], context())
    draft = verified(draft, TEXTS)
    assert draft.citation.verified
    assert POLICY[draft.citation.start : draft.citation.end] == quote


@given(st.text(min_size=1), st.text(), st.text())
def test_what_stands_in_a_text_is_located(quote: str, before: str, after: str) -> None:
    span = locate(quote, before + quote + after)
    assert span is not None
    assert (before + quote + after)[span.start : span.end] == quote
