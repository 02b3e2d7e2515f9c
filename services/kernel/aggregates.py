"""Mergeable summaries of integers: whatever was counted in can be taken out again, and no trace is left.

Sums are of integers, so they do not depend on an order; percentiles are exact for values rounded to DIGITS digits, so
a summary stays small whatever it is made of. Callers scale what they measure to integers (milliseconds, millionths).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

DIGITS = 3  # an error of less than 0.5 %


class Summary(NamedTuple):
    """A summary as it is read and kept; equal contents have equal summaries.

    Attributes:
        size: how many values.
        total: their sum.
        values, times: the rounded values in order, and how many of each; empty where percentiles are not needed.
    """

    size: int = 0
    total: int = 0
    values: Sequence[int] = ()
    times: Sequence[int] = ()

    def plain(self) -> tuple[Any, ...]:
        """The fields for JSON, without those that are empty: `Summary(*plain)` is an equal summary."""
        return self if self.values else self[:2]

    @property
    def mean(self) -> float | None:
        """The mean (for values of 0 and 1: the share of 1); None of nothing."""
        return self.total / self.size if self.size else None

    def percentile(self, per_mille: int) -> int | None:
        """The nearest-rank percentile: 500 is the median, 0 the minimum, 1000 the maximum; None of nothing.

        Raises:
            ValueError: this summary was made without its values.
        """
        if self.size == 0:
            return None
        if not self.values:
            raise ValueError("percentiles need a summary that keeps its values")
        rank = max(1, -(-self.size * per_mille // 1000))
        return self.values[bisect_left(list(accumulate(self.times)), rank)]


@dataclass(slots=True)
class Aggregate:
    """A summary in the making.

    Attributes:
        size, total: as in `Summary`.
        spread: rounded value to how many of it; None where percentiles are not needed.
    """

    size: int = 0
    total: int = 0
    spread: dict[int, int] | None = None

    @classmethod
    def of(cls, summary: Summary, *, with_spread: bool) -> "Aggregate":
        """Go on from a summary."""
        spread = dict(zip(summary.values, summary.times, strict=True)) if with_spread else None
        return cls(summary.size, summary.total, spread)

    def add(self, value: int, times: int = 1) -> None:
        """Count a value in; a negative `times` takes it out. Raises ValueError when it was not in."""
        self.size += times
        self.total += value * times
        if self.spread is not None:
            self._count(rounded(value), times)
        if self.size < 0:
            raise ValueError(f"{value} is taken out of a summary that does not hold it")

    def merge(self, other: Summary) -> None:
        """Count in everything that a summary holds."""
        self.size += other.size
        self.total += other.total
        if self.spread is not None:
            for value, times in zip(other.values, other.times, strict=True):
                self._count(value, times)

    def _count(self, value: int, times: int) -> None:
        if self.spread is None:
            return
        left = self.spread.get(value, 0) + times
        if left:
            self.spread[value] = left
        else:
            del self.spread[value]

    def summary(self) -> Summary:
        """What has been counted."""
        if not self.spread:
            return Summary(self.size, self.total)
        values = sorted(self.spread)
        return Summary(self.size, self.total, values, [self.spread[value] for value in values])


def rounded(value: int) -> int:
    """A value rounded to DIGITS decimal digits, halves away from zero."""
    size = abs(value)
    step = int(10 ** max(0, len(str(size)) - DIGITS))
    nearest = (size + step // 2) // step * step
    return nearest if value >= 0 else -nearest
