"""From a row to the identifiers that it holds: by configuration, and by the names of its columns. Pure.

Names decide cautiously. A number in a column that names somebody else (`agent_email`) is not the person's, and a bare
number in `customer_id` counts within its source only, for every system counts from 1.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from services.identity_graph.column_names import (
    OTHERS,
    PERSONS,
    PLURALS,
    THINGS,
    column_words,
    entity_words,
    kind_of,
    rule_of,
)
from services.identity_graph.normalise import junk_test, normaliser
from services.identity_graph.settings import ColumnRule, EntityRule, Format, Settings, Strength

JUNK = "~"
"""Stands before the kind of an identifier that is junk: it is kept for explanations, and links nobody."""

NOTHING = ("", "")
"""Stands for kind and value where a column that can link holds nothing: the row is a person's all the same."""

REMEMBERED_SHAPES = 10_000

Entry = tuple[str, str, str]
"""An identifier in a row: column, kind, normalised value."""

Reader = Callable[[str], tuple[str, str] | None]
"""Takes what is written in a column; returns kind and normalised value, or None when it is nothing of the kind."""


class _Column(NamedTuple):
    """How to read one column: its name, its path in the row, what it holds, and whether that can link."""

    name: str
    path: tuple[str, ...]
    read: Reader
    links: bool


class _Shape(NamedTuple):
    """How to read the rows of an entity that have the same columns; person tells whether they are persons' at all."""

    person: bool
    columns: tuple[_Column, ...]


class Extractor:
    """Finds the identifiers of rows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: dict[tuple[ColumnRule, str], Reader] = {}
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._ignored: dict[tuple[str, str], bool] = {}

    def ignores(self, source: str, entity: str) -> bool:
        """Tell whether the rows of an entity are never a person's, whatever their columns."""
        known = self._ignored.get((source, entity))
        if known is None:
            rule = self._settings.entities.get((source, entity))
            known = entity_words(entity) in THINGS if rule is None else rule.person is False
            if len(self._ignored) < REMEMBERED_SHAPES:
                self._ignored[source, entity] = known
        return known

    def always_persons(self, source: str, entity: str) -> bool:
        """Tell whether the rows of an entity are each a person's, whatever their columns."""
        rule = self._settings.entities.get((source, entity))
        return rule is not None and rule.person is True

    def normalise(self, kind: str, value: str) -> tuple[str, str] | None:
        """Return kind and value in the one form of an identifier that somebody asks for; None when it is none."""
        if kind not in self._settings.kinds:
            return None
        return self._reader(ColumnRule(kind), self._settings.default_region)(value)

    def read(
        self, source: str, entity: str, key: Mapping[str, Any], row: Mapping[str, Any]
    ) -> tuple[bool, tuple[Entry, ...]]:
        """Return whether a row is a person's, and its identifiers in a canonical order.

        Args:
            source: The source.
            entity: The kind of record.
            key: The primary key; its columns count as the row's.
            row: The row, or some of its columns: then whether these alone make it a person's.
        """
        if not key.keys() <= row.keys():
            row = {**key, **row}
        shape = self._shape(source, entity, key, row)
        found: list[Entry] = []
        in_order = True  # as the columns are, unless one of them has several values
        for name, path, read, links in shape.columns:
            value: Any = row[path[0]] if len(path) == 1 else row[path[0]][path[1]]
            known = None
            if value.__class__ is str:
                known = read(value)
            elif value.__class__ is int:
                known = read(str(value))
            elif value is not None:
                in_order = False
                several = [(name, *one) for item in _texts(value) if (one := read(item))]
                found.extend(several)
                if several:
                    continue
            if known:
                found.append((name, *known))
            elif links:
                found.append((name, *NOTHING))
        return shape.person, tuple(found) if in_order else merged(found)

    def columns(self, source: str, entity: str, key: Mapping[str, Any], row: Mapping[str, Any]) -> frozenset[str]:
        """Return the outer names of the columns of a row that hold identifiers."""
        return frozenset(column.path[0] for column in self._shape(source, entity, key, {**key, **row}).columns)

    def _shape(self, source: str, entity: str, key: Mapping[str, Any], row: Mapping[str, Any]) -> _Shape:
        columns = tuple(_paths(row)) if dict in map(type, row.values()) else tuple(row)
        region = row.get("country_code") or row.get("country") or ""
        if region.__class__ is not str or len(region) != 2:
            region = self._settings.default_region
        place = (source, entity, columns, len(key), region)
        shape = self._shapes.get(place)
        if shape is None:
            if len(self._shapes) >= REMEMBERED_SHAPES:
                self._shapes.clear()
            shape = self._shapes[place] = self._make_shape(source, entity, tuple(key), columns, region=region)
        return shape

    def _make_shape(
        self,
        source: str,
        entity: str,
        key: tuple[str, ...],
        columns: tuple[str | tuple[str, ...], ...],
        *,
        region: str,
    ) -> _Shape:
        entity_rule = self._settings.entities.get((source, entity), EntityRule())
        paths = {path: column_words(".".join(path)) for path in (c if isinstance(c, tuple) else (c,) for c in columns)}
        rules = dict(self._default_rules(source, entity, key, paths)) if entity_rule.defaults else {}
        for path in paths:
            configured = entity_rule.columns.get(".".join(path))
            if configured is not None:
                rules[path] = configured
        rules = {path: rule for path, rule in rules.items() if rule.kind}
        linking = {kind for kind, rule in self._settings.kinds.items() if rule.strength is not Strength.WEAK}
        person = entity_rule.person
        if person is None:
            person = any(rule.kind in linking for rule in rules.values())
        columns_read = [
            _Column(".".join(path), path, self._reader(rule, region), rule.kind in linking)
            for path, rule in rules.items()
        ]
        return _Shape(person, tuple(sorted(columns_read, key=lambda column: column[:2])))

    def _reader(self, rule: ColumnRule, region: str) -> Reader:
        place = (rule, region if self._settings.kinds[rule.kind].format is Format.PHONE else "")
        if place not in self._readers:
            self._readers[place] = self._make_reader(*place)
        return self._readers[place]

    def _make_reader(self, rule: ColumnRule, region: str) -> Reader:
        kind, format_ = rule.kind, self._settings.kinds[rule.kind].format
        normalise = normaliser(format_, self._settings, region)
        is_junk = junk_test(format_, self._settings.junk)

        def read(written: str) -> tuple[str, str] | None:
            value = normalise(written)
            if value is None:
                return None
            return (JUNK + kind if is_junk(value) else kind), value

        def read_scoped(written: str) -> tuple[str, str] | None:
            value = normalise(written)
            if value is None:
                return None
            scope = rule.scope
            if not scope and value.isascii() and value.isdigit() and not 0 < rule.digits_min <= len(value):
                scope = rule.scope_of_numbers
            # A number that a system gave out is as good as any: 11, 222 and 123456 too, only 0 is none.
            junk = not value.strip("0") if scope and value.isdigit() else is_junk(value)
            return (JUNK + kind if junk else kind), (f"{scope}/{value}" if scope else value)

        return read_scoped if rule.scope or rule.scope_of_numbers else read

    def _default_rules(
        self, source: str, entity: str, key: tuple[str, ...], paths: Mapping[tuple[str, ...], str]
    ) -> Iterator[tuple[tuple[str, ...], ColumnRule]]:
        own = PLURALS.get(entity_words(entity))
        own_key = key[0] if len(key) == 1 and own and column_words(key[0]) in {"id", f"{own}_id"} else None
        by_name = {name: path for path, name in paths.items()}
        references = (noun for noun in PERSONS if noun != own and f"{noun}_id" in by_name)
        if (noun := next(references, None)) is not None:
            yield by_name[f"{noun}_id"], ColumnRule("account", scope_of_numbers=f"{source}/{noun}")
        for path, name in paths.items():
            if path == (own_key,):
                yield path, ColumnRule("account", scope_of_numbers=f"{source}/{own}")
            elif name == f"{own}_id":  # a number beside the key counts for itself: it is not the key of another row
                yield path, ColumnRule("account", scope_of_numbers=f"{source}/{own}_id")
            elif not OTHERS.intersection(name.split("_")) and (kind := kind_of(name)):
                yield path, rule_of(kind, name, source)


