"""Bytes to text: by a byte order mark, else UTF-8, else one byte a character; what is binary is refused."""

import codecs
import re

from services.kernel.enrichment import PermanentError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Bytes that no text in a one-byte encoding holds, but for an odd one.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_CONTROL_SHARE_MAX = 0.005


def decode(content: bytes, declared: str = "") -> str:
    """Return the text of a document.

    Args:
        content: its bytes.
        declared: the encoding that the document names, used when it is not UTF-8.

    Raises:
        PermanentError: the bytes are no text.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    control = len(_CONTROL.findall(content[: 1 << 20]))
    if b"\x00" in content[: 1 << 20] or control > len(content[: 1 << 20]) * _CONTROL_SHARE_MAX:
        raise PermanentError("it is binary, not text: save it as UTF-8 text, or leave it out")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode(_known(declared) or "cp1252", errors="replace")


def _known(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return ""
