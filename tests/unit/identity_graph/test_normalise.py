"""Normalising: one form for every way of writing, and what says nothing about anybody."""

import phonenumbers
import pytest
from hypothesis import given, strategies as st

from services.identity_graph.normalise import code, email, junk_test, normaliser, number, phone, text
from services.identity_graph.settings import Format, Settings

SETTINGS = Settings()
CODES_OF_PLAIN_PHONES = ["1", "31", "32", "33", "34", "41", "43", "44", "46", "48", "49", "61", "81", "91"]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("  ada@example.com ", "ada@example.com"),
        ("Ada Lovelace <ada@example.com>", "ada@example.com"),
        ("mailto:ada@example.com", "ada@example.com"),
        ("ada@example.com.", "ada@example.com"),
        ("\uff21da@example.com", "ada@example.com"),  # a full-width letter
        ("ada\u200b@example.com", "ada@example.com"),  # an invisible space
        ("ada+news@example.com", "ada+news@example.com"),
        ("jos\u00e9@example.com", "jose\u0301@example.com".replace("e\u0301", "\u00e9")),
        ("ada@localhost", None),
        ("not an address", None),
        ("a@b@c.de", None),
        ("@example.com", None),
        ("ada@.com", None),
        ("", None),
    ],
)
def test_an_address_has_one_form(written: str, normal: str | None) -> None:
    assert email(written) == normal


def test_tags_and_dots_count_unless_the_domain_is_named() -> None:
    assert email("a.da+x@gmail.com") == "a.da+x@gmail.com"
    assert email("a.da+x@gmail.com", frozenset({"gmail.com"})) == "ada@gmail.com"
    assert email("a.da+x@example.com", frozenset({"gmail.com"})) == "a.da+x@example.com"


@pytest.mark.parametrize(
    ("written", "region", "normal"),
    [
        ("(415) 555-0134", "US", "+14155550134"),
        ("+1 415 555 0134", None, "+14155550134"),
        ("+44 (0)20 7946 0958", "US", "+442079460958"),
        ("020 7946 0958", "GB", "+442079460958"),
        ("070-174 06 12", "SE", "+46701740612"),
        ("+46 70 174 06 12 ext. 5", "SE", "+46701740612"),
        ("0000000", "SE", "0000000"),
        ("07911 123456", "US", "07911123456"),  # no number of that country: its digits, so that it links its like
        ("555-0134", None, "5550134"),
        ("\u0664\u0661\u0665 \u0665\u0665\u0665 \u0660\u0661\u0663\u0664", "US", "+14155550134"),
        ("12345", "US", None),
        ("none", "US", None),
    ],
)
def test_a_telephone_number_has_one_form(written: str, region: str | None, normal: str | None) -> None:
    assert phone(written, region) == normal


@given(st.sampled_from(CODES_OF_PLAIN_PHONES), st.text("0123456789", min_size=8, max_size=10))
def test_the_short_cut_for_plain_numbers_gives_what_the_library_gives(country: str, digits: str) -> None:
    written = f"+{country}{digits}"
    found = phone.__wrapped__(written, None)
    try:
        parsed = phonenumbers.parse(written, None)
    except phonenumbers.NumberParseException:
        assert found == written[1:]
        return
    if found is not None and found.startswith("+"):
        assert phonenumbers.is_possible_number(parsed)
        assert found == phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def test_codes_numbers_and_texts_fold_what_does_not_count() -> None:
    assert code(" Ab-12 3 ") == "ab-123"
    assert number("123-45 67.8/X") == "12345678x"
    assert text("  Ada   LOVELACE ") == "ada lovelace"
    assert (code("a\x00b\x1fc"), text("a\x00b\x1fc"), email("a\x00b@x.io")) == ("abc", "ab c", "ab@x.io")
    assert (code("  "), number("--"), text(" \t ")) == (None, None, None)


@pytest.mark.parametrize("format_", Format)
@given(st.text())
def test_what_is_normal_stays_as_it_is(format_: Format, written: str) -> None:
    normalise = normaliser(format_, SETTINGS, "US")
    once = normalise(written)
    assert once is None or normalise(once) == once


@pytest.mark.parametrize(
    ("format_", "value"),
    [
        (Format.EMAIL, "test@example.com"),
        (Format.EMAIL, "noreply@shop.example.com"),
        (Format.EMAIL, "team@corp.example.com"),
        (Format.EMAIL, "ada@invalid.com"),
        (Format.EMAIL, "kiosk@shop.example.com"),
        (Format.PHONE, "0000000"),
        (Format.PHONE, "+15555555555"),
        (Format.PHONE, "+11234567890"),
        (Format.CODE, "null"),
        (Format.CODE, "n/a"),
        (Format.CODE, "00000000-0000-0000-0000-000000000000"),
        (Format.CODE, "123456789"),
        (Format.NUMBER, "111111111"),
        (Format.TEXT, "unknown"),
    ],
)
def test_placeholders_and_shared_mailboxes_are_junk(format_: Format, value: str) -> None:
    assert junk_test(format_, frozenset({"kiosk@shop.example.com"}))(value)


@pytest.mark.parametrize(
    ("format_", "value"),
    [
        (Format.EMAIL, "ada@example.com"),
        (Format.EMAIL, "test.driver@example.com"),
        (Format.EMAIL, "x@example.com"),
        (Format.PHONE, "+442071234567"),
        (Format.PHONE, "+14155550134"),
        (Format.CODE, "sk123456"),
        (Format.CODE, "d-00000000"),
        (Format.CODE, "12"),
        (Format.NUMBER, "x1234567"),
    ],
)
def test_what_a_person_may_have_is_no_junk(format_: Format, value: str) -> None:
    assert not junk_test(format_)(value)
