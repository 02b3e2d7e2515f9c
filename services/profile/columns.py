"""Which fields a column of a source's entity feeds: the configuration, looked up once for every column. Pure."""

from collections import defaultdict
from fnmatch import fnmatchcase
from typing import NamedTuple

from services.profile.settings import FieldRule, Settings

# Sources may make up column names without end (one a user, say): beyond this many the look-up is begun anew.
REMEMBERED_MAX = 10_000


class Feed(NamedTuple):
    """A declared field that a column feeds, and the column's place in the field's `from`, 0 being the most trusted."""

    field: str
    rank: int


Target = str | tuple[Feed, ...]
"""What a column feeds: the field of its own name, or declared fields (none where it is only listed with its row)."""

EXCLUDED: Target = ""
"""The column is a secret: it feeds nothing, and is cut out of the row as well."""


class Columns:
    """Looks up what columns feed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._feeds: dict[tuple[str, str, str], list[Feed]] = defaultdict(list)
        for name, rule in settings.fields.items():
            self._declare(name, rule)
        self._targets: dict[tuple[str, str], dict[str, Target]] = defaultdict(dict)
        self._remembered = 0

    def _declare(self, name: str, rule: FieldRule) -> None:
        for rank, column in enumerate(dict.fromkeys(rule.columns)):
            self._feeds[column].append(Feed(name, rank))

    def of(self, source: str, entity: str) -> dict[str, Target]:
        """Return what is remembered of an entity's columns; `target` adds to it."""
        return self._targets[source, entity]

    def target(self, source: str, entity: str, column: str) -> Target:
        """Return what a column feeds."""
        known = self._targets[source, entity]
        if (target := known.get(column)) is None:
            if self._remembered >= REMEMBERED_MAX:
                self._targets.clear()
                self._remembered = 0
            target = self._targets[source, entity][column] = self._find(source, entity, column.lower())
            self._remembered += 1
        return target

    def _find(self, source: str, entity: str, column: str) -> Target:
        if any(fnmatchcase(column, pattern) for pattern in self._settings.exclude):
            return EXCLUDED
        if feeds := self._feeds.get((source, entity, column)):
            return tuple(feeds)
        return () if self._settings.only_declared or column in self._settings.fields else column

    def fields(self, source: str, entity: str, column: str) -> tuple[str, ...]:
        """Return the names of the fields that a column feeds."""
        target = self.target(source, entity, column)
        if isinstance(target, str):
            return (target,) if target else ()
        return tuple(feed.field for feed in target)
