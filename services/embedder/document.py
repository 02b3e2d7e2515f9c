"""A loaded document: its normalised whole text and the blocks that it is made of. Pure."""

import re
import unicodedata
from typing import NamedTuple

# Control characters, zero-width marks and soft hyphens: they hide words from search and from readers.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r"\r\n?|\x0c|\x85|\u2028|\u2029")


class Block(NamedTuple):
    """A stretch of the text that belongs together: a heading, a paragraph, a row.

    Attributes:
        start, end: where it is in the text, in characters.
        headings: the headings above it, outermost first; a heading is above itself.
        label: the page or row that it is from, where the format has such.
        group: blocks of different groups (sections, pages) never share a chunk.
    """

    start: int
    end: int
    headings: tuple[str, ...]
    label: str
    group: int


class Loaded(NamedTuple):
    """A document as text.

    Attributes:
        title: what the document calls itself; empty when it does not.
        text: the whole normalised text, to which all positions refer.
        blocks: in order; between them is only white space.
    """

    title: str
    text: str
    blocks: tuple[Block, ...]


def normalised(text: str, *, keep_spaces: bool = False) -> str:
    """Return text with one kind of line end, no hidden characters, composed letters, and no space at line ends.

    Args:
        text: any text.
        keep_spaces: keep runs of spaces and indentation, as in program code.
    """
    text = _SURROGATES.sub("\ufffd", _HIDDEN.sub("", _LINE_ENDS.sub("\n", text)))
    text = unicodedata.normalize("NFC", text)
    if not keep_spaces:
        text = _SPACES.sub(" ", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


class DocumentBuilder:
    """Puts a document's text together block by block, in order."""

    def __init__(self) -> None:
        self.title = ""
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0
        self._headings: list[tuple[int, str]] = []
        self._group = 0
        self._has_body = False

    @property
    def length(self) -> int:
        """Characters so far."""
        return self._length

    def heading(self, level: int, text: str, *, source: str = "", label: str = "") -> None:
        """Begin a section.

        Args:
            level: 1 for the outermost.
            text: what the section is called.
            source: how the heading stands in the text, when not as `text`.
            label: the page or row.
        """
        name = " ".join(normalised(text).split())
        self.section()
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        if name:
            self._headings.append((level, name))
            self._add(normalised(source or text).strip(), "\n\n", label)

    def section(self) -> None:
        """Begin a stretch that shares no chunk with what is before; headings alone stay with what follows them."""
        if self._has_body:
            self._group += 1
            self._has_body = False

    def paragraph(self, text: str, *, label: str = "", glue: str = "\n\n", keep_spaces: bool = False) -> None:
        """Add a paragraph, row or list item; blank ones are left out.

        Args:
            text: its text, not yet normalised.
            label: the page or row.
            glue: what separates it from the block before.
            keep_spaces: as for `normalised`.
        """
        text = normalised(text, keep_spaces=keep_spaces)
        text = text if keep_spaces else text.strip()
        if text.strip():
            self._add(text, glue, label)
            self._has_body = True

    def _add(self, text: str, glue: str, label: str) -> None:
        if self._parts:
            self._parts.append(glue)
            self._length += len(glue)
        self._parts.append(text)
        headings = tuple(name for _, name in self._headings)
        self._blocks.append(Block(self._length, self._length + len(text), headings, label, self._group))
        self._length += len(text)

    def build(self) -> Loaded:
        """Return the document."""
        title = " ".join(normalised(self.title).split())
        return Loaded(title, "".join(self._parts), tuple(self._blocks))
