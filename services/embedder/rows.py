"""Rows of tables as documents: which columns are embedded, which are live, which are metadata or access. Pure."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.kernel.settings import Section

Row = Mapping[str, Any]
Part = tuple[str, str | None]
"""Words, and the column whose value follows them."""


@dataclass(frozen=True, slots=True)
class RowTemplate:
    """How the rows of one table become documents.

    Attributes:
        source, entity: which table.
        title, text: words and columns in turn.
        live: columns that are shown as they are now; a change of them costs no embedding.
        metadata: columns that become metadata.
        access: columns that hold access labels.
    """

    source: str
    entity: str
    title: tuple[Part, ...]
    text: tuple[Part, ...]
    live: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    access: tuple[str, ...] = ()

    @property
    def columns(self) -> frozenset[str]:
        """All columns that the document depends on."""
        named = {column for _, column in (*self.title, *self.text) if column is not None}
        return frozenset({*named, *self.live, *self.metadata, *self.access})

    def title_of(self, row: Row) -> str:
        """The document's title."""
        return _rendered(self.title, row)

    def text_of(self, row: Row) -> str:
        """The document's text; empty where no column that it names has a value."""
        if all(row.get(column) in (None, "") for _, column in self.text if column is not None):
            return ""
        return _rendered(self.text, row)

    def live_of(self, row: Row) -> str:
        """The live columns that the row has, a JSON object; empty when there are none."""
        values = {column: row[column] for column in self.live if column in row}
        return orjson.dumps(values).decode() if values else ""

    def metadata_of(self, row: Row) -> dict[str, str]:
        """The metadata columns that have a value, as text."""
        return {column: words for column in self.metadata if (words := text_value(row.get(column)))}

    def access_of(self, row: Row) -> tuple[str, ...]:
        """The labels of which a reader needs one.

        A row with access columns but without a label in them is for nobody: a missing value must not open it.
        """
        labels: set[str] = set()
        for column in self.access:
            value = row.get(column)
            labels.update(
                str(item) for item in (value if isinstance(value, list) else [value]) if item not in (None, "")
            )
        return tuple(sorted(labels)) if labels or not self.access else (NOBODY,)


NOBODY = "\x01nobody"
"""A label that no reader can hold."""

SETTINGS = ("source", "entity", "title", "text", "live", "metadata", "access")
"""The names of the settings of a table."""


def parse(read: Section) -> RowTemplate:
    """Read one of [[embedder.tables]]; raises InvalidInputError that names the setting which is wrong."""
    template = RowTemplate(
        source=read.text("source", required=True),
        entity=read.text("entity", required=True),
        title=_parts(read, "title", read.text("title")),
        text=_parts(read, "text", read.text("text", required=True)),
        live=read.texts("live"),
        metadata=read.texts("metadata"),
        access=read.texts("access"),
    )
    if not any(column for _, column in template.text):
        raise read.refusal("text", 'names no column: write them as in "{name} in {city}"')
    return template


def text_value(value: Any) -> str:
    """A column's value as it stands in a text: nothing for null, yes or no for truth, JSON for what is nested."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case list() if all(not isinstance(item, list | dict) for item in value):
            return ", ".join(text_value(item) for item in value)
        case list() | dict():
            return orjson.dumps(value).decode()
        case _:
            return str(value)


def _rendered(parts: Sequence[Part], row: Row) -> str:
    return "".join(
        words + (text_value(row.get(column)) if column is not None else "") for words, column in parts
    ).strip()


def _parts(read: Section, name: str, template: str) -> tuple[Part, ...]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise read.refusal(name, f"is {template!r} ({error}): write a brace itself as {{{{ or }}}}") from error
    for _, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise read.refusal(name, f"is {template!r}: between braces goes the name of a column and nothing else")
    return tuple((words, column) for words, column, _, _ in parsed)
