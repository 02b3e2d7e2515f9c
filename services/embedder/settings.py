"""The settings of the embedder: the table [embedder] of the configuration.

[embedder]
document_bytes_max = 33554432    # a larger document is parked with that reason
chunk_tokens = 160               # neighbouring paragraphs are put together up to this, in the model's tokens
vector_weight = 0.8              # the share of meaning in a hit's score; the rest is words
attempts_max = 8                 # a document that fails more often is parked
memory_bytes_max = 67108864      # of documents that are worked on at the same time

[[embedder.tables]]              # rows that become documents
source = "inventory"
entity = "hotels"
title = "{name}"
text = "{name} in {city}. {description}"    # columns that are named here or in the title are embedded
live = ["price_per_night", "rooms_left"]    # columns that are shown as they are now and cost no embedding
metadata = ["city"]                         # columns that become metadata
access = ["audience"]                       # columns that hold access labels: a text, or a list of texts
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.embedder.rows import RowTemplate, parse
from services.kernel.errors import InvalidInputError
from services.kernel.settings import from_table

_SECTION = "[embedder]"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        document_bytes_max: the largest document that is read, in bytes.
        chunk_tokens: how large chunks are made of neighbouring paragraphs, in the model's tokens.
        vector_weight: the share of the vectors in the fused score, 0 to 1.
        attempts_max: a document is parked after so many failed attempts.
        memory_bytes_max: of documents in work at the same time, in bytes; a larger one is worked on alone.
        tables: how rows become documents, by source and entity.
    """

    document_bytes_max: int = 32 << 20
    chunk_tokens: int = 160
    vector_weight: float = 0.8
    attempts_max: int = 8
    memory_bytes_max: int = 64 << 20
    tables: Mapping[tuple[str, str], RowTemplate] = field(default_factory=dict)

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [embedder].

        Raises:
            InvalidInputError: a key is unknown or its value wrong; the message names it.
        """
        rest = dict(table)
        entries = rest.pop("tables", [])
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InvalidInputError(f"{_SECTION}: tables must be a list of tables, each headed [[embedder.tables]]")
        tables: dict[tuple[str, str], RowTemplate] = {}
        for number, entry in enumerate(entries, start=1):
            where = f"[[embedder.tables]] number {number}"
            template = parse(entry, where)
            if (template.source, template.entity) in tables:
                raise InvalidInputError(f"{where}: {template.source}/{template.entity} is there already: join the two")
            tables[template.source, template.entity] = template
        settings = from_table(cls, {**rest, "tables": tables}, _SECTION)
        settings.check()
        return settings

    def check(self) -> None:
        """Raise InvalidInputError when a number is out of its range."""
        for name, low, high in (
            ("document_bytes_max", 1, 1 << 30),
            ("chunk_tokens", 16, 200),
            ("vector_weight", 0, 1),
            ("attempts_max", 1, 1000),
            ("memory_bytes_max", 1, 1 << 36),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInputError(f"{_SECTION}: {name} is {value}: it must be {low} to {high}")
