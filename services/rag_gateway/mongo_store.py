"""Conversations in MongoDB: one document a turn, that every replica reads.

A turn's `_id` is the digest of its tenant and answer. Turns are only ever inserted; an erasure replaces one by an empty
document of the same `_id`, for ever. So a turn is there once, whoever inserts it again, and an erased one does not come
back, not even by a worker that was paused before the erasure. What is inserted twice does no harm: the turns are
written first, and then the ledger.

An erasure takes many writes. What it is going to remove is written down before, so that one that is cut off is
finished, and acknowledged in full.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2
from services.kernel.erasure import requests_of
from services.kernel.hashing import state_hash
from services.kernel.log import DEFAULT_TENANT, Log, PartitionLostError, Progress, Record
from services.kernel.mongo_ledger import MongoLedger
from services.kernel.mongodb import InsertOne, Mongo, ReplaceOne, asked
from services.rag_gateway.conversations import (
    ERASURE_GROUP,
    TURNS_GROUP,
    Erased,
    Erasures,
    TurnRow,
    Turns,
    decoded,
    digest_of,
    drawing_on,
)
from services.rag_gateway.pending import pending_turns

TURNS, PLANS = "gateway_turns", "gateway_erasures"
INDEXES = (
    ("tenant", "conversation_id", "asked_ms", "answer_id"),
    ("tenant", "subjects"),
    ("tenant", "profile_id", "asked_as"),
)
_HASHED = ("tenant", "conversation_id", "asked_ms", "answer_id", "content")
_Document = Mapping[str, Any]


class MongoTurns:
    """The state of gateway-turns, and the queries.

    Args:
        mongo: the database.
        ledger: how far the groups are.
    """

    def __init__(self, mongo: Mongo, ledger: MongoLedger) -> None:
        self._mongo, self._ledger = mongo, ledger
        self._turns = mongo.collection(TURNS)

    async def start(self) -> None:
        """Make the indexes; raises UnavailableError when the database does not answer."""
        for fields in INDEXES:
            await asked(self._turns.create_index([(field, 1) for field in fields]))

    async def load(self, batch: Sequence[Record]) -> Turns:
        """Find which answers of a batch are known already, or were erased."""
        keys = {digest_of(row.tenant, row.answer_id): (row.tenant, row.answer_id) for row in decoded(batch)}
        found = await self._mongo.find(TURNS, {"_id": {"$in": list(keys)}}, ["gone"])
        erased = {each["_id"] for each in found if "gone" in each}
        return Turns(known={keys[each["_id"]] for each in found} - {keys[digest] for digest in erased}, erased=erased)

    async def save(self, state: Turns, progress: Progress) -> None:
        """Insert the new turns, then keep the progress."""
        await self._mongo.write(TURNS, [InsertOne(_document(row)) for row in state.new.values()])
        await self._ledger.save(await self._ledger.head(progress.group, progress.partition), progress, ())

    async def turns(
        self, tenant: str, conversation_id: str, *, last: int | None = None
    ) -> list[events_pb2.TurnCompleted]:
        """The turns of a conversation, oldest first; only the last few where `last` is given."""
        wanted = {"tenant": tenant or DEFAULT_TENANT, "conversation_id": conversation_id}
        newest_first = self._turns.find(wanted, {"content": 1}).sort([("asked_ms", -1), ("answer_id", -1)])
        found = await asked(newest_first.limit(last or 0).to_list(None))
        return [events_pb2.TurnCompleted.FromString(each["content"]) for each in reversed(found)]

    async def reset(self) -> None:
        """Forget how far the turns were, then remove them, so that nothing is left out where this is cut off.

        What was erased stays so.
        """
        await self._ledger.reset((TURNS_GROUP,))
        await asked(self._turns.delete_many({"gone": {"$exists": False}}))

    async def state_hash(self, snapshot: object) -> str:
        """The hash of all turns; the snapshot is of another store."""
        del snapshot
        rows = self._mongo.pages(TURNS, {"gone": {"$exists": False}}, _HASHED)
        return await state_hash(tuple(each[field] for field in _HASHED) async for each in rows)


class _Plan(NamedTuple):
    """What an erasure removes.

    Attributes:
        stored: the answers of it that were stored.
        gone: these, and those that were only in the log.
        conversations: the conversations of which nothing stays.
    """

    stored: set[str]
    gone: set[str]
    conversations: set[str]


class MongoErasures:
    """The state of gateway-erasure. Loading a batch is what erases, so that what is told of it was found afterwards.

    Args:
        mongo: the database.
        ledger: how far the groups are.
        log: the log, for turns that are not stored yet.
        clock: the time, in seconds since the epoch.
    """

    def __init__(self, mongo: Mongo, ledger: MongoLedger, log: Log, clock: Callable[[], float]) -> None:
        self._mongo, self._plans = mongo, mongo.collection(PLANS)
        self._ledger, self._log, self._clock = ledger, log, clock

    async def load(self, batch: Sequence[Record]) -> Erasures:
        """Carry out the erasures of a batch.

        Raises:
            PartitionLostError: they have been carried out already.
        """
        if batch:
            topic, partition, offset = batch[0].topic, batch[0].partition, batch[0].offset
            newest = await self._ledger.pending(ERASURE_GROUP, topic, partition)
            if newest is not None and newest.next_offset > offset:
                raise PartitionLostError(f"{ERASURE_GROUP} has done {topic}/{partition} up to {newest.next_offset}")
        return Erasures(
            {record.offset: await self._erase(record.offset, request) for record, request in requests_of(batch)}
        )

    async def save(self, state: Erasures, progress: Progress) -> None:
        """Keep the progress; then nobody needs the plans."""
        del state
        await self._ledger.save(await self._ledger.head(progress.group, progress.partition), progress, ())
        await asked(self._plans.delete_many({"_id": {"$lt": progress.next_offset}}))

    async def _erase(self, offset: int, request: common_pb2.ErasureRequested) -> Erased:
        tenant = request.tenant or DEFAULT_TENANT
        plan = await self._planned(offset, await self._found(tenant, request))
        digests = [digest_of(tenant, answer) for answer in plan.gone]
        # First there is a document of each, then it is empty: whoever inserts the turn in between changes nothing.
        await self._mongo.write(TURNS, [InsertOne({"_id": digest, "gone": True}) for digest in digests])
        await self._mongo.write(TURNS, [ReplaceOne({"_id": digest}, {"gone": True}) for digest in digests])
        left = await self._answers({"tenant": tenant, "subjects": {"$in": _subjects(request)}})
        left |= await self._answers({"_id": {"$in": digests}, "gone": {"$exists": False}})
        return Erased(
            request=request,
            removed={"turns": len(plan.stored)},
            remaining={"turns": len(left)},
            related=tuple(sorted(plan.gone | plan.conversations)),
            done_ms=int(self._clock() * 1000),
        )

    async def _planned(self, offset: int, plan: _Plan) -> _Plan:
        """Write down what is to be removed, beside what was before a crash; return both."""
        added = {field: {"$each": sorted(names)} for field, names in plan._asdict().items()}
        written = await asked(
            self._plans.find_one_and_update({"_id": offset}, {"$addToSet": added}, upsert=True, return_document=True)
        )
        return _Plan(*(set(written[field]) for field in _Plan._fields))

    async def _found(self, tenant: str, request: common_pb2.ErasureRequested) -> _Plan:
        """Find what of the subject is stored, or in the log and not stored yet: it must not come in afterwards."""
        # By the store's own word: it may lack what its group has had.
        pending = await pending_turns(self._log, tenant, await self._ledger.reached(TURNS_GROUP))
        waiting = [digest_of(tenant, row.answer_id) for row in pending]
        found = await self._mongo.find(TURNS, {"_id": {"$in": waiting}, "gone": {"$exists": True}}, ["_id"])
        erased = {each["_id"] for each in found}  # those tell nothing any more, as if they had been stored and removed
        pending = [row for row in pending if digest_of(tenant, row.answer_id) not in erased]
        profiles = {"tenant": tenant, "profile_id": {"$in": list(request.profile_ids)}}
        own = await self._mongo.find(TURNS, profiles, ["asked_as"])
        names, gone = drawing_on(pending, request, {each["asked_as"] for each in own})
        stored = await self._answers({"tenant": tenant, "subjects": {"$in": _subjects(request)}})
        anonymous = {"tenant": tenant, "profile_id": "", "asked_as": {"$in": sorted(names)}}
        stored |= await self._answers(anonymous)
        digests = [digest_of(tenant, answer) for answer in gone]
        stored |= await self._answers({"_id": {"$in": digests}, "gone": {"$exists": False}})
        gone |= stored
        return _Plan(stored, gone, await self._conversations(tenant, gone, pending))

    async def _conversations(self, tenant: str, gone: Collection[str], pending: Sequence[TurnRow]) -> set[str]:
        """The conversations of which nothing stays."""
        digests = [digest_of(tenant, answer) for answer in gone]
        found = await self._mongo.find(TURNS, {"_id": {"$in": digests}}, ["conversation_id"])
        touched = {each["conversation_id"] for each in found if "conversation_id" in each}
        touched |= {row.conversation_id for row in pending if row.answer_id in gone}
        others = {"tenant": tenant, "conversation_id": {"$in": sorted(touched)}, "_id": {"$nin": digests}}
        kept = await self._mongo.find(TURNS, others, ["conversation_id"])
        staying = {row.conversation_id for row in pending if row.answer_id not in gone}
        return touched - {each["conversation_id"] for each in kept} - staying - {""}

    async def _answers(self, wanted: _Document) -> set[str]:
        return {each["answer_id"] for each in await self._mongo.find(TURNS, wanted, ["answer_id"])}


def _subjects(request: common_pb2.ErasureRequested) -> list[str]:
    return [*request.profile_ids, *request.records]


def _document(row: TurnRow) -> _Document:
    return {"_id": digest_of(row.tenant, row.answer_id), **row._asdict(), "subjects": list(row.subjects)}
