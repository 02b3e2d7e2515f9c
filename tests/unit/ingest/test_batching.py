from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from services.ingest.batching import BATCH_BYTES, BATCH_RECORDS, Batch, LineCutter, array_batches, batches
from services.kernel.errors import InvalidInputError

line_bodies = st.binary(max_size=12).map(lambda body: body.replace(b"\n", b"").removesuffix(b"\r"))


def cut(chunks: Sequence[bytes], limit: int = 1 << 20) -> list[Batch]:
    cutter = LineCutter(limit)
    return [batch for chunk in chunks for batch in cutter.feed(chunk)] + list(cutter.end())


def numbered(found: Sequence[Batch]) -> list[tuple[int, bytes | None]]:
    """Every line with its number; None for one that was left out."""
    lines: list[tuple[int, bytes | None]] = []
    for batch in found:
        lines.extend([(batch.first, None)] if not batch.records else list(enumerate(batch.records, batch.first)))
    return lines


@given(st.lists(line_bodies, max_size=20), st.lists(st.integers(0, 250), max_size=6), st.integers(3, 14))
def test_lines_are_the_same_however_the_bytes_arrive(lines: list[bytes], cuts: list[int], limit: int) -> None:
    body = b"".join(line + b"\n" for line in lines)
    places = sorted({0, len(body), *(place for place in cuts if place < len(body))})
    chunks = [body[start:end] for start, end in pairwise(places)]
    expected = [(number, line if len(line) <= limit else None) for number, line in enumerate(lines, 1)]
    assert numbered(cut(chunks, limit)) == expected


def test_a_last_line_needs_no_end() -> None:
    assert numbered(cut([b"a\nb"])) == [(1, b"a"), (2, b"b")]
    assert numbered(cut([b"aaa\nbbbb"], 3)) == [(1, b"aaa"), (2, None)]


def test_lines_of_windows_lose_their_carriage_return() -> None:
    assert numbered(cut([b"a\r\nb\r\n"])) == [(1, b"a"), (2, b"b")]


def test_a_batch_has_a_bounded_number_of_records_and_bytes() -> None:
    many = list(batches([b"x"] * (2 * BATCH_RECORDS + 1), 1))
    assert [(batch.first, len(batch.records)) for batch in many] == [
        (1, BATCH_RECORDS), (BATCH_RECORDS + 1, BATCH_RECORDS), (2 * BATCH_RECORDS + 1, 1),
    ]  # fmt: skip
    large = list(batches([b"x" * (BATCH_BYTES // 2)] * 3, 1))
    assert [len(batch.records) for batch in large] == [2, 1]


def test_a_cutter_holds_no_more_than_a_line_may_have() -> None:
    cutter = LineCutter(100)
    for _ in range(1000):
        assert list(cutter.feed(b"x" * 60)) == []
        assert sum(map(len, cutter._begun)) <= 160
    assert numbered([*cutter.feed(b"x\nnext\n"), *cutter.end()]) == [(1, None), (2, b"next")]


def test_elements_of_an_array_are_numbered_from_one() -> None:
    assert numbered(list(array_batches([{"a": 1}, 2]))) == [(1, b'{"a":1}'), (2, b"2")]


def test_an_element_that_cannot_be_written_again_is_refused() -> None:
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(InvalidInputError, match="nest less deeply"):
        list(array_batches([deep]))
