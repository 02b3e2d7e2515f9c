"""Documents as JSON lines, the form in which retrieval corpora (BEIR and others) are shipped.

    {"_id": "42", "title": "…", "text": "…", "metadata": {…}, "url": "…", "access": ["staff"]}

`_id` (or `id`) and `text` are required. `{"_id": "42", "deleted": true}` takes the document away.
"""

from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import Decoded, DecodeError, Hints, dump, json_type, parse_object

DEFAULT_SOURCE = "documents"


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one document."""
    return [to_document(parse_object(record), hints)]


def is_document(event: dict[str, Any]) -> bool:
    """Whether an object is meant as a document."""
    return ("_id" in event or "id" in event) and ("text" in event or event.get("deleted") is True)


def to_document(event: dict[str, Any], hints: Hints, prefix: str = "") -> events_pb2.DocumentChange:
    """The change of the document that an object describes; `prefix` stands before its id, by default `source/`."""
    source = hints.source or DEFAULT_SOURCE
    change = events_pb2.DocumentChange(
        tenant=hints.tenant,
        source=source,
        document_id=(prefix or f"{source}/") + _name(event),
        operation=events_pb2.DOCUMENT_OPERATION_PUT,
        name=_optional(event, "title"),
        uri=_optional(event, "uri") or _optional(event, "url"),
        access=_labels(event.get("access")),
        metadata=_metadata(event.get("metadata")),
    )
    if event.get("deleted") is True:
        change.operation = events_pb2.DOCUMENT_OPERATION_DELETE
        return change
    text = event.get("text")
    if type(text) is not str:
        raise DecodeError(f'"text" is a {json_type(text)}', "give the document's text")
    # A title that the text does not repeat is part of what the document says.
    whole = text if text.lower().startswith(change.name.lower()) else f"{change.name}\n\n{text}"
    change.content, change.media_type = whole.encode(), "text/plain"
    return change


def _name(event: dict[str, Any]) -> str:
    value = event.get("_id", event.get("id"))
    if type(value) is int:
        return str(value)
    if type(value) is not str or not value:
        raise DecodeError(f'"_id" is {value!r:.40}', "name the document by a text or a whole number")
    return value


def _optional(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    if value is not None and type(value) is not str:
        raise DecodeError(f'"{name}" is a {json_type(value)}', "give a text, or leave it out")
    return value or ""


def _labels(value: Any) -> list[str]:
    if value is None:
        return []
    # Access must never widen by a mistake in its form: an unreadable list is refused.
    if type(value) is not list or not all(type(label) is str and label for label in value):
        raise DecodeError('"access" is not a list of labels', 'give texts, such as ["staff"], or leave it out')
    return value


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise DecodeError(f'"metadata" is a {json_type(value)}', "give an object, or leave it out")
    return {name: item if type(item) is str else dump(item) for name, item in value.items()}
