"""JSON and JSON lines: each object of a list, or each line, is a record in words; nested names are joined by dots."""

from collections.abc import Iterator
from typing import Any

import orjson

from services.embedder.document import DocumentBuilder
from services.embedder.loaders.decoding import decode
from services.kernel.enrichment import PermanentError

_BARE = frozenset({"text", "content", "body"})  # fields that are the record's own words, and need no name


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load JSON, or JSON lines."""
    text = decode(content).strip()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        _load_lines(text, builder, error)
        return
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            _record(item, f"item {number}", builder)
    else:
        _record(value, "", builder)


def _load_lines(text: str, builder: DocumentBuilder, whole: orjson.JSONDecodeError) -> None:
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            what = f"line {number}: {error}" if len(lines) > 1 and number > 1 else f"line {whole.lineno}: {whole}"
            raise PermanentError(f"it is not JSON ({what}): correct it") from error
        _record(value, f"line {number}", builder)


def _record(value: Any, label: str, builder: DocumentBuilder) -> None:
    if not isinstance(value, dict):
        builder.paragraph(_words(value), label=label, glue="\n")
        return
    title = value.get("title")
    if isinstance(title, str) and title.strip():
        builder.heading(1, title, label=label)
    own = {name: item for name, item in value.items() if name not in {"_id", "title"}}
    fields = "\n".join(
        words if name in _BARE else f"{name}: {words}" for name, words in _flat(own, ()) if words.strip()
    )
    builder.paragraph(fields, label=label)


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The leaves in order. Iterative: a document may be nested as deep as it likes."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(value, path)]
    while stack:
        item, names = stack.pop()
        if isinstance(item, dict):
            stack.extend((child, (*names, name)) for name, child in reversed(item.items()))
        elif isinstance(item, list) and any(isinstance(child, dict | list) for child in item):
            stack.extend((child, (*names, str(n))) for n, child in reversed(list(enumerate(item, start=1))))
        else:
            yield ".".join(names), _words(item)


def _words(value: Any) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(_words(item) for item in value)
        case dict():
            return "\n".join(f"{name}: {words}" for name, words in _flat(value, ()))
        case _:
            return str(value)
