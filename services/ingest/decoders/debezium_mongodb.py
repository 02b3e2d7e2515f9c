"""Debezium's events of MongoDB: documents as JSON text of extended JSON, and updates that may tell only what they set.

Entity is the collection; the database is left out. The key is `_id`. Where an update comes without the whole document
(`capture.mode` other than `change_streams_update_full`), the document is made from its pre-image, if there is one, or
else the change is partial: it tells only the fields that it sets, and a removed field as null. A partial update of a
part of a field (`address.city`, `tags.0`) cannot be told without the field, so it is refused.
"""

from collections.abc import Mapping
from typing import Any

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders.common import DecodeError, checked_key, dump, dump_key, json_type, parse
from services.ingest.decoders.extended_json import plain, plain_text
from services.kernel.records import record_key

KEY = "_id"
_FULL_CURE = "let Debezium send whole documents: capture.mode=change_streams_update_full"
_ARRAY_INDEX_MAX = 1_000_000


def is_mongodb(source: Mapping[str, Any]) -> bool:
    """Whether a `source` block is that of a MongoDB connector."""
    return source.get("connector") == "mongodb" or ("collection" in source and "table" not in source)


def add_document(change: events_pb2.Change, payload: Mapping[str, Any], key: Any) -> None:
    """Complete a change with its key and documents.

    Args:
        change: the change, with source, entity and operation.
        payload: the event's envelope.
        key: the record's key, without its schema, where it came with one.
    """
    before, after = _document(payload, "before"), _document(payload, "after")
    patch = None
    if change.operation == events_pb2.OPERATION_UPDATE and after is None:
        patch = _patch(payload)
        after = patch.replacement
        if after is None and before is not None:
            after = patch.applied(before)
    columns = _key(key, after or before or _document(payload, "filter"), change)
    change.key_json = dump_key(columns)
    change.record = record_key(change.source, change.entity, columns)
    if change.operation == events_pb2.OPERATION_DELETE:
        change.before_json = dump(before or columns)
        return
    if after is None:
        if patch is None:
            raise DecodeError('"after" is missing', _FULL_CURE)
        after, change.partial = {**columns, **patch.columns()}, True
    change.after_json = dump(after)
    if before:
        change.before_json = dump(before)


def flattened_key(key: Any, row: Mapping[str, Any]) -> Any:
    """The key of an event that ExtractNewDocumentState has made, as the columns that it stands for; None without."""
    if type(key) is dict and "id" in key:
        return {KEY: plain_text(key["id"])}
    if key is None and (KEY in row or "id" in row):  # it has `id` alone where the document is gone
        return {KEY: row[KEY] if KEY in row else plain_text(row["id"])}
    return key


class _Patch:
    """What an update sets, removes and cuts, by path; or the document that replaces the stored one."""

    def __init__(
        self, updated: dict[str, Any], removed: list[str], truncated: dict[str, int], replacement: dict[str, Any] | None
    ) -> None:
        self.updated, self.removed, self.truncated, self.replacement = updated, removed, truncated, replacement

    def columns(self) -> dict[str, Any]:
        """The patch as columns, a removed one as null."""
        paths = [*self.updated, *self.removed, *self.truncated]
        if self.truncated or any("." in path for path in paths):
            path = next((path for path in paths if "." in path), "") or next(iter(self.truncated))
            raise DecodeError(f"the update tells only a part of a field ({path:.60})", _FULL_CURE)
        return {**self.updated, **dict.fromkeys(self.removed)}

    def applied(self, document: dict[str, Any]) -> dict[str, Any]:
        """The document after the update."""
        result: dict[str, Any] = parse(dump(document))  # a deep copy
        for path, size in self.truncated.items():
            parent, name = _parent(result, path)
            value = _member(parent, name)
            if type(value) is list:
                del value[size:]
        for path, value in self.updated.items():
            _set(result, path, value)
        for path in self.removed:
            parent, name = _parent(result, path)
            if type(parent) is dict:
                parent.pop(name, None)
        return result


