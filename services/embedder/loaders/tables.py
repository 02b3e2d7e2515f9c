"""CSV and its relatives: every row says its columns' names, so that each chunk can be understood by itself."""

import csv
import io
import re

from services.embedder.document import DocumentBuilder
from services.embedder.loaders.decoding import decode
from services.kernel.enrichment import PermanentError

_SAMPLE = 8192
_NUMBER = re.compile(r"[-+\d.,%\s]+")


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load a table; its first row names the columns, unless a cell of it is empty or a number."""
    text = decode(content)
    reader = csv.reader(io.StringIO(text, newline=""), _dialect(text[:_SAMPLE]))
    header: list[str] = []
    try:
        for number, row in enumerate(reader, start=1):
            if number == 1 and _names_columns(row):
                header = [name.strip() for name in row]
                continue
            builder.paragraph(described(header, row), label=f"row {number}", glue="\n")
    except csv.Error as error:
        raise PermanentError(f"line {reader.line_num} is not CSV ({error}): correct its quotes") from error


def described(header: list[str], row: list[str]) -> str:
    """Return a row in words: `name: Riva; city: Split`; empty cells are left out."""
    pairs = []
    for index, cell in enumerate(row):
        words = " ".join(cell.split())
        if words:
            pairs.append(f"{header[index]}: {words}" if index < len(header) else words)
    return "; ".join(pairs)


def _dialect(sample: str) -> type[csv.Dialect] | csv.Dialect:
    try:
        return csv.Sniffer().sniff(sample, delimiters=",;\t|")
    except csv.Error:  # one column, or nothing to tell by
        return csv.excel


def _names_columns(row: list[str]) -> bool:
    return bool(row) and all(name.strip() and not _NUMBER.fullmatch(name) for name in row)
