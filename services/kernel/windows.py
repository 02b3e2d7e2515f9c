"""Event-time windows as pure values: which windows a moment is in, and how far time has come.

What a window holds is in `window_table`. Nothing here depends on the order in which events come, but for what is too
late; and that goes by the order within one partition of the log, which a replay finds again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Window(NamedTuple):
    """A stretch of event time, in milliseconds since the epoch; the end is exclusive."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Hopping:
    """Windows of one size that begin every `hop_ms`; they overlap where the hop is smaller than the size."""

    size_ms: int
    hop_ms: int

    @property
    def name(self) -> str:
        """The form in which settings and requests write it, for example 300s/60s."""
        hop = "" if self.hop_ms == self.size_ms else f"/{_seconds(self.hop_ms)}"
        return _seconds(self.size_ms) + hop

    def windows(self, time_ms: int) -> list[Window]:
        """The windows that a moment is in, newest first."""
        newest = time_ms // self.hop_ms * self.hop_ms
        starts = range(newest, time_ms - self.size_ms, -self.hop_ms)
        return [Window(start, start + self.size_ms) for start in starts]


def tumbling(size_ms: int) -> Hopping:
    """Windows of one size that follow one another without overlap."""
    return Hopping(size_ms, size_ms)


@dataclass(frozen=True, slots=True)
class Session:
    """Windows that end once nothing has happened for `gap_ms`; they grow, merge and fall apart with their members."""

    gap_ms: int

    @property
    def name(self) -> str:
        """The form in which settings and requests write it, for example session 1800s."""
        return f"session {_seconds(self.gap_ms)}"

    def windows(self, times_ms: Iterable[int]) -> Iterator[Window]:
        """The sessions of moments, oldest first; each ends a gap after its last moment."""
        start = last = None
        for time_ms in sorted(times_ms):
            if start is None or last is None:
                start = time_ms
            elif time_ms - last >= self.gap_ms:
                yield Window(start, last + self.gap_ms)
                start = time_ms
            last = time_ms
        if start is not None and last is not None:
            yield Window(start, last + self.gap_ms)


WindowSpec = Hopping | Session


def parse(text: str) -> WindowSpec:
    """Read a window: 60s (tumbling), 300s/60s (size/hop) or session 1800s (gap).

    Raises:
        ValueError: it is none, or the hop does not divide the size.
    """
    try:
        if text.startswith("session "):
            return Session(_milliseconds(text.removeprefix("session ")))
        size, _, hop = text.partition("/")
        spec = Hopping(_milliseconds(size), _milliseconds(hop or size))
    except ValueError:
        raise ValueError(f"{text!r} is not a window: write 60s, 300s/60s (size/hop) or session 1800s (gap)") from None
    if spec.size_ms % spec.hop_ms:
        raise ValueError(f"window {text!r}: the size must be a multiple of the hop")
    return spec


def _milliseconds(text: str) -> int:
    seconds = text.strip().removesuffix("s")
    if not (seconds.isascii() and seconds.isdigit()) or int(seconds) == 0:
        raise ValueError(text)
    return int(seconds) * 1000


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds / 1000}s"


@dataclass(frozen=True, slots=True)
class EventTime:
    """How time is told from events. It needs no clock: where nothing happens, time stands still.

    Attributes:
        out_of_order_ms: how far behind the newest event of its partition an event may usually come.
        idle_after_ms: a partition that is so far behind the newest of all does not hold the others back.
        allowed_lateness_ms: how far behind its partition's watermark an event is still counted; None is no limit.
    """

    out_of_order_ms: int = 0
    idle_after_ms: int = 300_000
    allowed_lateness_ms: int | None = None

    def watermark(self, newest_ms: Mapping[int, int]) -> int | None:
        """The time up to which everything has probably been seen; None before the first event.

        Args:
            newest_ms: partition to the time of its newest event.
        """
        if not newest_ms:
            return None
        newest = max(newest_ms.values())
        return min(time for time in newest_ms.values() if newest - time <= self.idle_after_ms) - self.out_of_order_ms

    def is_too_late(self, time_ms: int, newest_ms: int | None) -> bool:
        """Whether an event comes too late to be counted.

        Args:
            time_ms: when it happened.
            newest_ms: the newest event that its own partition held before it. Other partitions have no say: which of
                them is read first is chance, and a replay must find the same events too late.
        """
        if newest_ms is None or self.allowed_lateness_ms is None:
            return False
        return time_ms + self.allowed_lateness_ms < newest_ms - self.out_of_order_ms
