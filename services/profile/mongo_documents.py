"""Documents of profiles in MongoDB: the state of profile-fold.

A profile is named by the text of its topic key. What it is looked up by is part of its document, so that the two cannot
differ.
"""

import asyncio
import itertools
from collections.abc import Sequence
from operator import attrgetter

import orjson

from services.kernel.log import SEPARATOR, Log, Progress, Record
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, asked
from services.profile.documents import Documents, Published, Stored
from services.profile.mongo_rows import ROWS
from services.profile.ports import FOLD_GROUP, Fold
from services.profile.projection import SourceRow
from services.profile.sqlite_documents import identifier_key

DOCUMENTS, SEEDS = "profile_documents", "profile_seeds"
FOLDED_FROM = ("source", "entity", "occurred_us", "body", "identifiers", "suspect", "profile")
_PROFILES_AT_ONCE = 50  # whose rows are in memory together


class MongoDocuments:
    """The state of profile-fold."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, fold: Fold) -> None:
        self._mongo, self._ledger, self._log, self._fold = mongo, ledger, log, fold

    async def start(self) -> None:
        """Make the indexes."""
        await asked(self._mongo.collection(DOCUMENTS).create_index("names"))

    async def load(self, batch: Sequence[Record]) -> Documents:
        """Load the documents of the touched profiles, and fold those that were touched since their last fold."""
        state = Documents()
        if not batch:
            return state
        head = await self._ledger.head(FOLD_GROUP, batch[0].partition)
        # Before the rows are read: what is touched from here on is folded again.
        state.touched_end = (await self._log.end(batch[0].topic))[batch[0].partition]
        touched = {record.key.decode(): record.offset for record in batch if record.key is not None}
        found = await self._mongo.find(DOCUMENTS, {"_id": {"$in": sorted(touched)}, **PRESENT})
        for each in found:
            stored = Stored(each["version"], each["content"], each["identifiers"], each["folded_to"])
            state.stored[each["_id"]] = stored
            if touched[each["_id"]] < stored.folded_to:
                del touched[each["_id"]]
        if self._log.is_muted(FOLD_GROUP):  # what had been published, while the store takes everything in again
            seeds = await self._mongo.find(SEEDS, {"_id": {"$in": sorted(touched)}})
            state.published = {each["_id"]: Published(each["version"], each["digest"]) for each in seeds}
        names = sorted(touched)
        for start in range(0, len(names), _PROFILES_AT_ONCE):
            await self._fold_some(state, names[start : start + _PROFILES_AT_ONCE])
        state.head = head
        return state

    async def _fold_some(self, state: Documents, names: Sequence[str]) -> None:
        found = await self._mongo.find(ROWS, {"profile": {"$in": list(names)}, **PRESENT}, FOLDED_FROM)
        rows = sorted(
            (
                SourceRow(each["_id"].partition(SEPARATOR)[2], *(each[name] for name in FOLDED_FROM))
                for each in found
                if each["body"] is not None
            ),
            key=attrgetter("profile"),
        )
        for key, group in itertools.groupby(rows, key=attrgetter("profile")):
            tenant, _, profile_id = key.partition(SEPARATOR)
            folded = self._fold(tenant, profile_id, list(group))
            if folded is not None:
                state.folded[key] = folded
        await asyncio.sleep(0)  # queries have their turn

    async def save(self, state: Documents, progress: Progress) -> None:
        """Write new documents, and remove those that are gone."""
        writes = [Write(DOCUMENTS, key, _document(key, new)) for key, new in state.written.items()]
        writes += [Write(DOCUMENTS, key, None) for key in sorted(state.gone)]
        head = state.head or await self._ledger.head(progress.group, progress.partition)
        await self._ledger.save(head, progress, writes)


def _document(key: str, stored: Stored) -> dict[str, object]:
    tenant = key.partition(SEPARATOR)[0]
    names = [identifier_key(tenant, kind, value) for kind, value in orjson.loads(stored.identifiers)]
    return {**stored._asdict(), "names": names}
