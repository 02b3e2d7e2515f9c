"""The profile stores in MongoDB, for a cluster: queries, and what a rebuild needs; see `ports.ProfileStores`.

Rows are written by the worker that has their record's partition, documents by the one that has their profile's; both by
way of the ledger's heads, so that any number of workers may come and go.

A store that was emptied takes the log in again while nothing of it is published. The versions of documents must not
fall behind those that have been published meanwhile: what the topic `profiles` holds is kept aside as seeds until then.
"""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any

from headwater.common.v1 import common_pb2
from headwater.profile.v1 import events_pb2
from services.kernel import freshness, topics
from services.kernel.hashing import state_hash
from services.kernel.log import SEPARATOR, Message, Record, key_of
from services.kernel.mongo_ledger import PRESENT, MongoLedger
from services.kernel.mongodb import DeleteOne, Mongo, MongoSettings, ReplaceOne, asked
from services.kernel.service import Platform
from services.profile.documents import PROFILE_TYPE, Stored, digest, with_version
from services.profile.mongo_documents import DOCUMENTS, SEEDS, MongoDocuments
from services.profile.mongo_erasure import MongoErasures
from services.profile.mongo_rows import ROWS, TRUNCATIONS, MongoRows
from services.profile.ports import FOLD_GROUP, ROWS_GROUP, Fold
from services.profile.sqlite_documents import identifier_key
from services.profile.sqlite_store import COMPONENT, READ_BY

_HASHED = ("source", "entity", "position", "occurred_us", "body", "profile", "identifiers", "suspect")


class MongoReader:
    """Reads for queries; see `ports.ProfileReader`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def document(self, tenant: str, profile_id: str) -> Stored | None:
        """Return a document."""
        wanted = {"_id": key_of(tenant, profile_id).decode(), **PRESENT}
        found = await asked(self._mongo.collection(DOCUMENTS).find_one(wanted))
        return Stored(found["version"], found["content"], found["identifiers"], found["folded_to"]) if found else None

    async def profiles_of(self, tenant: str, kind: str, values: Sequence[str]) -> list[str]:
        """Return the ids of the profiles that have an identifier."""
        names = [identifier_key(tenant, kind, value) for value in values]
        found = await self._mongo.find(DOCUMENTS, {"names": {"$in": names}, **PRESENT}, ["_id"])
        return sorted(each["_id"].partition(SEPARATOR)[2] for each in found)

    async def profile_of_record(self, tenant: str, record: str) -> str | None:
        """Return the id of the profile that a record is assigned to."""
        wanted = {"_id": key_of(tenant, record).decode(), **PRESENT}
        found = await asked(self._mongo.collection(ROWS).find_one(wanted, {"profile": 1}))
        return found["profile"].partition(SEPARATOR)[2] if found and found["profile"] is not None else None


class MongoStores:
    """All of the service's stores; see `ports.ProfileStores`."""

    def __init__(self, platform: Platform, fold: Fold) -> None:
        self._log, self._database = platform.log, platform.database
        self._mongo = Mongo(MongoSettings.from_config(platform.settings.table("mongodb")))
        self.ledger = MongoLedger(self._mongo, COMPONENT, [ROWS, TRUNCATIONS, DOCUMENTS])
        self.rows = MongoRows(self._mongo, self.ledger)
        self.documents = MongoDocuments(self._mongo, self.ledger, self._log, fold)
        self.erasures = MongoErasures(self._mongo, self.ledger, self._log, platform.clock)
        self.reader = MongoReader(self._mongo)

    async def start(self) -> None:
        """Find the server, make the indexes, and keep aside what was published where the store is empty."""
        await self._mongo.start()
        await self.ledger.start()
        await self.rows.start()
        await self.documents.start()
        if not await self.ledger.reached(FOLD_GROUP):
            for partition in range(self._log.partitions(topics.PROFILES)):
                offset = 0
                while records := await self._log.read(topics.PROFILES, partition, offset):
                    offset = records[-1].offset + 1
                    await self.seed(records)

    async def stop(self) -> None:
        """Close the connections."""
        await self._mongo.close()

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what the documents of a tenant are current to."""
        return await freshness.report(COMPONENT, await self.ledger.sightings(tenant), self._log, READ_BY)

    async def reset(self) -> None:
        """Forget rows and documents; what was erased stays fenced off."""
        await self.ledger.reset((ROWS_GROUP, FOLD_GROUP))
        await asked(self._mongo.collection(SEEDS).drop())

    async def seed(self, records: Sequence[Record]) -> None:
        """Remember what has been published, so that equal documents get their versions back."""
        newest = {(record.key or b"").decode(): record for record in records}
        await self._mongo.write(SEEDS, [_seed(key, record) for key, record in newest.items()])

    async def reload(self) -> None:
        """Publish what came out otherwise than it had been published (the rules were changed), and forget the seeds."""
        seeds = {each["_id"]: each async for each in self._mongo.pages(SEEDS, {}, ["version", "happened_ms"])}
        messages: list[Message] = []
        async for each in self._mongo.pages(DOCUMENTS, dict(PRESENT), ["version", "content"]):
            seed = seeds.pop(each["_id"], None)
            if seed is None or seed["version"] != each["version"]:
                content = with_version(each["content"], each["version"])
                as_of_ms = events_pb2.Profile.FromString(content).as_of.ToMilliseconds()
                messages.append(_message(each["_id"], content, as_of_ms, each["version"]))
        messages += [_message(key, None, seed["happened_ms"], seed["version"]) for key, seed in seeds.items()]
        async with self._database.transaction(durable=True) as unit:  # its outbox publishes them
            unit.emit(messages)
        await asked(self._mongo.collection(SEEDS).drop())

    async def state_hash(self, connection: sqlite3.Connection) -> str:
        """Return the hash of live rows and documents; versions and generations tell of the history, not the state."""
        del connection
        return await state_hash(self._state())

    async def _state(self) -> AsyncIterator[tuple[Any, ...]]:
        async for each in self._mongo.pages(ROWS, dict(PRESENT), _HASHED):
            if each["body"] is not None:
                *fields, suspect = (each[name] for name in _HASHED)
                yield (each["_id"], *fields, int(suspect))
        async for each in self._mongo.pages(DOCUMENTS, dict(PRESENT), ["identifiers", "content"]):
            yield each["_id"], each["identifiers"], each["content"]


def _seed(key: str, record: Record) -> Any:
    if record.value is None:
        return DeleteOne({"_id": key})
    profile = events_pb2.Profile.FromString(record.value)
    version = profile.version
    profile.ClearField("version")
    content = profile.SerializeToString(deterministic=True)
    seed = {"version": version, "digest": digest(content), "happened_ms": record.timestamp_ms}
    return ReplaceOne({"_id": key}, {"_id": key, **seed}, upsert=True)


def _message(key: str, value: bytes | None, happened_ms: int, version: int) -> Message:
    event_id = f"{COMPONENT}-rebuilt:{key}:{version}" + ("" if value is not None else ":gone")
    return Message(topics.PROFILES, key.encode(), value, PROFILE_TYPE, happened_ms, event_id=event_id)
