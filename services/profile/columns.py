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

EXCLUDED: Target = "\0"
"""The column is a secret: it feeds nothing, and is cut out of the row as well."""


class Columns:
    """Looks up what columns feed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._feeds: dict[tuple[str, str, str], list[Feed]] = defaultdict(list)
        for name, rule in settings.fields.items():
            self._declare(name, rule)
        self._targets: dict[tuple[str, str, str], Target] = {}
        self._plain: dict[tuple[str, str, tuple[str, ...]], bool] = {}

    def _declare(self, name: str, rule: FieldRule) -> None:
        for rank, column in enumerate(dict.fromkeys(rule.columns)):
            self._feeds[column].append(Feed(name, rank))

    def are_plain(self, source: str, entity: str, columns: tuple[str, ...]) -> bool:
        """Tell whether every one of a row's columns is simply the field of that name."""
        shape = (source, entity, columns)
        if (plain := self._plain.get(shape)) is None:
            if len(self._plain) >= REMEMBERED_MAX:
                self._plain.clear()
            plain = self._plain[shape] = all(self.target(source, entity, name) == name != EXCLUDED for name in columns)
        return plain

    def target(self, source: str, entity: str, column: str) -> Target:
        """Return what a column feeds."""
        place = (source, entity, column)
        if (target := self._targets.get(place)) is None:
            if len(self._targets) >= REMEMBERED_MAX:
                self._targets.clear()
            target = self._targets[place] = self._find(source, entity, column.lower())
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
            return () if target == EXCLUDED else (target,)
        return tuple(feed.field for feed in target)