def _patch(payload: Mapping[str, Any]) -> _Patch:
    description = payload.get("updateDescription")
    if type(description) is dict:
        return _Patch(
            _document(description, "updatedFields") or {},
            _paths(description.get("removedFields")),
            _truncated(description.get("truncatedArrays")),
            None,
        )
    patch = _document(payload, "patch")  # of Debezium before 2.0
    if patch is None:
        raise DecodeError("the update tells neither the document nor what it sets", _FULL_CURE)
    if not any(name.startswith("$") for name in patch):
        return _Patch({}, [], {}, patch)
    if unknown := [name for name in patch if name not in ("$v", "$set", "$unset")]:
        raise DecodeError(f"the patch has {unknown[0]!r:.40}", _FULL_CURE)
    updated, removed = patch.get("$set") or {}, patch.get("$unset") or {}
    if type(updated) is not dict or type(removed) is not dict:
        raise DecodeError('"$set" or "$unset" is not an object', _FULL_CURE)
    return _Patch(updated, list(removed), {}, None)


def _paths(value: Any) -> list[str]:
    if value is None:
        return []
    if type(value) is not list or not all(type(path) is str for path in value):
        raise DecodeError('"removedFields" is not a list of names', _FULL_CURE)
    return value


def _truncated(value: Any) -> dict[str, int]:
    if value is None:
        return {}
    found = {}
    for entry in value if type(value) is list else (value,):
        path, size = (entry.get("field"), entry.get("size")) if type(entry) is dict else (None, None)
        size = entry.get("newSize") if size is None and type(entry) is dict else size
        if type(path) is not str or type(size) is not int or size < 0:
            raise DecodeError('"truncatedArrays" is not a list of fields and sizes', _FULL_CURE)
        found[path] = size
    return found


def _parent(document: Any, path: str) -> tuple[Any, str]:
    *outer, name = path.split(".")
    for part in outer:
        document = _member(document, part)
    return document, name


def _member(container: Any, name: str) -> Any:
    if type(container) is dict:
        return container.get(name)
    if type(container) is list and name.isascii() and name.isdecimal() and int(name[:9]) < len(container):
        return container[int(name[:9])]
    return None


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    container: Any = document
    *outer, name = path.split(".")
    for part in outer:
        inner = _member(container, part)
        if type(inner) not in (dict, list):
            inner = {}
            _put(container, part, inner)
        container = inner
    _put(container, name, value)


def _put(container: Any, name: str, value: Any) -> None:
    if type(container) is dict:
        container[name] = value
        return
    index = int(name) if name.isascii() and name.isdecimal() and len(name) <= 7 else _ARRAY_INDEX_MAX
    if index >= _ARRAY_INDEX_MAX:
        raise DecodeError(f"{name!r:.40} is no place in an array", _FULL_CURE)
    container.extend([None] * (index + 1 - len(container)))
    container[index] = value


def _key(key: Any, document: dict[str, Any] | None, change: events_pb2.Change) -> dict[str, Any]:
    where = f"the event of {change.source}/{change.entity}"
    if type(key) is dict and "id" in key:
        return checked_key({KEY: plain_text(key["id"])}, where)
    if key is not None and type(key) is not dict:  # a key that a transform has reduced to its value
        return checked_key({KEY: plain_text(key)}, where)
    if not document or KEY not in document:
        raise DecodeError(f"{where} comes without its key, and has no {KEY}", "send it with its key (kcat -J)")
    return checked_key({KEY: document[KEY]}, where)


def _document(payload: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = payload.get(name)
    if type(value) is str:
        value = parse(value)
    if value is None:
        return None
    if type(value) is not dict:
        raise DecodeError(f'"{name}" is a {json_type(value)}', "let Debezium send the document as JSON text")
    return {field: plain(item) for field, item in value.items()}
