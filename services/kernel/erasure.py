"""The log's own part in an erasure: when every service has removed a subject, the log forgets it too.

Services acknowledge on `erasures.done` and name what else of theirs holds the subject's data (answers, conversations).
Then every record whose key or value names the subject's records, profiles or those things is removed from every topic,
and the file is rewritten so that no deleted byte is left in it. The acknowledgement of the service `log` says what went
and what a search found afterwards.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator

import structlog
from google.protobuf.message import DecodeError

from headwater.common.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Message, Record, message_of
from services.kernel.service import Platform

# These tell of the erasure itself: ids only.
KEPT = frozenset({topics.ERASURES, topics.ERASURES_DONE})
# Shorter ids (a conversation may be called "1") would be found by chance in what has nothing to do with them: they are
# looked for in keys only. A record key, source/entity/key, is never shorter.
SOUGHT_BYTES_MIN = 5
SERVICE = "log"

log = structlog.get_logger(__name__)
Done = events_pb2.ErasureDone


def field_bytes(identifier: str) -> bytes:
    """Return an id as it stands in a Protocol Buffers field: its length, then its text.

    With the length before it, crm/customers/4 is not found within crm/customers/42.
    """
    raw = identifier.encode()
    length, prefix = len(raw), bytearray()
    while True:
        prefix.append((length & 0x7F) | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            return bytes(prefix) + raw


class LogErasure:
    """Waits for erasures that every service has acknowledged, and removes the subjects from the log."""

    def __init__(self, platform: Platform, services: Collection[str]) -> None:
        self._log, self._database, self._clock = platform.log, platform.database, platform.clock
        self._services = frozenset(services)

    async def run(self) -> None:
        """Work until cancelled."""
        seen: dict[tuple[str, int], int] = {}
        requests: dict[str, events_pb2.ErasureRequested] = {}
        done: dict[str, dict[str, events_pb2.ErasureDone]] = defaultdict(dict)
        while True:
            async for record in self._new((topics.ERASURES, topics.ERASURES_DONE), seen):
                if record.topic == topics.ERASURES and record.value is not None:
                    request = events_pb2.ErasureRequested.FromString(record.value)
                    requests[request.erasure_id] = request
                elif record.value is not None:
                    answer = events_pb2.ErasureDone.FromString(record.value)
                    done[answer.erasure_id][answer.service] = answer
            for erasure_id in list(requests):
                if SERVICE in done[erasure_id]:
                    del requests[erasure_id], done[erasure_id]
            ready = [name for name in requests if self._services <= done[name].keys()]
            if ready:
                await self._erase([(requests[name], done[name].values()) for name in ready])
            await self._log.wait_for((topics.ERASURES, topics.ERASURES_DONE), seen, 3600.0)

    async def _new(self, names: Collection[str], seen: dict[tuple[str, int], int]) -> AsyncIterator[Record]:
        for name in names:
            for partition in range(self._log.partitions(name)):
                while records := await self._log.read(name, partition, seen.get((name, partition), 0)):
                    seen[name, partition] = records[-1].offset + 1
                    for record in records:
                        yield record
                    await asyncio.sleep(0)  # others have their turn

    async def _erase(self, ready: Collection[tuple[events_pb2.ErasureRequested, Collection[Done]]]) -> None:
        """Do erasures together: the file is rewritten once."""
        removed: dict[str, dict[str, int]] = {}
        for request, answers in ready:
            removed[request.erasure_id] = await self._log.erase(_subject(request, answers), KEPT)
        await self._database.scrub()
        for request, answers in ready:
            remaining = await self._log.erase(_subject(request, answers), KEPT, dry_run=True)
            answer = Done(
                erasure_id=request.erasure_id,
                service=SERVICE,
                removed=removed[request.erasure_id],
                remaining=remaining,
            )
            answer.done_at.FromMilliseconds(int(self._clock() * 1000))
            await self._log.append([acknowledgement(request, answer)])
            log.info("erasure.done", erasure=request.erasure_id, removed=sum(answer.removed.values()))


def _subject(request: events_pb2.ErasureRequested, answers: Collection[Done]) -> Callable[[Record], bool]:
    """Return what tells whether a record is about the subject, or holds one of its ids."""
    related = {name for answer in answers for name in answer.related_ids}
    return naming(request.tenant or DEFAULT_TENANT, {*request.records, *request.profile_ids, *related} - {""})


def requests_of(records: Iterable[Record]) -> Iterator[tuple[Record, events_pb2.ErasureRequested]]:
    """Return the requests for erasure among some records; for others the decider finds nothing done."""
    for record in records:
        if record.value is not None:
            with contextlib.suppress(DecodeError):
                yield record, events_pb2.ErasureRequested.FromString(record.value)


def naming(tenant: str, ids: Collection[str]) -> Callable[[Record], bool]:
    """Return what tells whether a record of a tenant has one of the ids in its key or in its value.

    The time that it takes for a record does not grow with the number of ids: a subject may have thousands of answers.
    """
    wanted = set(ids)
    by_prefix: dict[bytes, set[bytes]] = defaultdict(set)
    for identifier in ids:
        field = field_bytes(identifier)
        text = identifier.encode()
        if len(text) >= SOUGHT_BYTES_MIN:
            by_prefix[field[: -len(text)]].add(text)
    prefixes = [(prefix, len(next(iter(texts))), texts) for prefix, texts in by_prefix.items()]

    def holds(value: bytes) -> bool:
        for prefix, size, texts in prefixes:
            at = value.find(prefix)
            while at >= 0:
                start = at + len(prefix)
                if value[start : start + size] in texts:
                    return True
                at = value.find(prefix, at + 1)
        return False

    def names(record: Record) -> bool:
        key_tenant, *parts = (record.key or b"").decode(errors="replace").split(SEPARATOR)
        if parts and key_tenant != tenant:
            return False  # another tenant may have the same ids
        return not wanted.isdisjoint(parts) or holds(record.value or b"")

    return names


def acknowledgement(request: events_pb2.ErasureRequested, answer: events_pb2.ErasureDone) -> Message:
    """Return the message by which a service acknowledges an erasure."""
    now_ms = answer.done_at.ToMilliseconds() or int(time.time() * 1000)
    return message_of(topics.ERASURES_DONE, request.erasure_id.encode(), answer, now_ms)
