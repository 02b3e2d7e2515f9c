"""DOCX: paragraphs, headings by their style, and the rows of tables."""

import io
import re
import zipfile
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from services.embedder.document import DocumentBuilder
from services.kernel.enrichment import PermanentError

_PART = "word/document.xml"
_UNPACKED_BYTES_MAX = 64 << 20
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"heading\s*([1-9])", re.IGNORECASE)
_CURE = "open it in a word processor and save it again"


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load a DOCX file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(_PART) as part:
            # The size in the archive's directory may lie, so no more than the bound is unpacked.
            xml = part.read(_UNPACKED_BYTES_MAX + 1)
    except (zipfile.BadZipFile, KeyError, RuntimeError, EOFError, OSError, NotImplementedError) as error:
        raise PermanentError(f"it is not a DOCX file, or encrypted ({error}): {_CURE}") from error
    if len(xml) > _UNPACKED_BYTES_MAX:
        raise PermanentError(f"its text unpacks to more than {_UNPACKED_BYTES_MAX >> 20} MiB: split it")
    if b"<!DOCTYPE" in xml[:4096]:  # no word processor writes one: it would define entities that expand without end
        raise PermanentError(f"its XML defines entities: {_CURE}")
    try:
        body = ET.fromstring(xml).find(f"{_W}body")  # noqa: S314 - entities are refused above
    except ET.ParseError as error:
        raise PermanentError(f"its XML is broken ({error}): {_CURE}") from error
    for block in body if body is not None else ():
        if block.tag == f"{_W}tbl":
            for row in block.iter(f"{_W}tr"):
                builder.paragraph(" | ".join(_cells(row)), glue="\n")
        else:
            for paragraph in block.iter(f"{_W}p"):
                _paragraph(paragraph, builder)


def _paragraph(paragraph: ET.Element, builder: DocumentBuilder) -> None:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    name = style.get(f"{_W}val", "") if style is not None else ""
    text = _text(paragraph)
    if name == "Title" and not builder.title:
        builder.title = text
    if name == "Title" or (found := _HEADING.match(name)) is None:
        builder.paragraph(text)
    else:
        builder.heading(int(found[1]), text)


def _cells(row: ET.Element) -> Iterator[str]:
    for cell in row.iter(f"{_W}tc"):
        yield " ".join(filter(None, (_text(paragraph).strip() for paragraph in cell.iter(f"{_W}p"))))


def _text(element: ET.Element) -> str:
    parts = []
    for node in element.iter():
        if node.tag == f"{_W}t":
            parts.append(node.text or "")
        elif node.tag in {f"{_W}tab", f"{_W}br"}:
            parts.append("\t" if node.tag == f"{_W}tab" else "\n")
    return "".join(parts)
