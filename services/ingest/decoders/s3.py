"""Notifications of object stores: of Amazon S3, directly or through EventBridge, and of MinIO and others like it.

A notification does not hold the object. It becomes a document change with a `reference`; ingest looks at the object
there, and appends what it is now, or that it is gone. So the version that a notification names does not matter: where
one of several versions is deleted, the object may still be there. Until then the source is the bucket unless it is
named, and the document's id `source/key`.

The order of one object is its `sequencer`, a hexadecimal number. Restores, tags, access lists, replication and
lifecycle transitions do not change what an object says and mean nothing here.
"""

import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import Decoded, DecodeError, Hints, instant, json_type, parse_object
from services.ingest.media_types import media_type

SCHEME = "s3://"
_CREATED, _REMOVED = "ObjectCreated:", "ObjectRemoved:"
_EXPIRED = "LifecycleExpiration:"
_SEQUENCER = re.compile(r"[0-9A-Fa-f]{1,64}", re.ASCII)
_EVENT_BRIDGE = "aws.s3"


def decode(record: bytes, hints: Hints) -> list[Decoded]:
    """Decode one notification, without an envelope."""
    return from_object(parse_object(record), hints)


def is_record(event: dict[str, Any]) -> bool:
    """Whether an object is one record of a notification."""
    return type(event.get("s3")) is dict and "eventName" in event


def is_s3(event: dict[str, Any]) -> bool:
    """Whether an object is a notification: a record, EventBridge's event, or the message that tests a subscription."""
    return is_record(event) or event.get("source") == _EVENT_BRIDGE or event.get("Event") == "s3:TestEvent"


def from_object(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    """The document changes that a notification means."""
    if event.get("Event") == "s3:TestEvent":
        return []
    if is_record(event):
        return _from_record(event, hints)
    if event.get("source") == _EVENT_BRIDGE:
        return _from_event_bridge(event, hints)
    raise DecodeError("it is no notification of an object store", "send what S3, EventBridge or MinIO write")


def reference_of(bucket: str, key: str) -> str:
    """Where an object is to be read from."""
    return f"{SCHEME}{bucket}/{quote(key)}"


def object_of(reference: str) -> tuple[str, str]:
    """The bucket and the key that a reference names."""
    bucket, _, key = reference.removeprefix(SCHEME).partition("/")
    return bucket, unquote(key)


def document_id(source: str, key: str) -> str:
    """The id of an object's document."""
    return f"{source}/{key}"


def _from_record(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    name = event["eventName"]
    if type(name) is not str:
        raise DecodeError(f'"eventName" is a {json_type(name)}', "send the notification as it was written")
    name = name.removeprefix("s3:")
    if not name.startswith((_CREATED, _REMOVED, _EXPIRED)):
        return []
    bucket, about = _named(event["s3"], "bucket"), _member(event["s3"], "object")
    key = unquote_plus(_text(about, "key"))
    change = _change(hints, bucket, key, gone=not name.startswith(_CREATED))
    return _completed(change, about, event.get("eventTime"))


def _from_event_bridge(event: dict[str, Any], hints: Hints) -> list[Decoded]:
    kind = event.get("detail-type")
    if kind not in ("Object Created", "Object Deleted"):
        return []
    detail = _member(event, "detail")
    bucket, about = _named(detail, "bucket"), _member(detail, "object")
    key = _text(about, "key")  # EventBridge does not encode it
    change = _change(hints, bucket, key, gone=kind == "Object Deleted")
    return _completed(change, about, event.get("time"))


def _change(hints: Hints, bucket: str, key: str, *, gone: bool) -> events_pb2.DocumentChange:
    source = hints.source or bucket
    change = events_pb2.DocumentChange(
        tenant=hints.tenant,
        source=source,
        document_id=document_id(source, key),
        operation=events_pb2.DOCUMENT_OPERATION_DELETE if gone else events_pb2.DOCUMENT_OPERATION_PUT,
        name=key.rpartition("/")[2],
        uri=f"{SCHEME}{bucket}/{key}",
        reference=reference_of(bucket, key),
    )
    if not gone:
        change.media_type = media_type(change.name)
    return change


def _completed(change: events_pb2.DocumentChange, about: dict[str, Any], time: Any) -> list[Decoded]:
    if change.document_id.endswith("/"):  # what consoles make for an empty folder
        return []
    sequencer = about.get("sequencer")
    if type(sequencer) is str and _SEQUENCER.fullmatch(sequencer):
        # The numbers have different lengths; the greater one is the later one.
        change.position = f"{change.reference}:{sequencer.upper().zfill(64)}"
    if type(time) is str and time:
        at = change.occurred_at
        at.seconds, at.nanos = instant(time)
    return [change]


def _named(container: dict[str, Any], name: str) -> str:
    return _text(_member(container, name), "name")


def _member(container: dict[str, Any], name: str) -> dict[str, Any]:
    value = container.get(name)
    if type(value) is not dict:
        raise DecodeError(f'"{name}" is a {json_type(value)}', "send the notification as it was written")
    return value


def _text(container: dict[str, Any], name: str) -> str:
    value = container.get(name)
    if type(value) is not str or not value:
        raise DecodeError(f'"{name}" is {value!r:.40}', "send the notification as it was written")
    return value
