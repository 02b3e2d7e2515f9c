"""Words, sentences and token counts."""

import itertools

import pytest
from hypothesis import given, strategies as st

from services.rag_gateway.words import estimate_tokens, folded, sentences, term_of, terms, words


def cut(text: str) -> list[str]:
    return [text[span.start : span.end] for span in sentences(text)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cancellations", "cancelled"),
        ("Refunds", "refunded"),
        ("Norðurljós", "nordurljos"),
        ("hotel's", "hotels"),
        ("MT-4471-0932", "mt44710932"),
        ("e-mail", "email"),
        ("Müller", "muller"),
    ],
)
def test_forms_of_a_word_are_the_same_term(one: str, other: str) -> None:
    assert term_of(one) == term_of(other)


def test_stop_words_are_left_out_and_compounds_come_apart() -> None:
    assert terms("When do I check-in at the 24-hour desk?") == ["check", "24", "hour", "desk"]


def test_codes_dates_and_times_stay_whole() -> None:
    assert terms("MT101 on 2027-03-12 at 06:40 for 12.50") == ["mt101", "20270312", "06:40", "12.50"]


@given(st.text())
def test_every_word_stands_where_it_says(text: str) -> None:
    for word in words(text):
        assert term_of(text[word.start : word.end]) == word.term


@given(st.text())
def test_sentences_are_in_order_apart_and_hold_every_letter_outside_of_marks(text: str) -> None:
    spans = sentences(text)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    assert all(text[span.start : span.end].strip() for span in spans)


def test_sentences_end_at_stops_but_not_at_abbreviations_and_numbers() -> None:
    assert cut("Ask e.g. Mr. Smith at No. 5. It costs 9.50 euros! Really?") == [
        "Ask e.g. Mr. Smith at No. 5.",
        "It costs 9.50 euros!",
        "Really?",
    ]


def test_a_wrapped_line_goes_on_and_a_short_or_marked_one_does_not() -> None:
    text = (
        "The full price goes back to the card, account or voucher that\npaid for it.\n\n"
        "- Skis: 40 euros\n- Golf bags: 40 euros\nname: Ada\ncity: Oslo"
    )
    assert cut(text) == [
        "The full price goes back to the card, account or voucher that\npaid for it.",
        "Skis: 40 euros",
        "Golf bags: 40 euros",
        "name: Ada",
        "city: Oslo",
    ]


def test_a_lead_of_a_few_words_stays_with_its_sentence() -> None:
    assert cut("- **Illness or injury.** We refund 90 %. Call us.") == [
        "**Illness or injury.** We refund 90 %.",
        "Call us.",
    ]


def test_token_counts_grow_with_the_text_and_are_close_to_what_models_count() -> None:
    prose = "You may cancel any booking free of charge within 24 hours of making it, as long as check-in is far away."
    assert 20 <= estimate_tokens(prose) <= 32  # byte-pair vocabularies need about 24
    assert estimate_tokens("") == 0
    assert estimate_tokens("北海道") == 3


@given(st.text(), st.text())
def test_token_counts_never_shrink_when_text_is_added(one: str, other: str) -> None:
    assert estimate_tokens(f"{one} {other}") == estimate_tokens(one) + estimate_tokens(other)


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert folded(folded(text)) == folded(text)
