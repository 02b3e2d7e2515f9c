"""What an endpoint says of its rate limits, in the headers of its answers. Pure.

`retry-after` is a number of seconds or a date, `retry-after-ms` a number. `x-ratelimit-limit-…`, `-remaining-…` and
`-reset-…` come for requests and for tokens; a reset is a number of seconds, a duration such as `6m0s`, or a time.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

WAIT_MAX_S = 3600.0  # whatever is said, it is tried again after this
BACKFILL_LEAVES = 0.1  # the share of a budget that only what changes just now may use
_RESETS = ("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-reset", "ratelimit-reset")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_YEAR_2001_S = 1e9  # a number beyond is no duration but a time since 1970, and beyond a thousand times that in ms


def wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return for how long an endpoint asks to be left alone, in seconds; None when it does not say.

    Args:
        headers: of its answer, in lower case or of a mapping that ignores case.
        now: unix seconds.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    said = milliseconds / 1000 if milliseconds is not None else _moment_s(headers.get("retry-after", ""), now)
    if said is None:
        resets = [_moment_s(headers[name], now) for name in _RESETS if name in headers]
        said = max((reset for reset in resets if reset is not None), default=None)
    # Nothing, or a date that is past, says that it may be tried again, but not when that helps.
    return min(said, WAIT_MAX_S) if said is not None and said > 0 else None


def backfill_wait_s(headers: Mapping[str, str], now: float) -> float:
    """Return for how long backfill leaves what remains of the endpoint's budget to live texts, in seconds."""
    waits = [0.0]
    for limit, remaining, reset in _budgets(headers, now):
        if limit > 0 and remaining < limit * BACKFILL_LEAVES:
            waits.append(min(reset, WAIT_MAX_S))
    return max(waits)


def _budgets(headers: Mapping[str, str], now: float) -> Iterator[tuple[float, float, float]]:
    """The limit, what remains of it, and the seconds until it is whole again, of each budget that is told."""
    for kind in ("requests", "tokens"):
        limit = _number(headers.get(f"x-ratelimit-limit-{kind}", ""))
        remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}", ""))
        reset = _moment_s(headers.get(f"x-ratelimit-reset-{kind}", ""), now)
        if limit is not None and remaining is not None and reset is not None:
            yield limit, remaining, reset


def _moment_s(said: str, now: float) -> float | None:
    """How long it is until then, in seconds; negative for what is past."""
    said = said.strip()
    number = _number(said)
    if number is not None:
        if number < _YEAR_2001_S:
            return number
        return (number / 1000 if number >= _YEAR_2001_S * 1000 else number) - now
    if _DURATION.fullmatch(said):
        return sum(float(count) * _SECONDS[unit] for count, unit in _PART.findall(said))
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now


def _number(said: str) -> float | None:
    said = said.strip()
    return float(said) if re.fullmatch(r"\d+(?:\.\d+)?", said, re.ASCII) else None
