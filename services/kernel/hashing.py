"""State hashes: equal states have equal hashes, in whatever order their rows are stored."""

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

_MODULUS = 1 << 256
ROWS_PER_TURN = 500


async def state_hash(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the hash of a set of rows, independent of their order.

    The sum of the rows' SHA-256 modulo 2^256: a row there twice counts twice. Other tasks get their turn in between,
    so the rows must come from a snapshot.
    """
    total = 0
    for turn, row in enumerate(rows, start=1):
        total += int.from_bytes(hashlib.sha256(repr(row).encode()).digest(), "big")
        if turn % ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
    return f"{total % _MODULUS:064x}"
