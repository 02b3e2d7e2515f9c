"""The media type of a file, by its name."""

import mimetypes
from functools import cache


def media_type(name: str) -> str:
    """The media type, or nothing when the name does not tell; the same on every machine."""
    return _types().guess_type(name)[0] or ""


@cache
def _types() -> mimetypes.MimeTypes:
    # The module's own functions read what the machine has under /etc as well.
    return mimetypes.MimeTypes()
