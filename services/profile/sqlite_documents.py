"""Documents of profiles in the installation's SQLite database: the state of profile-fold.

A profile is keyed by the text of its topic key (tenant, separator, profile id).
"""

import asyncio
import itertools
from collections.abc import Sequence

import orjson

from services.kernel.log import SEPARATOR, Progress, Record
from services.kernel.sqlite import Database
from services.profile.documents import Documents, FoldFailedError, Published, Stored
from services.profile.ports import Fold
from services.profile.projection import SourceRow
from services.profile.sqlite_rows import texts

_IN = "IN (SELECT value FROM json_each(?))"
_ROWS_PER_TURN = 1000


def identifier_key(tenant: str, kind: str, value: str) -> str:
    """Return the key of an identifier in the look-up."""
    return SEPARATOR.join((tenant, kind, value))


class SqliteDocuments:
    """The state of profile-fold."""

    def __init__(self, database: Database, fold: Fold) -> None:
        self._database, self._fold = database, fold

    async def load(self, batch: Sequence[Record]) -> Documents:
        """Load the documents of the touched profiles, and fold their rows."""
        keys = texts({record.key.decode() for record in batch if record.key is not None})
        writer = self._database.writer
        documents = writer.execute(
            f"SELECT key, version, content, identifiers FROM profile_documents WHERE key {_IN}", (keys,)
        )
        state = Documents({key: Stored(*fields) for key, *fields in documents})
        seeds = writer.execute(f"SELECT key, version, digest FROM profile_seeds WHERE key {_IN}", (keys,))
        state.published = {key: Published(*fields) for key, *fields in seeds}
        rows = writer.execute(
            "SELECT profile, key, source, entity, occurred_us, body, identifiers, suspect FROM profile_rows "
            f"WHERE profile {_IN} AND body IS NOT NULL ORDER BY profile",
            (keys,),
        )
        turn = 0
        for key, group in itertools.groupby(rows, key=lambda row: row[0]):
            tenant, _, profile_id = key.partition(SEPARATOR)
            cut = len(tenant) + 1
            found = [SourceRow(row[1][cut:], *row[2:]) for row in group]
            try:
                folded = self._fold(tenant, profile_id, found)
            except Exception as error:  # noqa: BLE001 - it is this profile's fault, no outage: decide raises it
                state.folded[key] = FoldFailedError(f"{profile_id}: {error!r}")
            else:
                if folded is not None:
                    state.folded[key] = folded
            turn += len(found)
            if turn >= _ROWS_PER_TURN:
                turn = 0
                await asyncio.sleep(0)
        return state

    async def save(self, state: Documents, progress: Progress) -> None:
        """Write new documents, remove those that are gone, and keep the look-up of identifiers in step."""
        del progress
        writer = self._database.writer
        writer.executemany(
            """INSERT INTO profile_documents (key, version, identifiers, content) VALUES (?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET version=excluded.version, identifiers=excluded.identifiers,
                 content=excluded.content""",
            [(key, new.version, new.identifiers, new.content) for key, new in state.written.items()],
        )
        writer.executemany("DELETE FROM profile_documents WHERE key=?", [(key,) for key in state.gone])
        renamed = [
            key for key, new in state.written.items()
            if key not in state.stored or state.stored[key].identifiers != new.identifiers
        ]  # fmt: skip
        writer.executemany("DELETE FROM profile_identifiers WHERE profile=?", [(k,) for k in (*renamed, *state.gone)])
        writer.executemany(
            "INSERT INTO profile_identifiers VALUES (?, ?)",
            [
                (key, identifier_key(key.partition(SEPARATOR)[0], kind, value))
                for key in renamed
                for kind, value in orjson.loads(state.written[key].identifiers)
            ],
        )
