"""What an endpoint says of its rate limits, in the headers of its answers. Pure.

`retry-after` goes before all else (see `services.kernel.retry_after`). `x-ratelimit-limit-…`, `-remaining-…` and
`-reset-…` come for requests and for tokens.
"""

from collections.abc import Iterator, Mapping

from services.kernel.retry_after import number, retry_after_s, seconds_until

WAIT_MAX_S = 3600.0  # whatever is said, it is tried again after this
BACKFILL_LEAVES = 0.1  # the share of a budget that only what changes just now may use
_RESETS = ("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-reset", "ratelimit-reset")


def wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return for how long an endpoint asks to be left alone, in seconds; None when it does not say.

    Args:
        headers: of its answer, in lower case or of a mapping that ignores case.
        now: unix seconds.
    """
    said = retry_after_s(headers, now)
    if said is None:
        resets = [seconds_until(headers[name], now) for name in _RESETS if name in headers]
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
        limit = number(headers.get(f"x-ratelimit-limit-{kind}", ""))
        remaining = number(headers.get(f"x-ratelimit-remaining-{kind}", ""))
        reset = seconds_until(headers.get(f"x-ratelimit-reset-{kind}", ""), now)
        if limit is not None and remaining is not None and reset is not None:
            yield limit, remaining, reset
