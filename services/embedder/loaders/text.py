"""Plain text: paragraphs between blank lines; a short line of capitals, or an underlined one, is a heading."""

import re

from services.embedder.document import DocumentBuilder
from services.embedder.loaders.decoding import decode

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_UNDERLINED = re.compile(r"([^\n]{1,100})\n(={3,}|-{3,})$")
_HEADING_LENGTH_MAX = 80


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load plain text."""
    text = decode(content).replace("\r\n", "\n").replace("\r", "\n")
    for paragraph in _BLANK_LINES.split(text):
        stripped = paragraph.strip()
        if underlined := _UNDERLINED.match(stripped):
            builder.heading(1 if underlined[2][0] == "=" else 2, underlined[1], source=stripped)
        elif _is_heading(stripped):
            builder.heading(1, stripped)
        else:
            builder.paragraph(paragraph.strip("\n"), keep_spaces=True)


def _is_heading(text: str) -> bool:
    # Needs a word in capitals, or else every line of numbers would be one.
    return len(text) <= _HEADING_LENGTH_MAX and text.isupper() and re.search(r"[^\W\d]{3}", text) is not None
