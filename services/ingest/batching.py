"""A stream of bytes cut into numbered batches of records: lines, or the elements of a JSON array. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from services.kernel.errors import InvalidInputError

BATCH_RECORDS = 1_000
BATCH_BYTES = 1 << 20
LINE_BYTES_MAX = 16 << 20  # what one request can carry; the service keeps longer records than it decodes, not any length


class Batch(NamedTuple):
    """Records in order; `refused` lines before them were too long to be sent."""

    first_line: int
    records: Sequence[bytes]
    refused: Sequence[int] = ()


class LineCutter:
    """Cuts chunks of bytes into batches of whole lines, without their ends; memory is bounded by the longest line."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._limit = line_bytes_max
        self._rest: list[bytes] = []  # of a line that has no end yet
        self._rest_bytes = 0
        self._line = 1

    def feed(self, chunk: bytes) -> Iterator[Batch]:
        """The batches that are complete with this chunk: all lines that have ended."""
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            self._keep(tail)
            return
        self._keep(head)
        body, too_long = b"".join(self._rest), self._rest_bytes - len(head) > self._limit
        self._rest, self._rest_bytes = [], 0
        self._keep(tail)
        yield from self._batches(body.split(b"\n"), first_cut=too_long)

    def end(self) -> Iterator[Batch]:
        """The last line, when nothing ended it."""
        body, size = b"".join(self._rest), self._rest_bytes
        self._rest, self._rest_bytes = [], 0
        if body:
            yield from self._batches([body], first_cut=size > self._limit)

    def _keep(self, part: bytes) -> None:
        self._rest_bytes += len(part)
        # Of a line that is too long anyway only its length matters.
        if part and self._rest_bytes - len(part) <= self._limit:
            self._rest.append(part)

    def _batches(self, lines: list[bytes], *, first_cut: bool) -> Iterator[Batch]:
        records: list[bytes] = []
        refused: list[int] = []
        size, first = 0, self._line
        for index, line in enumerate(lines):
            record = line.removesuffix(b"\r")
            if len(record) > self._limit or (first_cut and index == 0):
                # Numbers stay right: what precedes a refused line goes in a batch of its own.
                if records:
                    yield Batch(first, records, refused)
                    records, refused, size = [], [], 0
                refused.append(self._line)
                self._line += 1
                first = self._line
                continue
            if records and (len(records) >= BATCH_RECORDS or size + len(record) > BATCH_BYTES):
                yield Batch(first, records, refused)
                records, refused, size, first = [], [], 0, self._line
            records.append(record)
            size += len(record)
            self._line += 1
        if records or refused:
            yield Batch(first, records, refused)


def array_batches(value: Sequence[Any]) -> Iterator[Batch]:
    """The elements of a JSON array as batches; an element's number takes the place of its line."""
    records: list[bytes] = []
    size, first = 0, 1
    for number, element in enumerate(value, 1):
        try:
            record = orjson.dumps(element)
        except orjson.JSONEncodeError as error:
            raise InvalidInputError(f"element {number} of the array: {error}: nest less deeply") from error
        if records and (len(records) >= BATCH_RECORDS or size + len(record) > BATCH_BYTES):
            yield Batch(first, records)
            records, size, first = [], 0, number
        records.append(record)
        size += len(record)
    if records:
        yield Batch(first, records)
