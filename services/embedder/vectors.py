"""The vectors in memory: an exact index, a cache of what the database holds.

Exact search over float32 is the embedded mode's choice up to about 200,000 chunks (300 MB, 30 ms a query): nothing to
build, nothing to tune, every filter applied before the best are chosen. Beyond that, use a store made for it.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from services.embedder.ports import Vector

_CAPACITY_MIN = 256
_FLOAT_BYTES = 4
# Below this share of rows that pass the filter it is cheaper to gather them than to compute all.
_GATHER_SHARE = 0.25


def cosines(query: Vector, vectors: Sequence[Vector]) -> list[float]:
    """Return the cosines of vectors of length 1 to another one, the same on every engine.

    Engines compute in 32 bits, and in an order of their own: what they return finds candidates, this ranks them.
    """
    import numpy as np

    if not vectors:
        return []
    exact: list[float] = (np.stack(vectors).astype(np.float64) @ query.astype(np.float64)).tolist()
    return exact


class Entry(NamedTuple):
    """A chunk in the index: its id, the group of readers who may find it, and its vector as float32 bytes."""

    chunk: int
    group: int
    vector: bytes


class VectorIndex:
    """Finds the nearest vectors among those of given groups. May be used from several threads.

    Attributes:
        dimensions: the length of the vectors; 0 until the first one tells.
    """

    def __init__(self, dimensions: int = 0) -> None:
        self.dimensions = dimensions
        self._lock = threading.Lock()
        self._size = 0
        self._row_of: dict[int, int] = {}
        self._group_sizes: Counter[int] = Counter()
        self._matrix: Any = None  # (capacity, dimensions) float32; only the first `_size` rows count
        self._chunks: Any = None  # (capacity,) int64
        self._groups: Any = None  # (capacity,) int64

    def __len__(self) -> int:
        return self._size

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._row_of

    def put(self, entries: Iterable[Entry]) -> None:
        """Add chunks, or replace those that are there."""
        import numpy as np

        with self._lock:
            for chunk, group, vector in entries:
                row = self._row_of.get(chunk)
                if row is None:
                    self.dimensions = self.dimensions or len(vector) // _FLOAT_BYTES
                    row = self._new_row(chunk)
                else:
                    self._leave(self._groups[row])
                self._matrix[row] = np.frombuffer(vector, np.float32)
                self._groups[row] = group
                self._group_sizes[group] += 1

    def remove(self, chunks: Iterable[int]) -> None:
        """Take chunks out; unknown ones are ignored. The last row fills each gap."""
        with self._lock:
            for chunk in chunks:
                row = self._row_of.pop(chunk, None)
                if row is None:
                    continue
                self._leave(self._groups[row])
                last = self._size - 1
                if row != last:
                    self._matrix[row], self._groups[row] = self._matrix[last], self._groups[last]
                    moved = int(self._chunks[last])
                    self._chunks[row], self._row_of[moved] = moved, row
                self._size = last

    def regroup(self, chunks: Iterable[int], group: int) -> None:
        """Change who may find chunks."""
        with self._lock:
            for chunk in chunks:
                row = self._row_of.get(chunk)
                if row is not None:
                    self._leave(self._groups[row])
                    self._groups[row] = group
                    self._group_sizes[group] += 1

    def clear(self) -> None:
        """Take everything out."""
        with self._lock:
            self._size = 0
            self._row_of.clear()
            self._group_sizes.clear()
            self._matrix = self._chunks = self._groups = None

    def search(self, query: Vector, groups: Collection[int], count: int) -> list[tuple[int, float]]:
        """Return the chunks nearest to a vector of length 1, with their cosines, best first.

        Args:
            query: `(dimensions,) float32`.
            groups: only chunks of these are looked at.
            count: at most so many.
        """
        import numpy as np

        with self._lock:
            allowed = sum(self._group_sizes[group] for group in groups)
            count = min(count, allowed)
            if count <= 0:
                return []
            rows = None
            if allowed < self._size:
                rows = np.flatnonzero(np.isin(self._groups[: self._size], list(groups)))
            if rows is not None and allowed < self._size * _GATHER_SHARE:
                scores = self._matrix[rows] @ query
            else:
                scores = self._matrix[: self._size] @ query
                scores = scores if rows is None else scores[rows]
            best = np.argpartition(-scores, count - 1)[:count]
            best = best[np.argsort(-scores[best], kind="stable")]
            chosen = best if rows is None else rows[best]
            return list(zip(self._chunks[chosen].tolist(), scores[best].tolist(), strict=True))

    def vectors(self, chunks: Sequence[int]) -> Mapping[int, Vector]:
        """Return the vectors of chunks; unknown ones are left out."""
        with self._lock:
            known = [chunk for chunk in chunks if chunk in self._row_of]
            return (
                dict(zip(known, self._matrix[[self._row_of[chunk] for chunk in known]], strict=True)) if known else {}
            )

    def _new_row(self, chunk: int) -> int:
        import numpy as np

        if self._matrix is None:
            self._matrix = np.empty((_CAPACITY_MIN, self.dimensions), np.float32)
            self._chunks, self._groups = np.empty(_CAPACITY_MIN, np.int64), np.empty(_CAPACITY_MIN, np.int64)
        elif self._size == len(self._matrix):
            capacity = 2 * self._size
            self._matrix = np.resize(self._matrix, (capacity, self.dimensions))
            self._chunks, self._groups = np.resize(self._chunks, capacity), np.resize(self._groups, capacity)
        row = self._size
        self._chunks[row], self._row_of[chunk] = chunk, row
        self._size += 1
        return row

    def _leave(self, group: int) -> None:
        self._group_sizes[int(group)] -= 1
