"""Loaders turn a document's bytes into text with its structure: one pure module a format.

The media type decides, then the name, then the content. What cannot be read is refused with the reason and the cure.
"""

import importlib
from pathlib import PurePosixPath

from services.embedder.document import DocumentBuilder, Loaded
from services.kernel.enrichment import PermanentError

TEXT_CHARACTERS_MAX = 4_000_000

_BY_MEDIA_TYPE = {
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/csv": "tables",
    "text/tab-separated-values": "tables",
    "application/json": "json",
    "application/x-ndjson": "json",
    "application/jsonl": "json",
    "application/x-jsonlines": "json",
}
_BY_SUFFIX = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".csv": "tables",
    ".tsv": "tables",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
SUFFIXES = frozenset({*_BY_SUFFIX, ".txt", ".text", ".log", ".rst"})
# Types that say no more than the content does: the name knows better.
_VAGUE = frozenset({"", "text/plain", "application/octet-stream", "binary/octet-stream"})
_READABLE = "text, Markdown, HTML, PDF, DOCX, CSV and JSON"


def load(content: bytes, media_type: str = "", name: str = "") -> Loaded:
    """Return a document's text and structure.

    Args:
        content: the document's bytes; empty or blank content gives a document without text.
        media_type: its type, where known; parameters such as the charset are ignored.
        name: its file name, where known.

    Raises:
        PermanentError: it cannot be read as it is: broken, encrypted, binary, too large, or of an unknown format.
    """
    kind = format_of(content, media_type, name)
    if not content.strip():
        return Loaded("", "", ())
    # Each loader is imported when the first document of its kind arrives.
    module = importlib.import_module(f"services.embedder.loaders.{kind}")
    builder = DocumentBuilder()
    try:
        module.load(content, builder)
    except PermanentError as error:
        raise PermanentError(f"{name or 'the document'}: {error}") from error
    if builder.length > TEXT_CHARACTERS_MAX:
        raise PermanentError(
            f"{name or 'the document'} holds {builder.length:,} characters of text, more than {TEXT_CHARACTERS_MAX:,}: "
            "split it into smaller documents"
        )
    return builder.build()


def format_of(content: bytes, media_type: str, name: str) -> str:
    """Return which loader reads a document; raises PermanentError when none does."""
    media = media_type.partition(";")[0].strip().lower()
    if media in _BY_MEDIA_TYPE:
        return _BY_MEDIA_TYPE[media]
    suffix = PurePosixPath(name.lower()).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if media in _VAGUE or media.startswith("text/"):
        return _sniffed(content)
    raise PermanentError(
        f"{name or 'the document'} is {media}: only {_READABLE} can be read; convert it, or leave it out"
    )


def _sniffed(content: bytes) -> str:
    start = content[:1024].lstrip().lower()
    if start.startswith(b"%pdf-"):
        return "pdf"
    if start.startswith(b"pk\x03\x04") and b"word/" in content[:4096]:
        return "docx"
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "text"
