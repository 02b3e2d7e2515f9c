"""Identifiers as people write them in, one form for each out; and which of them are junk. Pure."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import assert_never

from services.identity_graph.settings import Format, Settings

REMEMBERED_PHONES = 65_536
LENGTH_MAX = 320  # the longest e-mail address; nothing that identifies a person is longer
PHONE_DIGITS_MIN = 7


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


PLACEHOLDERS = word_set("""
    anon anonymous blank default dummy empty example fake guest invalid missing n/a nan nil no_email nobody noemail
    nomail none noone nophone null sample test tester testing todo undefined unknown unset void
""")
WORDS_FOR_NOTHING = PLACEHOLDERS | word_set("""
    - -- --- . ? 0 -1 na n.a. #n/a nill x xx xxx xxxx tbd tba false true no yes (none) (null) <null> [null] \\n
    not_available notavailable notprovided notapplicable
""")
MAILBOXES_OF_NOBODY = PLACEHOLDERS | word_set("""
    abuse admin administrator billing booking bookings contact customerservice do-not-reply donotreply enquiries
    hello help helpdesk hostmaster info inquiries jobs mail mailer-daemon marketing no-email no-reply no.email no_reply
    noreply office postmaster reception reservations root sales service support team webmaster
""")
DOMAINS_OF_NOBODY = frozenset(("invalid", "localhost", "none", "noemail", "no-email", "noreply", "null", "unknown"))

_DIGITS_IN_ORDER = frozenset(
    run[:length]
    for run in ("12345678901234567890", "01234567890123456789", "98765432109876543210", "87654321")
    for length in range(6, len(run) + 1)
)
# What needs no further look; a third of all that is normalised are addresses like these.
_PLAIN_EMAIL = re.compile(r"[a-z0-9._+-]{1,64}@(?:[a-z0-9-]+\.)+[a-z]{2,24}", re.ASCII)
_PUNCTUATION = re.compile(r"[\W_]+")
_PHONE_FILLING = re.compile(r"[\s().\-/\u00ad\u2010-\u2015]+")
# Numbers that the phone library would give back as they are (a test asks it): most of those that systems store. It
# takes 10 microseconds a number, which is as much as everything else about a change.
_PLAIN_PHONE = re.compile(
    r"\+(?:1[2-9]\d{9}|(?:44|49|31|43|46|48|81|91)[1-9]\d{8,9}|(?:32|33|34|41)[1-9]\d{8}|61[2-9]\d{8})", re.ASCII
)

_INVISIBLE = frozenset(("Cc", "Cf"))  # control and format characters: nobody means them, and some stores cut at them

Normaliser = Callable[[str], str | None]
"""Takes a value as text; returns its one form, or None when it is none of its kind."""
Test = Callable[[str], bool]


def normaliser(format_: Format, settings: Settings, region: str) -> Normaliser:
    """Return the function that normalises the values of a format.

    Args:
        format_: the format.
        settings: the settings.
        region: the country (two letters) of telephone numbers that do not name theirs; empty for none.
    """
    match format_:
        case Format.EMAIL:
            ignored = settings.email_tags_ignored
            return lambda value: email(value, ignored)
        case Format.PHONE:
            country = region.upper() or None
            return lambda value: phone(value, country)
        case Format.CODE:
            return code
        case Format.NUMBER:
            return number
        case Format.TEXT:
            return text
        case _:
            assert_never(format_)


def email(value: str, tags_ignored: frozenset[str] = frozenset()) -> str | None:
    """Return an address in lower case, without spaces, `mailto:` and a display name; None when it is none."""
    if _PLAIN_EMAIL.fullmatch(plain := value.lower()) and not tags_ignored:
        return plain
    if value.endswith(">") and "<" in value:
        value = value[value.rindex("<") + 1 : -1]
    found = _without_spaces(value).removeprefix("mailto:")
    local, at, domain = found.rpartition("@")
    domain = domain.rstrip(".")
    if not (at and local and "." in domain) or "@" in local or domain[0] == "." or len(found) > LENGTH_MAX:
        return None
    if domain in tags_ignored:
        local = local.partition("+")[0].replace(".", "")
    return f"{local}@{domain}" if local else None


@lru_cache(REMEMBERED_PHONES)
def phone(value: str, region: str | None) -> str | None:
    """Return a number in E.164 form; where it is none in any country, its digits; None when there are too few.

    Args:
        value: the number as it is written.
        region: the country (two letters, upper case) of numbers that do not name theirs.
    """
    if _PLAIN_PHONE.fullmatch(plain := _PHONE_FILLING.sub("", value)):
        return plain
    digits = "".join(str(unicodedata.digit(c)) for c in value if c.isdigit())
    if _is_filler(digits):
        return digits or None  # as it is: a country's code before it would make it look like a number
    import phonenumbers  # slow to import, and not everybody has telephone numbers

    try:
        parsed = phonenumbers.parse(unicodedata.normalize("NFKC", value), region)
        if phonenumbers.is_possible_number(parsed):
            parsed.extension = None
            return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
    except phonenumbers.NumberParseException:
        pass  # free text, or a number without its country
    if not PHONE_DIGITS_MIN <= len(digits) <= LENGTH_MAX:
        return None
    return digits if digits == value else phone(digits, region)  # without what stood between, it may be a number


def code(value: str) -> str | None:
    """Return a code in lower case and without spaces; None when nothing is left."""
    found = _without_spaces(value)
    return found if found and len(found) <= LENGTH_MAX else None


def number(value: str) -> str | None:
    """Return a number of a document in lower case, without spaces and punctuation; None when nothing is left."""
    found = _PUNCTUATION.sub("", _folded(value))
    return found if found and len(found) <= LENGTH_MAX else None


def text(value: str) -> str | None:
    """Return a text in lower case with single spaces; None when nothing is left."""
    return " ".join(_folded(value).split())[:LENGTH_MAX].rstrip() or None


def _without_spaces(value: str) -> str:
    found = "".join(_folded(value).split())
    # Without the space before it, an accent goes on the letter that it comes after.
    return found if found.isascii() else unicodedata.normalize("NFKC", found)


def _folded(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value.strip().lower()
    # Lower case may compose anew, so that one more round is needed for a form that stays as it is.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).lower())
    return "".join(c for c in folded if c.isspace() or unicodedata.category(c) not in _INVISIBLE).strip()


def junk_test(format_: Format, junk: frozenset[str] = frozenset()) -> Test:
    """Return the function that tells whether a normalised value of a format says nothing about a person.

    Args:
        format_: the format.
        junk: values that are junk beside the built-in placeholders and shared mailboxes.
    """
    words = WORDS_FOR_NOTHING | junk
    match format_:
        case Format.EMAIL:
            return lambda value: value in words or _is_mailbox_of_nobody(value)
        case Format.PHONE:
            return lambda value: value in junk or _is_nobodys_phone(value)
        case Format.CODE | Format.NUMBER:
            return lambda value: value in words or _is_filler(value if value.isalnum() else _PUNCTUATION.sub("", value))
        case Format.TEXT:
            return lambda value: value in words
        case _:
            assert_never(format_)


def _is_mailbox_of_nobody(address: str) -> bool:
    local, _, domain = address.partition("@")
    return local in MAILBOXES_OF_NOBODY or domain.partition(".")[0] in DOMAINS_OF_NOBODY


def _is_nobodys_phone(value: str) -> bool:
    tail = value[-PHONE_DIGITS_MIN:]
    return (tail[0] == tail[-1] and _is_repetition(tail)) or value[-10:] in _DIGITS_IN_ORDER


def _is_filler(value: str) -> bool:
    """Tell whether a value is one character again and again, or so many digits in their order as nobody is given."""
    return _is_repetition(value) or value in _DIGITS_IN_ORDER


def _is_repetition(value: str) -> bool:
    return value[:1] == value[-1:] and len(value) not in {1, 2} and value == value[:1] * len(value)
