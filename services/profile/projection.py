"""Rows of one person in, the person's document out: survivorship by declared rules. Pure.

The document is a function of the set of the rows, whatever their order: rows are taken from the latest to the
oldest, and by record key where times are equal, so that every rule chooses the same value every time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, assert_never

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

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
        identifiers: its normalised identifiers, a sorted JSON list of [kind, value] without repetitions.
        suspect: whether identity resolution suspects its profile of holding more than one person.
        profile: the key of its profile.
    """

    record: str
    source: str
    entity: str
    occurred_us: int
    body: str
    identifiers: str
    suspect: int
    profile: str = ""


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


class _Offers:
    """The values that rows offer for fields; rows are taken from the oldest to the latest, so later ones prevail.

    Attributes:
        values: for fields by their own name, the value so far.
        places: for the same fields, the place of the row that the value is from, 0 being the latest.
        candidates: for declared fields, all values.
    """

    __slots__ = ("candidates", "places", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, int] = {}
        self.candidates: dict[str, list[Candidate]] = {}


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
        profile = events_pb2.Profile(tenant=tenant, profile_id=profile_id)
        profile.suspect = any(row.suspect for row in ordered)
        _set_time(profile.as_of, ordered[0].occurred_us)
        offers = _Offers()
        bodies = [self._offer(place, ordered[place], offers) for place in range(len(ordered) - 1, -1, -1)]
        _set_own(profile, offers, ordered)
        if offers.candidates:
            self._set_declared(profile, offers.candidates)
        bodies.reverse()
        _list_rows(profile, ordered, bodies, self._settings.records_max)
        identifiers = _identifiers(ordered)
        for kind, value in orjson.loads(identifiers):
            profile.identifiers.add(kind=kind, value=value)
        return Folded(profile.SerializeToString(deterministic=True), identifiers)

    def _offer(self, place: int, row: SourceRow, offers: _Offers) -> str:
        """Take a row's values; return the row without its secrets."""
        _, source, entity, _, body, *_ = row
        values = orjson.loads(body)
        if self._columns.are_plain(source, entity, tuple(values)):
            # The common case, at the speed of C: every column is a field of its own name.
            if "null" in body or '""' in body:
                values = {column: value for column, value in values.items() if _is_value(value)}
            offers.values.update(values)
            offers.places.update(dict.fromkeys(values, place))
            return body
        secrets = []
        for column, value in values.items():
            target = self._columns.target(source, entity, column)
            if target == EXCLUDED:
                secrets.append(column)
            elif not _is_value(value):
                continue
            elif isinstance(target, str):
                offers.values[target], offers.places[target] = value, place
            else:
                for field, rank in target:
                    offers.candidates.setdefault(field, []).append(Candidate(place, rank, value, row))
        if not secrets:
            return body
        return orjson.dumps({column: values[column] for column in values if column not in secrets}).decode()

    def _set_declared(self, profile: events_pb2.Profile, candidates: Mapping[str, list[Candidate]]) -> None:
        for name, offered in candidates.items():
            value_json, row = _choose(self._settings.fields[name].rule, offered)
            field = profile.fields[name]
            field.MergeFromString(_origin(row))
            field.value_json = value_json


def _is_value(value: Any) -> bool:
    return value is not None and value != ""


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


def _identifiers(rows: Sequence[SourceRow]) -> str:
    texts = {row.identifiers for row in rows}
    if len(texts) == 1:
        return texts.pop()
    return orjson.dumps(sorted({(kind, value) for text in texts for kind, value in orjson.loads(text)})).decode()


def _set_own(profile: events_pb2.Profile, offers: _Offers, rows: Sequence[SourceRow]) -> None:
    fields, values = profile.fields, offers.values
    origins: dict[int, bytes] = {}
    for name, place in offers.places.items():
        origin = origins.get(place)
        if origin is None:
            origin = origins[place] = _origin(rows[place])
        field = fields[name]
        field.MergeFromString(origin)  # half the time of setting its parts one by one
        field.value_json = orjson.dumps(values[name]).decode()


def _list_rows(profile: events_pb2.Profile, rows: Sequence[SourceRow], bodies: Sequence[str], limit: int) -> None:
    for row, body in zip(rows[:limit], bodies, strict=False):
        record = profile.records.add(record=row.record, source=row.source, entity=row.entity, row_json=body)
        _set_time(record.occurred_at, row.occurred_us)
    if len(rows) > limit:
        profile.records_omitted = len(rows) - limit


def _origin(row: SourceRow) -> bytes:
    """Return an encoded FieldValue that has everything but the value."""
    field = events_pb2.FieldValue(record=row.record, source=row.source)
    _set_time(field.occurred_at, row.occurred_us)
    return field.SerializeToString()


def _set_time(field: Timestamp, microseconds: int) -> None:
    field.seconds = microseconds // 1_000_000
    field.nanos = microseconds % 1_000_000 * 1000
