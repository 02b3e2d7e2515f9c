"""A stream of bytes cut into numbered batches of records: lines, or the elements of a JSON array. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from services.kernel.errors import InvalidInputError

BATCH_RECORDS = 1_000
BATCH_BYTES = 1 << 20
RECORD_BYTES_MAX = 16 << 20  # what fits into one request with room to spare


class Batch(NamedTuple):
    """Records in order, or one that is too long to be sent.

    Attributes:
        first: the number of the first of them, from 1.
        records: the records; none when the one with the number `first` is too long.
    """

    first: int
    records: Sequence[bytes]


def batches(records: Iterable[bytes], first: int, record_bytes_max: int = RECORD_BYTES_MAX) -> Iterator[Batch]:
    """Group numbered records so that a batch is one request.

    Args:
        records: the records, in order.
        first: the number of the first.
        record_bytes_max: a longer record is left out, and told of.
    """
    pending: list[bytes] = []
    size, number = 0, first
    for number, record in enumerate(records, first):
        too_long = len(record) > record_bytes_max
        if pending and (too_long or len(pending) >= BATCH_RECORDS or size + len(record) > BATCH_BYTES):
            yield Batch(number - len(pending), pending)
            pending, size = [], 0
        if too_long:
            yield Batch(number, ())
        else:
            pending.append(record)
            size += len(record)
    if pending:
        yield Batch(number + 1 - len(pending), pending)


def array_batches(elements: Sequence[Any]) -> Iterator[Batch]:
    """The elements of a JSON array; an element's number takes the place of its line.

    Raises:
        InvalidInputError: an element is nested too deeply to be written again.
    """
    try:
        yield from batches(map(orjson.dumps, elements), 1)
    except orjson.JSONEncodeError as error:
        raise InvalidInputError(f"an element of the array cannot be sent ({error}): nest less deeply") from error


class LineCutter:
    """Cuts chunks of bytes into batches of whole lines, without their ends.

    It holds no more than the longest line that may be sent; a longer one is left out, and told of.
    """

    def __init__(self, line_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._limit = line_bytes_max
        self._number = 1  # of the line that the next byte belongs to
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._skipping = False  # the begun line is too long: its bytes are not kept

    def feed(self, chunk: bytes) -> Iterator[Batch]:
        """The lines that end within this chunk."""
        if self._skipping:
            _, newline, chunk = chunk.partition(b"\n")
            if not newline:
                return
            yield from self._left_out()
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            lines = b"".join((*self._begun, head)).split(b"\n")
            self._begun, self._begun_bytes = [], 0
            yield from batches((line.removesuffix(b"\r") for line in lines), self._number, self._limit)
            self._number += len(lines)
        self._begin(tail)

    def end(self) -> Iterator[Batch]:
        """The last line, when nothing ended it."""
        if self._skipping:
            yield from self._left_out()
        elif self._begun_bytes:
            yield Batch(self._number, [b"".join(self._begun)])

    def _begin(self, part: bytes) -> None:
        if part:
            self._begun.append(part)
            self._begun_bytes += len(part)
        if self._begun_bytes > self._limit:
            self._skipping, self._begun, self._begun_bytes = True, [], 0

    def _left_out(self) -> Iterator[Batch]:
        self._skipping = False
        yield Batch(self._number, ())
        self._number += 1