def _paths(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Return the columns of a row that holds objects, those within as outer and inner name."""
    for name, value in row.items():
        if value.__class__ is dict:
            yield from ((name, inner) for inner in value)
        else:
            yield (name,)


def _texts(value: object) -> Iterator[str]:
    """Return numbers as text, 42.0 as 42 (a retyped column), and the items of a list; nothing else is an identifier."""
    if isinstance(value, str):
        yield value
    elif value.__class__ is int:
        yield str(value)
    elif isinstance(value, float) and value.is_integer():
        yield str(int(value))
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, list):
                yield from _texts(item)


def without(entries: Iterable[Entry], columns: Collection[str]) -> list[Entry]:
    """Return the entries that are not of some columns (nor within them)."""
    return [entry for entry in entries if not _is_of(entry, columns)]


def of_columns(entries: Iterable[Entry], columns: Collection[str]) -> list[Entry]:
    """Return the entries that are of some columns (or within them)."""
    return [entry for entry in entries if _is_of(entry, columns)]


def outer_columns(entries: Iterable[Entry]) -> set[str]:
    """Return the names of the columns that entries are of; of one within an object, the object's."""
    return {entry[0].partition(".")[0] for entry in entries}


def merged(*parts: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return all entries in a canonical order."""
    return tuple(sorted({entry for part in parts for entry in part}))


def _is_of(entry: Entry, columns: Collection[str]) -> bool:
    return entry[0] in columns or entry[0].partition(".")[0] in columns
