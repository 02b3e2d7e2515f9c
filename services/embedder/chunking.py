"""Cuts a loaded document into chunks: by its structure, within what the model can take. Pure.

Chunks are stretches of the document's text, in order, that leave out nothing but white space. How they are cut
depends on the text alone, never on what else is processed at the time.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from services.embedder.document import Block, Loaded

CHARACTERS_MAX = 2000
# From strong to weak: where a block that is too long is cut.
_BREAKS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?…])[\"')\]»”\u2019]*\s+|(?<=[。\uff01\uff1f])"),
    re.compile(r"(?<=[;:,])\s+"),
    re.compile(r"\s+"),
)
_SMALL = 0.25  # a last chunk below this share of the aim joins the one before, if there is room


@dataclass(frozen=True, slots=True)
class Limits:
    """How large chunks are, in the model's own tokens.

    Attributes:
        aim: neighbouring blocks are put together up to this.
        room: what the model takes, without its own marks.
        context: at most this much of `room` goes to title and headings.
    """

    aim: int = 160
    room: int = 254
    context: int = 40


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document, and what is embedded of it.

    Attributes:
        ordinal: its place among the document's chunks, from 0.
        start, end: where it is in the text, in characters; the text there is `text`.
        text: its words.
        headings: the headings above it, outermost first.
        label: the page or row that it is from, or the first and last of them.
        context: title and headings in one line, as far as there is room for them.
    """

    ordinal: int
    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    label: str
    context: str

    @property
    def embedded(self) -> str:
        """What the model is given: the context, unless the chunk begins with it, and the text."""
        if not self.context or self.text.lower().startswith(self.context.lower()):
            return self.text
        return f"{self.context}\n{self.text}"

    @property
    def hash(self) -> bytes:
        """Names what is embedded: equal hashes have equal vectors, of one model."""
        return hashlib.sha256(self.embedded.encode()).digest()[:16]


TokenStarts = Callable[[str], Sequence[int]]
"""Where each token of a text begins, in characters, as the model's tokenizer cuts it."""


def chunks_of(loaded: Loaded, title: str, token_starts: TokenStarts, limits: Limits) -> list[Chunk]:
    """Cut a document.

    Args:
        loaded: the document.
        title: what it is called, for the context of every chunk.
        token_starts: the model's tokenizer.
        limits: how large the chunks may be.
    """
    tokens = _Tokens(token_starts(loaded.text), loaded.text)
    chunks: list[Chunk] = []
    for _, group in groupby(loaded.blocks, key=lambda block: block.group):
        blocks = list(group)
        headings = blocks[-1].headings
        context = _context([title, *headings], token_starts, limits.context)
        room = limits.room - len(token_starts(context)) - 1
        pieces = [piece for block in blocks for piece in _pieces(block, tokens, limits.aim, room)]
        for start, end, first, last in _packed(pieces, tokens, limits.aim, room):
            label = first if first == last else f"{first} to {last}"
            chunks.append(Chunk(len(chunks), start, end, loaded.text[start:end], headings, label, context))
    return chunks


class _Tokens:
    """Counts the tokens of any stretch of a text that has been cut into tokens once."""

    def __init__(self, starts: Sequence[int], text: str) -> None:
        self._starts = starts
        self.text = text

    def count(self, start: int, end: int) -> int:
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def reach(self, start: int, tokens: int) -> int:
        """How far a stretch of so many tokens goes."""
        last = bisect_left(self._starts, start) + tokens
        return min(self._starts[last] if last < len(self._starts) else len(self.text), start + CHARACTERS_MAX)


Piece = tuple[int, int, str]


def _context(path: Sequence[str], token_starts: TokenStarts, tokens: int) -> str:
    """Title and headings, each once, the innermost kept when there is not room for all."""
    names = list(dict.fromkeys(name for name in path if name))
    while len(names) > 1 and len(token_starts(" > ".join(names))) > tokens:
        del names[-2]
    context = " > ".join(names)
    starts = token_starts(context)
    return context if len(starts) <= tokens else context[: starts[tokens]].rstrip()


def _pieces(block: Block, tokens: _Tokens, aim: int, room: int) -> Iterator[Piece]:
    """The block, or its parts where it is too long: of about equal size, cut where it hurts least."""
    start, end, text = block.start, block.end, tokens.text
    while True:
        while start < end and text[start].isspace():
            start += 1
        if start == end:
            return
        whole = tokens.count(start, end)
        if whole <= room and end - start <= CHARACTERS_MAX:
            cut = end
        else:
            parts = max(-(-whole // aim), -(-(end - start) // CHARACTERS_MAX))
            fair = min(room, whole // parts + aim // 8)
            cut = _cut(text, start, min(end, tokens.reach(start, max(1, fair))))
        last = cut
        while text[last - 1].isspace():
            last -= 1
        yield start, last, block.label
        start = cut


def _cut(text: str, start: int, limit: int) -> int:
    """The best place to cut in the later half of a stretch; its end, where there is none."""
    middle = start + (limit - start) // 2
    for pattern in _BREAKS:
        ends = [found.end() for found in pattern.finditer(text, middle, limit)]
        if ends:
            return ends[-1]
    return limit if limit > start else start + 1


def _packed(pieces: Sequence[Piece], tokens: _Tokens, aim: int, room: int) -> list[tuple[int, int, str, str]]:
    """Put neighbours together: stretches with the labels of their first and last piece."""
    packed: list[tuple[int, int, str, str]] = []
    for start, end, label in pieces:
        if packed and _fits(packed[-1][0], end, tokens, min(aim, room)):
            packed[-1] = (packed[-1][0], end, packed[-1][2], label)
        else:
            packed.append((start, end, label, label))
    if len(packed) > 1:
        (start, _, first, _), (small, end, _, last) = packed[-2:]
        if tokens.count(small, end) < aim * _SMALL and _fits(start, end, tokens, room):
            packed[-2:] = [(start, end, first, last)]
    return packed


def _fits(start: int, end: int, tokens: _Tokens, most: int) -> bool:
    return tokens.count(start, end) <= most and end - start <= CHARACTERS_MAX
