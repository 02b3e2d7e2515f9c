"""The canonical record key: source/entity/primary key, one text that names a row in every topic and store."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

OTHER_COLUMNS = "\x1f"
"""Stands for all columns that are not named; no column is called so."""

NOT_WHOLE: Mapping[str, str] = MappingProxyType({"whole": "no"})
"""The headers of a message that adds to earlier ones of its key, so that compaction must keep those."""

# The separator, the escape, and control characters, which some stores and terminals cut or hide.
_RESERVED = re.compile(r"[%/\x00-\x1f\x7f]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")


def record_key(source: str, entity: str, key: Mapping[str, Any]) -> str:
    """The record key of a row, for example `crm/customers/42`.

    Args:
        source: The source system.
        entity: The kind of record.
        key: The primary key, column to value. Columns are taken in the order of their names, so that writers that
            order them differently mean the same row; a number and the same number as text mean the same row too.
    """
    if len(key) == 1:
        (value,) = key.values()
        return f"{_encoded(source)}/{_encoded(entity)}/{_encoded(_text(value))}"
    values = (_encoded(_text(key[column])) for column in sorted(key))
    return "/".join((_encoded(source), _encoded(entity), *values))


def record_parts(record: str) -> list[str]:
    """The parts of a record key, decoded: source, entity, then the key's values as text."""
    return [_ESCAPE.sub(lambda found: chr(int(found[1], 16)), part) for part in record.split("/")]


def _encoded(part: str) -> str:
    return _RESERVED.sub(lambda found: f"%{ord(found[0]):02X}", part)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
