"""The media type of a file, by its name."""

import mimetypes
from functools import cache

_MORE = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".jsonl": "application/x-ndjson",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".rst": "text/x-rst",
}


def media_type(name: str) -> str:
    """The media type, or nothing when the name does not tell; the same on every machine."""
    return _types().guess_type(name)[0] or ""


@cache
def _types() -> mimetypes.MimeTypes:
    # The module's own functions would read what the machine has under /etc as well.
    types = mimetypes.MimeTypes()
    for suffix, type_ in _MORE.items():
        types.add_type(type_, suffix)
    return types
