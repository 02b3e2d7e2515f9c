"""The profile stores in MongoDB, for a cluster: queries, and what a rebuild needs; see `ports.ProfileStores`.

Rows are written by the worker that has their record's partition, documents by the one that has their profile's; both by
way of the ledger's heads, so that any number of workers may come and go.
"""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any

from headwater.common.v1 import common_pb2
from services.kernel import freshness
from services.kernel.hashing import state_hash
from services.kernel.log import SEPARATOR, Record, key_of
from services.kernel.mongo_ledger import PRESENT, MongoLedger
from services.kernel.mongodb import Mongo, MongoSettings, asked
from services.kernel.service import Platform
from services.profile.decider import touch
from services.profile.documents import Stored
from services.profile.mongo_documents import DOCUMENTS, FOLDED, MongoDocuments
from services.profile.mongo_erasure import PLANS, MongoErasures
from services.profile.mongo_rows import ROWS, TRUNCATIONS, MongoRows
from services.profile.ports import FOLD_GROUP, ROWS_GROUP, Fold
from services.profile.sqlite_documents import identifier_key
from services.profile.sqlite_rows import digest_of
from services.profile.sqlite_store import COMPONENT, READ_BY

_HASHED = ("key", "source", "entity", "position", "occurred_us", "body", "profile", "identifiers", "suspect")


class MongoReader:
    """Reads for queries; see `ports.ProfileReader`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def document(self, tenant: str, profile_id: str) -> Stored | None:
        """Return a document."""
        wanted = {"_id": key_of(tenant, profile_id).decode(), **FOLDED}
        found = await asked(self._mongo.collection(DOCUMENTS).find_one(wanted))
        return Stored(found["version"], found["content"], found["identifiers"], found["folded_to"]) if found else None

    async def profiles_of(self, tenant: str, kind: str, values: Sequence[str]) -> list[str]:
        """Return the ids of the profiles that have an identifier."""
        names = [identifier_key(tenant, kind, value) for value in values]
        found = await self._mongo.find(DOCUMENTS, {"names": {"$in": names}, **PRESENT}, ["_id"])
        return sorted(each["_id"].partition(SEPARATOR)[2] for each in found)

    async def profile_of_record(self, tenant: str, record: str) -> str | None:
        """Return the id of the profile that a record is assigned to."""
        wanted = {"_id": digest_of(key_of(tenant, record).decode()), **PRESENT}
        found = await asked(self._mongo.collection(ROWS).find_one(wanted, {"profile": 1}))
        return found["profile"].partition(SEPARATOR)[2] if found and found["profile"] is not None else None


class MongoStores:
    """All of the service's stores; see `ports.ProfileStores`."""

    def __init__(self, platform: Platform, fold: Fold) -> None:
        self._log, self._database = platform.log, platform.database
        self._mongo = Mongo(MongoSettings.from_config(platform.settings.table("mongodb")))
        self.ledger = MongoLedger(self._mongo, COMPONENT, [ROWS, TRUNCATIONS, DOCUMENTS, PLANS])
        self.rows = MongoRows(self._mongo, self.ledger)
        self.documents = MongoDocuments(self._mongo, self.ledger, self._log, fold)
        self.erasures = MongoErasures(self._mongo, self.ledger, self._log, platform.clock)
        self.reader = MongoReader(self._mongo)

    async def start(self) -> None:
        """Find the server, make the indexes, and prepare what is empty."""
        await self._mongo.start()
        await self.ledger.start()
        await self.rows.start()
        await self.documents.start()

    async def stop(self) -> None:
        """Close the connections."""
        await self._mongo.close()

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what the documents of a tenant are current to."""
        return await freshness.report(COMPONENT, await self.ledger.sightings(tenant), self._log, READ_BY)

    async def reset(self) -> None:
        """Forget rows and documents; what was erased stays fenced off."""
        await self.ledger.reset((ROWS_GROUP, FOLD_GROUP))
        await self.documents.prepare()

    async def seed(self, records: Sequence[Record]) -> None:
        """Do nothing: `reset` looks at what has been published."""

    async def reload(self) -> None:
        """Touch what had been published and has no rows any more: when it is folded, it is told to be gone."""
        left = self._mongo.pages(DOCUMENTS, {**PRESENT, "content": None}, ["happened_ms"])
        messages = [touch(each["_id"], each["happened_ms"]) async for each in left]
        async with self._database.transaction(durable=True) as unit:  # its outbox publishes them
            unit.emit(messages)

    async def state_hash(self, connection: sqlite3.Connection) -> str:
        """Return the hash of live rows and documents; versions and generations tell of the history, not the state."""
        del connection
        return await state_hash(self._state())

    async def _state(self) -> AsyncIterator[tuple[Any, ...]]:
        async for each in self._mongo.pages(ROWS, PRESENT, _HASHED):
            if each["body"] is not None:
                *fields, suspect = (each[name] for name in _HASHED)
                yield (*fields, int(suspect))
        async for each in self._mongo.pages(DOCUMENTS, FOLDED, ["identifiers", "content"]):
            yield each["_id"], each["identifiers"], each["content"]
