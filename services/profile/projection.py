"""Rows of one person in, the person's document out: survivorship by declared rules. Pure.

The document is a function of the set of the rows, whatever their order: rows are taken from the latest to the
oldest, and by record key where times are equal, so that every rule chooses the same value every time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, assert_never

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from headwater.common.v1 import common_pb2
from headwater.profile.v1 import events_pb2
from services.profile.columns import EXCLUDED, Columns
from services.profile.settings import Rule, Settings


class SourceRow(NamedTuple):
    """A current row of a profile.

    Attributes:
        record: its record key.
        source, entity: where it is from.
        occurred_us: when it changed at its source, microseconds since the epoch.
        body: the row, a JSON object as text.
        identifiers: its normalised identifiers, a JSON list of [kind, value].
        suspect: whether identity resolution suspects its profile of holding more than one person.
    """

    record: str
    source: str
    entity: str
    occurred_us: int
    body: str
    identifiers: str
    suspect: int


class Folded(NamedTuple):
    """A document without its version, which is not a function of the rows.

    Attributes:
        content: the Profile, encoded; equal documents are equal bytes.
        identifiers: its identifiers, a sorted JSON list of [kind, value].
    """

    content: bytes
    identifiers: str


class Candidate(NamedTuple):
    """A value that a row offers for a declared field: the row's place, 0 being the latest, and the column's rank."""

    place: int
    rank: int
    value: Any
    row: SourceRow


class Projection:
    """Folds rows into documents by the configured rules."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._columns = Columns(settings)

    def fold(self, tenant: str, profile_id: str, rows: Iterable[SourceRow]) -> Folded | None:
        """Return the document that the rows make; None when there are none."""
        ordered = sorted(rows, key=_latest_first)
        if not ordered:
            return None
        profile = events_pb2.Profile(tenant=tenant, profile_id=profile_id, suspect=any(row.suspect for row in ordered))
        _set_time(profile.as_of, ordered[0].occurred_us)
        listed = self._settings.records_max
        profile.records_omitted = max(0, len(ordered) - listed)
        own: dict[str, tuple[Any, SourceRow]] = {}
        declared: dict[str, list[Candidate]] = defaultdict(list)
        for place, row in enumerate(ordered):
            body = self._offer(place, row, own, declared)
            if place < listed:
                _list_row(profile, row, body)
        for name, (value, row) in own.items():
            _set_field(profile.fields[name], orjson.dumps(value).decode(), row)
        for name, candidates in declared.items():
            _set_field(profile.fields[name], *_choose(self._settings.fields[name].rule, candidates))
        identifiers = _identifiers(ordered)
        profile.identifiers.extend(common_pb2.Identifier(kind=kind, value=value) for kind, value in identifiers)
        return Folded(profile.SerializeToString(deterministic=True), orjson.dumps(identifiers).decode())

    def _offer(
        self,
        place: int,
        row: SourceRow,
        own: dict[str, tuple[Any, SourceRow]],
        declared: dict[str, list[Candidate]],
    ) -> str:
        """Take a row's values as candidates; return the row without its secrets."""
        targets = self._columns.of(row.source, row.entity)
        values = orjson.loads(row.body)
        secrets = []
        for column, value in values.items():
            target = targets.get(column)
            if target is None:
                target = self._columns.target(row.source, row.entity, column)
            if isinstance(target, tuple):
                if value is not None and value != "":
                    for field, rank in target:
                        declared[field].append(Candidate(place, rank, value, row))
            elif target == EXCLUDED:
                secrets.append(column)
            elif target not in own and value is not None and value != "":
                own[target] = (value, row)
        if not secrets:
            return row.body
        return orjson.dumps({column: values[column] for column in values if column not in secrets}).decode()


def _latest_first(row: SourceRow) -> tuple[int, str]:
    return -row.occurred_us, row.record


def _choose(rule: Rule, candidates: list[Candidate]) -> tuple[str, SourceRow]:
    """Return the value that a rule chooses, as JSON, and the row that it is from.

    Args:
        rule: the rule.
        candidates: at least one.
    """
    # Within a row the more trusted column goes first: the order in which the row has them is the source's whim.
    candidates.sort(key=_place_and_rank)
    match rule:
        case Rule.LATEST:
            best = candidates[0]
        case Rule.MOST_TRUSTED:
            best = min(candidates, key=lambda c: c.rank)
        case Rule.LONGEST:
            best = max(candidates, key=lambda c: len(_text(c.value)))
        case Rule.MOST_FREQUENT:
            texts = [_json(c.value) for c in candidates]
            [(winner, _)] = Counter(texts).most_common(1)  # the first met of equals: the latest
            best = candidates[texts.index(winner)]
        case Rule.UNION:
            return _union(candidates), candidates[0].row
        case _:
            assert_never(rule)
    return orjson.dumps(best.value).decode(), best.row


def _place_and_rank(candidate: Candidate) -> tuple[int, int]:
    return candidate.place, candidate.rank


def _union(candidates: Sequence[Candidate]) -> str:
    items = {
        _json(item)
        for c in candidates
        for item in (c.value if isinstance(c.value, list) else (c.value,))
        if item is not None and item != ""
    }
    return f"[{','.join(sorted(items))}]"


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _identifiers(rows: Sequence[SourceRow]) -> list[tuple[str, str]]:
    texts = {row.identifiers for row in rows}
    return sorted({(kind, value) for text in texts for kind, value in orjson.loads(text)})


def _set_field(field: events_pb2.FieldValue, value_json: str, row: SourceRow) -> None:
    field.value_json = value_json
    field.record = row.record
    field.source = row.source
    _set_time(field.occurred_at, row.occurred_us)


def _list_row(profile: events_pb2.Profile, row: SourceRow, body: str) -> None:
    listed = profile.records.add(record=row.record, source=row.source, entity=row.entity, row_json=body)
    _set_time(listed.occurred_at, row.occurred_us)


def _set_time(field: Timestamp, microseconds: int) -> None:
    field.seconds = microseconds // 1_000_000
    field.nanos = microseconds % 1_000_000 * 1000
