"""Back-off schedules as pure arithmetic."""

import random


def backoff_s(attempt: int, *, base_s: float, cap_s: float, chance: float | None = None) -> float:
    """Return how long to wait before the next attempt: exponential, with full jitter.

    Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        attempt: how many attempts have failed, from 1.
        base_s: the longest wait after the first failure, in seconds.
        cap_s: the longest wait at all, in seconds.
        chance: a number in 0..1; drawn here when None.
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    return ceiling * (random.random() if chance is None else chance)  # noqa: S311 - no secret depends on it
