"""Rows and assignments of records in MongoDB: the state of profile-rows.

A document a record, whose `_id` is the digest of its topic key: no more stays of it for a while when it is erased. Both
topics of the group have a record in the same partition, so that they share the ledger's head, and a batch of one fences
a batch of the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.kernel import topics
from services.kernel.log import SEPARATOR, Progress, Record
from services.kernel.mongo_ledger import PRESENT, MongoLedger, Write
from services.kernel.mongodb import Mongo, asked
from services.kernel.records import record_key
from services.profile.ports import ROWS_GROUP
from services.profile.rows import Entity, Row, Rows, events_of, truncations
from services.profile.sqlite_rows import digest_of

ROWS, TRUNCATIONS, ERASURES = "profile_rows", "profile_truncations", "profile_erasures"
_FIELDS = ("source", "entity", "partition", "position", "occurred_us", "body", "known_at", "profile", "generation",
           "identifiers", "suspect")  # fmt: skip


class MongoRows:
    """The state of profile-rows."""

    def __init__(self, mongo: Mongo, ledger: MongoLedger) -> None:
        self._mongo, self._ledger = mongo, ledger

    async def start(self) -> None:
        """Make the indexes."""
        await asked(self._mongo.collection(ROWS).create_index("profile"))
        await asked(self._mongo.collection(ROWS).create_index("key"))
        await asked(self._mongo.collection(TRUNCATIONS).create_index("partition"))

    async def load(self, batch: Sequence[Record]) -> Rows:
        """Load the rows of a batch's records, and all live rows of the entities that it truncates."""
        events = events_of(batch)
        if not batch:
            return Rows(events)
        head = await self._ledger.head(ROWS_GROUP, batch[0].partition)
        digests = {digest_of(key): key for key in {r.key.decode() for r in batch if r.key is not None}}
        found = await self._mongo.find(ROWS, {"_id": {"$in": sorted(digests)}, **PRESENT})
        state = Rows(events, {each["key"]: _row(each) for each in found})
        if batch[0].topic == topics.CHANGES:
            partition = batch[0].partition
            for each in await self._mongo.find(TRUNCATIONS, {"partition": partition, **PRESENT}):
                state.truncated[Entity(*each["of"])] = each["position"]
            for entity in truncations(events):
                await self._load_entity(state, entity, partition)
        erased = await self._mongo.find(ERASURES, {"_id": {"$in": sorted(digests)}})
        state.erased = {digests[each["_id"]]: each["erased_ms"] for each in erased}
        state.head = head
        return state

    async def _load_entity(self, state: Rows, entity: Entity, partition: int) -> None:
        # The key's own prefix finds them; "0" follows "/".
        first = f"{entity.tenant}{SEPARATOR}{record_key(entity.source, entity.entity, {'': ''})}"
        within = {"key": {"$gte": first, "$lt": first[:-1] + "0"}, "partition": partition, **PRESENT}
        async for each in self._mongo.pages(ROWS, within, ("key", *_FIELDS)):
            if each["body"] is not None and each["key"] not in state.rows:
                state.rows[each["key"]] = _row(each)

    async def save(self, state: Rows, progress: Progress) -> None:
        """Write the changed rows and assignments."""
        writes = [
            Write(ROWS, digest_of(key), {"key": key, **_document(state.rows[key])})
            for key in sorted(state.changed | state.assigned)
        ]
        writes += [
            Write(
                TRUNCATIONS,
                SEPARATOR.join((str(partition), *entity)),
                {"partition": partition, "of": list(entity), "position": state.truncated[entity]},
            )
            for entity, partition in state.truncated_now.items()
        ]
        head = state.head or await self._ledger.head(progress.group, progress.partition)
        await self._ledger.save(head, progress, writes, state.sightings)


def _document(row: Row) -> dict[str, Any]:
    document = {name: getattr(row, name) for name in _FIELDS}
    return document | {"known_at": orjson.dumps(row.known_at).decode() if row.known_at else None}


def _row(found: Mapping[str, Any]) -> Row:
    row = Row(**{name: found[name] for name in _FIELDS})
    row.known_at = orjson.loads(found["known_at"]) if found["known_at"] else None
    return row
