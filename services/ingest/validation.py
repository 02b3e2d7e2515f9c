"""Checks what applications push as protobuf messages, and fills in what is computed here. Pure."""

from typing import Any

import orjson

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import DecodeError, checked_key, dump_key
from services.ingest.decoders.native import text_position
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, SEPARATOR
from services.kernel.records import record_key

_KEYLESS = (events_pb2.OPERATION_TRUNCATE, events_pb2.OPERATION_HEARTBEAT)


def checked_change(change: events_pb2.Change, where: str, bytes_max: int) -> events_pb2.Change:
    """A copy of a pushed change, complete: tenant, record, canonical key, comparable position.

    Args:
        change: the change as it was pushed.
        where: names it in errors.
        bytes_max: how long it may be.

    Raises:
        InvalidInputError: a field is missing or is not what it should be.
    """
    if change.ByteSize() > bytes_max:
        raise InvalidInputError(
            f"{where} has {change.ByteSize():,} bytes, the limit is {bytes_max:,}: push less in one"
        )
    result = events_pb2.Change()
    result.CopyFrom(change)
    result.tenant = checked_tenant(change.tenant, where)
    if not change.source:
        raise InvalidInputError(f"{where}: source is missing: name the system that the change comes from")
    if change.operation not in events_pb2.Operation.values() or not change.operation:
        raise InvalidInputError(f"{where}: operation is missing: say what happened, for example OPERATION_UPDATE")
    if change.operation != events_pb2.OPERATION_HEARTBEAT and not change.entity:
        raise InvalidInputError(f"{where}: entity is missing: name the kind of record, for example customers")
    if change.operation in _KEYLESS:
        result.record = ""
    else:
        _complete_row(result, where)
    if change.position and ":" not in change.position:
        result.position = text_position(change.position, change.source)
        result.source_position = change.source_position or change.position
    return result


def _complete_row(change: events_pb2.Change, where: str) -> None:
    try:
        key = checked_key(_object(change.key_json, "key_json", where), where)
        change.key_json = dump_key(key)
    except DecodeError as error:
        raise InvalidInputError(str(error)) from error
    change.record = record_key(change.source, change.entity, key)
    if change.partial and change.operation != events_pb2.OPERATION_UPDATE:
        raise InvalidInputError(f"{where}: only an update can be partial: tell the whole row")
    if change.before_json:
        _object(change.before_json, "before_json", where)
    if change.operation == events_pb2.OPERATION_DELETE:
        change.after_json = ""
    else:
        _object(change.after_json, "after_json", where)


def _object(text: str, name: str, where: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if type(value) is not dict:
        raise InvalidInputError(f"{where}: {name} must be a JSON object, not {text or 'empty'!r:.60}")
    return value


def checked_document(document: events_pb2.DocumentChange, bytes_max: int) -> events_pb2.DocumentChange:
    """A copy of a document change, complete: tenant, id, operation.

    Raises:
        InvalidInputError: it names no document, or is longer than `bytes_max`.
    """
    if len(document.content) > bytes_max:
        raise InvalidInputError(
            f"document {document.document_id or document.name!r} has {len(document.content):,} bytes, the limit is "
            f"{bytes_max:,}: split it, or raise document_bytes_max in [ingest]"
        )
    result = events_pb2.DocumentChange()
    result.CopyFrom(document)
    if not document.document_id:
        if not document.source or not document.name:
            raise InvalidInputError("a document needs its document_id, or source and name")
        result.document_id = f"{document.source}/{document.name}"
    result.source = document.source or result.document_id.partition("/")[0]
    result.tenant = checked_tenant(document.tenant, result.document_id)
    if not document.operation:
        result.operation = events_pb2.DOCUMENT_OPERATION_PUT
    elif document.operation not in events_pb2.DocumentOperation.values():
        raise InvalidInputError(f"document {result.document_id}: there is no operation {document.operation}")
    if result.operation == events_pb2.DOCUMENT_OPERATION_DELETE:
        result.content = b""
    return result


def checked_tenant(tenant: str, where: str) -> str:
    """A tenant's name; empty means the default one. It must not look like more than one part of a key."""
    if SEPARATOR in tenant:
        raise InvalidInputError(f"{where}: a tenant's name must not hold the character U+001F")
    return tenant or DEFAULT_TENANT
