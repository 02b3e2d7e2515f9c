"""What the windows of some observations hold, pure: counted in, taken out again, and corrected.

The table is a function of the observations alone, not of the order in which they came: sums are of integers,
percentiles are of rounded integers, and a session is derived from its members. So an observation can be taken out
again exactly (`WindowTable.put` replaces, and removes when it is given nothing). A window that was handed out and
changes later is handed out again with its next revision.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, assert_never

from services.kernel.aggregates import Aggregate, Summary
from services.kernel.windows import Hopping, Session, WindowSpec


class Entry(NamedTuple):
    """One observation: when, under which groups it counts, and its measured values; a measure may have several."""

    time_ms: int
    groups: tuple[str, ...]
    values: tuple[tuple[str, int], ...]


class CellKey(NamedTuple):
    """Names a window of a group: the window specification's name, the group, begin and end."""

    spec: str
    group: str
    start_ms: int
    end_ms: int


@dataclass(slots=True)
class Cell:
    """What a window of a group holds: a summary a measure that has any values, and how often it has been handed out."""

    measures: dict[str, Summary] = field(default_factory=dict)
    revision: int = 0

    def state(self) -> dict[str, list[Any]]:
        """The content for JSON; empty when it holds nothing."""
        return {name: list(self.measures[name].plain()) for name in sorted(self.measures)}

    @classmethod
    def restored(cls, state: Mapping[str, Sequence[Any]], revision: int) -> "Cell":
        """The cell of a state."""
        return cls({name: Summary(*summary) for name, summary in state.items()}, revision)


class Change(NamedTuple):
    """A window whose content differs from what was handed out last.

    Attributes:
        key: the window.
        before: the measures that differ, as they were; None where there was nothing.
        cell: the content now, with its next revision.
    """

    key: CellKey
    before: Mapping[str, Summary | None]
    cell: Cell


class WindowTable:
    """The windows of some observations: all of them, or the part that a batch touches.

    Of a part, the observations and the cells of every window that an old or a new entry is in must be restored first
    (into `observations` and `cells`); for sessions, every session within a gap of such an entry, with all its members.
    """

    def __init__(self, specs: Sequence[WindowSpec], with_spread: Collection[str] = ()) -> None:
        """Begin with an empty table.

        Args:
            specs: the windows that every observation is counted in.
            with_spread: the measures whose percentiles are wanted.
        """
        self._hopping = [(spec, spec.name) for spec in specs if isinstance(spec, Hopping)]
        self._sessions = [spec for spec in specs if isinstance(spec, Session)]
        self._with_spread = frozenset(with_spread)
        self.observations: dict[str, tuple[Entry, ...]] = {}
        self.cells: dict[CellKey, Cell] = {}
        self._open: dict[CellKey, dict[str, Aggregate]] = {}  # measures that are being counted, until they are settled
        self._members: dict[str, dict[tuple[str, int], Entry]] = defaultdict(dict)  # for sessions, by group
        self._stale: set[str] = set()  # groups whose sessions must be derived anew

    def put(self, name: str, entries: Sequence[Entry]) -> bool:
        """Make `entries` the observation of that name, in place of what it was before; nothing removes it.

        Returns:
            Whether anything changed.
        """
        old, new = self.observations.get(name, ()), tuple(entries)
        if old == new:
            return False
        for index, entry in enumerate(old):
            self._count(entry, -1)
            for group in entry.groups if self._sessions else ():
                self._members[group].pop((name, index), None)
                self._stale.add(group)
        for index, entry in enumerate(new):
            self._count(entry, 1)
            for group in entry.groups if self._sessions else ():
                self.restore_member(name, index, group, entry)
                self._stale.add(group)
        if new:
            self.observations[name] = new
        else:
            del self.observations[name]
        return True

    def restore_member(self, name: str, index: int, group: str, entry: Entry) -> None:
        """Tell of a member of a session that is in the table already: an entry of an observation, for one group."""
        self._members[group][name, index] = entry

    def _count(self, entry: Entry, times: int) -> None:
        for spec, spec_name in self._hopping:
            for window in spec.windows(entry.time_ms):
                for group in entry.groups:
                    self._add(CellKey(spec_name, group, *window), entry.values, times)

    def _add(self, key: CellKey, values: Iterable[tuple[str, int]], times: int) -> None:
        opened = self._open.setdefault(key, {})
        for measure, value in values:
            aggregate = opened.get(measure)
            if aggregate is None:
                cell = self.cells.get(key)
                known = Summary() if cell is None else cell.measures.get(measure, Summary())
                aggregate = opened[measure] = Aggregate.of(known, with_spread=measure in self._with_spread)
            aggregate.add(value, times)

    def settle(self) -> list[Change]:
        """Return what has changed since the last time, by key; each changed cell has its next revision."""
        self._derive_sessions()
        changes = []
        for key in sorted(self._open):
            cell = self.cells.setdefault(key, Cell())
            before = {}
            for measure, aggregate in self._open[key].items():
                known, summary = cell.measures.get(measure), aggregate.summary() if aggregate.size else None
                if summary == known:
                    continue
                before[measure] = known
                if summary is None:
                    del cell.measures[measure]
                else:
                    cell.measures[measure] = summary
            if before:
                cell.revision += 1
                changes.append(Change(key, before, cell))
        self._open.clear()
        self._stale.clear()
        return changes

    def _derive_sessions(self) -> None:
        """Count the sessions of touched groups anew; those that are no more become empty."""
        names = {spec.name for spec in self._sessions}
        for key, cell in self.cells.items() if self._stale else ():
            if key.spec in names and key.group in self._stale:
                self._open[key] = {
                    measure: Aggregate(spread={} if measure in self._with_spread else None) for measure in cell.measures
                }
        for group in self._stale:
            members = sorted((entry.time_ms, entry.values) for entry in self._members[group].values())
            for spec in self._sessions:
                self._derive(spec, group, members)

    def _derive(self, spec: Session, group: str, members: Sequence[tuple[int, tuple[tuple[str, int], ...]]]) -> None:
        name, left = spec.name, iter(members)
        member = next(left, None)
        for window in spec.windows(time_ms for time_ms, _ in members):
            key = CellKey(name, group, *window)
            while member is not None and member[0] < window.end_ms:
                self._add_anew(key, member[1])
                member = next(left, None)

    def _add_anew(self, key: CellKey, values: Iterable[tuple[str, int]]) -> None:
        """Count into a cell that begins from nothing."""
        opened = self._open.setdefault(key, {})
        for measure, value in values:
            if measure not in opened:
                opened[measure] = Aggregate(spread={} if measure in self._with_spread else None)
            opened[measure].add(value)


def cells_of(spec: WindowSpec, entry: Entry) -> Iterator[CellKey]:
    """The cells that an entry is certainly counted in; for a session, as if it were alone."""
    match spec:
        case Hopping():
            windows = spec.windows(entry.time_ms)
        case Session():
            windows = list(spec.windows([entry.time_ms]))
        case _:
            assert_never(spec)
    return (CellKey(spec.name, group, *window) for window in windows for group in entry.groups)
