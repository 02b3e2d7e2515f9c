"""The log's own part in an erasure: when every service has removed a subject, the log forgets it too.

Services acknowledge on `erasures.done` and name what else of theirs holds the subject's data (answers, conversations).
Then every record whose key or value names the subject's records, profiles or those things is removed from every topic,
and the file is rewritten so that no deleted byte is left in it. The acknowledgement of the service `log` says what went
and what a search found afterwards.
"""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Set as AbstractSet

import structlog

from headwater.common.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import SEPARATOR, Message, Record, message_of
from services.kernel.service import Platform
from services.kernel.sqlite_retention import Retention

# These tell of the erasure itself: ids only.
KEPT = frozenset({topics.ERASURES, topics.ERASURES_DONE})
SERVICE = "log"

log = structlog.get_logger(__name__)


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
        self._retention = Retention(platform.log, platform.database)
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
            for erasure_id, request in list(requests.items()):
                if SERVICE in done[erasure_id]:
                    del requests[erasure_id], done[erasure_id]
                elif self._services <= done[erasure_id].keys():
                    await self._erase(request, done[erasure_id])
            await self._log.wait_for((topics.ERASURES, topics.ERASURES_DONE), seen, 3600.0)

    async def _new(self, names: Collection[str], seen: dict[tuple[str, int], int]) -> AsyncIterator[Record]:
        for name in names:
            for partition in range(self._log.partitions(name)):
                while records := await self._log.read(name, partition, seen.get((name, partition), 0)):
                    seen[name, partition] = records[-1].offset + 1
                    for record in records:
                        yield record

    async def _erase(self, request: events_pb2.ErasureRequested, answers: dict[str, events_pb2.ErasureDone]) -> None:
        related = {name for answer in answers.values() for name in answer.related_ids}
        ids = {*request.records, *request.profile_ids, *related} - {""}
        tenant = request.tenant or "default"
        removed = await self._retention.erase(lambda record: _names(record, tenant, ids), KEPT)
        await self._database.scrub()
        remaining = await self._retention.erase(lambda record: _names(record, tenant, ids), KEPT, dry_run=True)
        answer = events_pb2.ErasureDone(
            erasure_id=request.erasure_id, service=SERVICE, removed=removed, remaining=remaining
        )
        answer.done_at.FromMilliseconds(int(self._clock() * 1000))
        await self._log.append([acknowledgement(request, answer)])
        log.info("erasure.done", erasure=request.erasure_id, removed=sum(removed.values()))


def _names(record: Record, tenant: str, ids: AbstractSet[str]) -> bool:
    """Tell whether a record is about one of the ids, or holds one of them."""
    key_tenant, *parts = (record.key or b"").decode(errors="replace").split(SEPARATOR)
    if key_tenant == tenant and not ids.isdisjoint(parts):
        return True
    value = record.value or b""
    return any(field_bytes(identifier) in value for identifier in ids)


def acknowledgement(request: events_pb2.ErasureRequested, answer: events_pb2.ErasureDone) -> Message:
    """Return the message by which a service acknowledges an erasure."""
    now_ms = answer.done_at.ToMilliseconds() or int(time.time() * 1000)
    return message_of(topics.ERASURES_DONE, request.erasure_id.encode(), answer, now_ms)
