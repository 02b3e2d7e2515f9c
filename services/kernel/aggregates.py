"""Mergeable summaries of integers: whatever was counted in can be taken out again, and no trace is left.

Sums are of integers, so they do not depend on an order; percentiles are exact for values rounded to DIGITS digits, so
a summary stays small whatever it is made of. Callers scale what they measure to integers (milliseconds, millionths).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DIGITS = 3  # an error of less than 0.5 %


@dataclass(slots=True)
class Aggregate:
    """A summary of integers that can be added to, taken from, and merged.

    Attributes:
        count: how many.
        total: their sum.
        spread: rounded value to how many of it, for percentiles, minimum and maximum; None where those are not needed.
    """

    count: int = 0
    total: int = 0
    spread: dict[int, int] | None = None

    def add(self, value: int, times: int = 1) -> None:
        """Count a value in; a negative `times` takes it out. Raises ValueError when it was not in."""
        self.count += times
        self.total += value * times
        if self.spread is not None:
            _count_in(self.spread, rounded(value), times)
        if self.count < 0:
            raise ValueError(f"{value} is taken out of a window that does not hold it")

    def merge(self, other: "Aggregate") -> None:
        """Count in everything that another aggregate holds."""
        self.count += other.count
        self.total += other.total
        if self.spread is not None:
            for value, times in (other.spread or {}).items():
                _count_in(self.spread, value, times)

    def mean(self) -> float | None:
        """The mean (for values of 0 and 1: the share of 1); None of nothing."""
        return self.total / self.count if self.count else None

    def percentile(self, per_mille: int) -> int | None:
        """The nearest-rank percentile: 500 is the median, 0 the minimum, 1000 the maximum; None of nothing.

        Raises:
            ValueError: this aggregate keeps no spread.
        """
        if self.spread is None:
            raise ValueError("percentiles need an aggregate that keeps the spread of its values")
        rank = max(1, -(-self.count * per_mille // 1000))
        for value in sorted(self.spread):
            rank -= self.spread[value]
            if rank <= 0:
                return value
        return None

    def state(self) -> list[Any]:
        """What `restored` makes the same aggregate from; equal aggregates have equal states."""
        return [self.count, self.total, *([] if self.spread is None else [sorted(self.spread.items())])]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> "Aggregate":
        """The aggregate of a state, also after it has been through JSON."""
        return cls(state[0], state[1], dict(state[2]) if len(state) > 2 else None)


def rounded(value: int) -> int:
    """A value rounded to DIGITS decimal digits, halves away from zero."""
    size = abs(value)
    step = int(10 ** max(0, len(str(size)) - DIGITS))
    nearest = (size + step // 2) // step * step
    return nearest if value >= 0 else -nearest


def _count_in(spread: dict[int, int], value: int, times: int) -> None:
    left = spread.get(value, 0) + times
    if left:
        spread[value] = left
    else:
        spread.pop(value, None)
