"""State hashes: equal states have equal hashes, in whatever order their rows are stored."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

_MODULUS = 1 << 256
ROWS_PER_TURN = 500


async def state_hash(rows: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]]) -> str:
    """Return the hash of a set of rows, independent of their order.

    The sum of the rows' SHA-256 modulo 2^256: a row there twice counts twice. Other tasks get their turn in between,
    so the rows must come from a snapshot, or from a store that stands still.
    """
    total = 0
    async for row in rows if isinstance(rows, AsyncIterable) else _in_turns(rows):
        total += int.from_bytes(hashlib.sha256(repr(row).encode()).digest(), "big")
    return f"{total % _MODULUS:064x}"


async def _in_turns(rows: Iterable[tuple[Any, ...]]) -> AsyncIterator[tuple[Any, ...]]:
    for turn, row in enumerate(rows, start=1):
        yield row
        if turn % ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
