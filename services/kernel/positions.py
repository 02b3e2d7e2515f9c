"""Source positions: text that compares as the source orders its changes, after a prefix "domain:".

The domain is everything up to the last colon, so that it may hold a source's name: `pg:crm:000…017.000…042`. The
text after it holds no colon and is written so that plain text comparison is the source's order (numbers are padded).
"""

import re

_DIGITS = re.compile(r"\d+", re.ASCII)
_WIDTH = 20  # digits of the largest unsigned 64-bit number


def newer(candidate: str, stored: str) -> bool:
    """Whether a change at `candidate` takes effect over what is stored at `stored`.

    Positions of one domain compare as text, and an equal one is not newer (it is a repetition). Where the domains
    differ, or one of the positions is empty, the source does not say: the order of arrival decides, so True.
    """
    colon = candidate.rfind(":") + 1
    if colon == 0 or colon != stored.rfind(":") + 1 or candidate[:colon] != stored[:colon]:
        return True
    return candidate > stored


def padded(number: int) -> str:
    """A number from 0 that compares as text; at most 20 digits keep the order."""
    return f"{number:020d}"


def natural(text: str) -> str:
    """Free text as the part after the domain: runs of digits compare as numbers, and colons become semicolons."""
    return _DIGITS.sub(lambda digits: digits[0].zfill(_WIDTH), text).replace(":", ";")
