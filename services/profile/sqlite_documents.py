"""Documents of profiles in the installation's SQLite database: the state of profile-fold.

A profile is keyed by the text of its topic key (tenant, separator, profile id).
"""

import asyncio
import itertools
from collections.abc import Sequence
from operator import attrgetter

import orjson

from services.kernel.log import SEPARATOR, Log, Progress, Record
from services.kernel.sqlite import Database
from services.profile.documents import Documents, Published, Stored
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

    def __init__(self, log: Log, database: Database, fold: Fold) -> None:
        self._log, self._database, self._fold = log, database, fold

    async def load(self, batch: Sequence[Record]) -> Documents:
        """Load the documents of the touched profiles, and fold those that were touched since their last fold."""
        state = Documents()
        if not batch:
            return state
        # Before the rows are read: what is touched from here on is folded again.
        state.touched_end = (await self._log.end(batch[0].topic))[batch[0].partition]
        touched = {record.key.decode(): record.offset for record in batch if record.key is not None}
        writer = self._database.writer
        # Of those that have been folded since, the content is not needed.
        documents = writer.execute(
            """SELECT d.key, version, iif(folded_to > value, NULL, content), identifiers, folded_to
               FROM json_each(?) AS touched JOIN profile_documents AS d ON d.key = touched.key""",
            (orjson.dumps(touched).decode(),),
        )
        state.stored = {key: Stored(*fields) for key, *fields in documents}
        for key, stored in state.stored.items():
            if touched[key] < stored.folded_to:
                del touched[key]
        seeds = writer.execute(f"SELECT key, version, digest FROM profile_seeds WHERE key {_IN}", (texts(touched),))
        state.published = {key: Published(*fields) for key, *fields in seeds}
        await self._fold_all(state, texts(touched))
        return state

    async def _fold_all(self, state: Documents, keys: str) -> None:
        rows = self._database.writer.execute(
            "SELECT substr(key, instr(key, char(31)) + 1), source, entity, occurred_us, body, identifiers, suspect, "
            f"profile FROM profile_rows WHERE profile {_IN} AND body IS NOT NULL ORDER BY profile",
            (keys,),
        )
        turn = 0
        for key, group in itertools.groupby(map(SourceRow._make, rows), key=attrgetter("profile")):
            tenant, _, profile_id = key.partition(SEPARATOR)
            found = list(group)
            folded = self._fold(tenant, profile_id, found)
            if folded is not None:
                state.folded[key] = folded
            turn += len(found)
            if turn >= _ROWS_PER_TURN:
                turn = 0
                await asyncio.sleep(0)

    async def save(self, state: Documents, progress: Progress) -> None:
        """Write new documents, remove those that are gone, and keep the look-up of identifiers in step."""
        del progress
        writer = self._database.writer
        writer.executemany(
            """INSERT INTO profile_documents (key, version, folded_to, identifiers, content) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET version=excluded.version, folded_to=excluded.folded_to,
                 identifiers=excluded.identifiers, content=excluded.content""",
            [(key, new.version, new.folded_to, new.identifiers, new.content) for key, new in state.written.items()],
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
