"""When an HTTP endpoint asks to be called again, as its headers say it. Pure.

`retry-after` is a number of seconds or a date, `retry-after-ms` a number. Where endpoints tell of a budget instead, its
reset is a number of seconds, a duration such as `6m0s`, or a time.
"""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_YEAR_2001_S = 1e9  # a number beyond is no duration but a time since 1970, and beyond a thousand times that in ms


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return in how many seconds an endpoint asks to be called again; None when it does not say.

    Args:
        headers: of its answer, in lower case or of a mapping that ignores case.
        now: unix seconds.

    Returns:
        Negative for a date that is past.
    """
    milliseconds = number(headers.get("retry-after-ms", ""))
    return milliseconds / 1000 if milliseconds is not None else seconds_until(headers.get("retry-after", ""), now)


def seconds_until(said: str, now: float) -> float | None:
    """Return how many seconds it is until the time that a header names; negative for what is past, None for none."""
    said = said.strip()
    value = number(said)
    if value is not None:
        if value < _YEAR_2001_S:
            return value
        return (value / 1000 if value >= _YEAR_2001_S * 1000 else value) - now
    if _DURATION.fullmatch(said):
        return sum(float(count) * _SECONDS[unit] for count, unit in _PART.findall(said))
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now


def number(said: str) -> float | None:
    """Return the number that a header is; None when it is none."""
    said = said.strip()
    return float(said) if re.fullmatch(r"\d+(?:\.\d+)?", said, re.ASCII) else None
