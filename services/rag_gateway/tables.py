"""Tables in plain text: which lines are lines of one, below which header, and how an answer tells them. Pure."""

import re
from collections.abc import Sequence

from services.rag_gateway.words import Span

_EMPHASIS = re.compile(r"\*\*|__|`|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)")
_RECORD = re.compile(r"[\w .-]{1,40}: [^;]+;")  # a row in words, as of a CSV file
_ENDED = (".", "!", "?", ":", ";", ",")
_CELLS = re.compile(r"\s*\|\s*")
_RULE = re.compile(r"[\s|:\-–—]+")  # noqa: RUF001 - tables are ruled with dashes of all kinds


def is_record(words: str) -> bool:
    """Whether a line is a row in words, as of a CSV file: `name: Riva; city: Split`."""
    return _RECORD.match(words) is not None


def shown(words: str) -> str:
    """Words of a document as an answer tells them: on one line, without marks of emphasis."""
    return " ".join(_EMPHASIS.sub("", words).split())


def table_line(header: str, line: str) -> str:
    """A line of a table with its column names: `Weight of each: 23 kg`."""
    names, cells = _cells(shown(header)), _cells(shown(line))
    if len(names) != len(cells) or len(cells) == 1:
        return f"{', '.join(cells)} ({', '.join(names)})"
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=True) if cell)


def _cells(line: str) -> list[str]:
    return _CELLS.split(line.strip().strip("|").strip())


def headers(text: str, spans: Sequence[Span]) -> list[str]:
    """For each span the header of the table that it is a line of; a header is its own header; empty for the others.

    Tables are drawn with bars, or, as in the text of a PDF, are lines with numbers below a line without one.
    """
    found: list[str] = []
    for index, span in enumerate(spans):
        words = text[span.start : span.end]
        before = found[-1] if found and _adjacent(text, spans[index - 1], span) else ""
        if "|" in words:
            found.append(before or words)
        elif before and "|" not in before and _is_line(words):
            found.append(before)
        elif _is_header(text, spans, index):
            found.append(words)
        else:
            found.append("")
    return found


def _is_header(text: str, spans: Sequence[Span], index: int) -> bool:
    """Whether a line without numbers stands above at least two lines with numbers."""
    words = text[spans[index].start : spans[index].end]
    if any(letter.isdigit() for letter in words) or words.endswith(_ENDED) or len(spans) < index + 3:
        return False
    following = spans[index + 1 : index + 3]
    together = zip(spans[index : index + 2], following, strict=True)
    return all(_adjacent(text, *pair) for pair in together) and all(
        _is_line(text[span.start : span.end]) for span in following
    )


def _is_line(words: str) -> bool:
    return any(letter.isdigit() for letter in words) and not words.endswith(_ENDED) and not is_record(words)


def _adjacent(text: str, one: Span, other: Span) -> bool:
    """Whether one span stands on the line after the other's, but for the ruling of a table."""
    between = text[one.end : other.start]
    return "\n" in between and "\n\n" not in between and _RULE.fullmatch(between) is not None
