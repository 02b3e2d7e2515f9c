"""Who may read what of a profile: purposes, consent, and the fields that are for some purposes only. Pure."""

from typing import NamedTuple

import orjson

from headwater.profile.v1 import events_pb2
from services.profile.columns import Columns
from services.profile.settings import Settings

_GRANTED = (True, 1, "1", "true", "yes", "y", "granted")


class View(NamedTuple):
    """What a reader gets: the profile, and the names of the fields that it has but the reader may not see."""

    profile: events_pb2.Profile
    withheld: tuple[str, ...]


class Policy:
    """Applies the configured policies to profiles."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._columns = Columns(settings)

    def view(self, profile: events_pb2.Profile, purpose: str) -> View:
        """Return what a reader with a purpose may see.

        A field under a policy is only for the purposes that the policy names; a reader who states none gets the
        fields without a policy. A purpose that needs consent gets no field at all where the consent is not there.
        What is withheld as a field is withheld in the rows and among the identifiers too.

        Args:
            profile: the whole profile; it is not changed.
            purpose: what the reader wants it for; empty means not stated.
        """
        consented = self._consented(profile, purpose)
        if consented and not self._settings.policies:
            return View(profile, ())
        withheld = {name for name in profile.fields if not (consented and self._allowed(name, purpose))}
        seen = events_pb2.Profile()
        seen.CopyFrom(profile)
        for name in withheld:
            del seen.fields[name]
        del seen.identifiers[:]
        del seen.records[:]
        if consented:
            seen.identifiers.extend(i for i in profile.identifiers if self._allowed(i.kind, purpose))
            seen.records.extend(self._row(record, purpose) for record in profile.records)
        return View(seen, tuple(sorted(withheld)))

    def _consented(self, profile: events_pb2.Profile, purpose: str) -> bool:
        needed = self._settings.consent.get(purpose)
        if needed is None:
            return True
        if needed not in profile.fields:
            return False
        value = orjson.loads(profile.fields[needed].value_json)
        return (value.lower() if isinstance(value, str) else value) in _GRANTED

    def _allowed(self, field: str, purpose: str) -> bool:
        purposes = self._settings.policies.get(field)
        return purposes is None or purpose in purposes

    def _row(self, record: events_pb2.ProfileRecord, purpose: str) -> events_pb2.ProfileRecord:
        """Return a row without the columns that feed a withheld field, or are named as one."""
        row = orjson.loads(record.row_json)
        visible = {
            column: value
            for column, value in row.items()
            if self._allowed(column.lower(), purpose)
            and all(self._allowed(f, purpose) for f in self._columns.fields(record.source, record.entity, column))
        }
        if len(visible) == len(row):
            return record
        seen = events_pb2.ProfileRecord()
        seen.CopyFrom(record)
        seen.row_json = orjson.dumps(visible).decode()
        return seen
