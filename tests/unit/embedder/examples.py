"""Changes of documents and rows for tests, and a model that embeds words by their hashes in no time."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from headwater.ingest.v1 import events_pb2
from services.embedder.ports import Vector
from services.kernel import topics
from services.kernel.log import Message, Record, key_of, message_of, partition_of

PARTITIONS = 4
T0_MS = 1_700_000_000_000
HOTELS = {
    "source": "inventory", "entity": "hotels", "title": "{name}", "text": "{name} in {city}. {description}",
    "live": ["price"], "metadata": ["city"],
}  # fmt: skip


class HashModel:
    """Embeds the words of a text: texts that share words are near."""

    model_id = "hash/1"
    dimensions = 64
    tokens_max = 64

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, text: str) -> Vector:
        self.embedded.append(text)
        vector = np.zeros(self.dimensions, np.float32)
        vector[0] = 0.1
        for word in re.findall(r"\w+", text.lower()):
            vector[hashlib.sha256(word.encode()).digest()[0] % self.dimensions] += 1
        return vector / np.float32(np.linalg.norm(vector))

    def token_starts(self, text: str) -> Sequence[int]:
        return [found.start() for found in re.finditer(r"\w+|[^\w\s]", text)]

    def load(self) -> None:
        pass


def document(
    document_id: str,
    content: str | bytes | None,
    *,
    position: int = 0,
    tenant: str = "",
    seconds: int = 0,
    **fields: Any,
) -> events_pb2.DocumentChange:
    """A change of a document; no content means that it is gone."""
    change = events_pb2.DocumentChange(
        tenant=tenant, source=fields.pop("source", "docs"), document_id=document_id,
        operation=events_pb2.DOCUMENT_OPERATION_DELETE if content is None else events_pb2.DOCUMENT_OPERATION_PUT,
        content=content.encode() if isinstance(content, str) else content or b"",
        position=f"docs:{position:05d}" if position else "", **fields,
    )  # fmt: skip
    change.occurred_at.FromMilliseconds(T0_MS + (seconds or position) * 1000)
    return change


def row(
    key: int,
    after: dict[str, Any] | None,
    *,
    position: int = 0,
    op: str = "",
    unavailable: Sequence[str] = (),
    partial: bool = False,
) -> events_pb2.Change:
    """A change of a hotel."""
    name = op or ("delete" if after is None else "update")
    change = events_pb2.Change(
        source="inventory", entity="hotels", record="" if name == "truncate" else f"inventory/hotels/{key}",
        operation=events_pb2.Operation.Value(f"OPERATION_{name.upper()}"), unavailable=unavailable,
        after_json=orjson.dumps(after).decode() if after is not None else "",
        position=f"inv:{position:05d}" if position else "", partial=partial,
    )  # fmt: skip
    change.occurred_at.FromMilliseconds(T0_MS + position * 1000)
    return change


def message(change: events_pb2.DocumentChange | events_pb2.Change, partition: int | None = None) -> Message:
    """A change as it is appended."""
    at_ms = change.occurred_at.ToMilliseconds()
    if isinstance(change, events_pb2.DocumentChange):
        return message_of(topics.DOCUMENTS, key_of(change.tenant, change.document_id), change, at_ms)
    about = change.record or f"{change.source}/{change.entity}"
    return message_of(topics.CHANGES, key_of(change.tenant, about), change, at_ms, partition)


def record(change: events_pb2.DocumentChange | events_pb2.Change, offset: int = 0) -> Record:
    """A change as a consumer reads it."""
    m = message(change)
    partition = partition_of(m.key or b"", PARTITIONS)
    return Record(m.topic, partition, offset, m.key, m.value, m.type, f"{m.topic}/{offset}", m.timestamp_ms)
