"""OperationsService: the balance, dead letters, rebuilding and verifying an installation."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any

import grpc
import structlog

from headwater.common.v1 import events_pb2, operations_pb2 as pb, operations_pb2_grpc
from services.kernel import topics
from services.kernel.errors import DeadlineError, InvalidInputError, NotFoundError, UnavailableError
from services.kernel.log import Message, Record, message_of, position_of
from services.kernel.processor import ProcessorLoop
from services.kernel.service import Platform, ReadModel, Service

SETTLE_TIMEOUT_S = 600.0
PROGRESS_EVERY_S = 0.2
FINISH_EVERY_S = 1.0

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class Operations(operations_pb2_grpc.OperationsServiceServicer):
    """Answers for the process as a whole."""

    service_names = (pb.DESCRIPTOR.services_by_name["OperationsService"].full_name,)

    def __init__(self, platform: Platform, services: Sequence[Service], loops: Sequence[ProcessorLoop[Any]]) -> None:
        self._log, self._database, self._clock = platform.log, platform.database, platform.clock
        self._peers = platform.peers
        self._services = services
        self._loops = {loop.processor.name: loop for loop in loops}
        self._stores = {store.name: store for service in services for store in service.stores}
        self._rebuilding, self._retrying = asyncio.Lock(), asyncio.Lock()

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(self, server)

    # Balance ----------------------------------------------------------------------------------------------------

    async def balance(self) -> list[pb.GroupBalance]:
        """Return the balance of every group."""
        waiting: dict[str, int] = {}
        for service in self._services:
            waiting.update(await service.waiting() if service.waiting is not None else {})
        return [await self._balance(name, loop, waiting.get(name, 0)) for name, loop in sorted(self._loops.items())]

    async def _balance(self, name: str, loop: ProcessorLoop[Any], waiting: int) -> pb.GroupBalance:
        inputs, tally = await self._log.tallies(name)
        # Inputs that now wait for a retry were taken in when they were read.
        return pb.GroupBalance(
            group=name, inputs=inputs, applied=tally.applied - waiting, superseded=tally.superseded,
            waiting=tally.waiting + waiting, dead_lettered=tally.dead_lettered,
            lag=await self._log.lag(name, loop.processor.topics),
        )  # fmt: skip

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        """Tell what became of every group's inputs."""
        del request, context
        groups = await self.balance()
        return pb.GetBalanceResponse(groups=groups, balanced=all(map(_balanced, groups)))

    # Dead letters -----------------------------------------------------------------------------------------------

    async def _dead_letters(self, after: int, limit: int | None) -> AsyncIterator[pb.DeadLetterEntry]:
        retried = {retry.id async for retry in self._retries()}
        count = 0
        async for record in self._scan(topics.DEAD_LETTERS, after):
            if record.value is None or record.type != events_pb2.DeadLetter.DESCRIPTOR.full_name:
                continue
            letter = events_pb2.DeadLetter.FromString(record.value)
            yield pb.DeadLetterEntry(id=record.offset + 1, dead_letter=letter, retried=record.offset + 1 in retried)
            count += 1
            if count == limit:
                return

    async def _retries(self) -> AsyncIterator[events_pb2.DeadLetterRetried]:
        async for record in self._scan(topics.DEAD_LETTERS, 0):
            if record.value is not None and record.type == events_pb2.DeadLetterRetried.DESCRIPTOR.full_name:
                yield events_pb2.DeadLetterRetried.FromString(record.value)

    async def _scan(self, topic: str, offset: int) -> AsyncIterator[Record]:
        end = (await self._log.end(topic))[0]  # not what is added meanwhile: a letter put back may come back
        while offset < end and (records := await self._log.read(topic, 0, offset)):
            offset = records[-1].offset + 1
            for record in records:
                if record.offset >= end:
                    return
                yield record
            await asyncio.sleep(0)  # others have their turn

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        """List a page of dead letters, oldest first."""
        del context
        if request.limit < 0 or request.after < 0:
            raise InvalidInputError("ListDeadLetters: after and limit must not be negative")
        entries = [entry async for entry in self._dead_letters(request.after, request.limit or 100)]
        return pb.ListDeadLettersResponse(entries=entries)

    async def RetryDeadLetters(
        self, request: pb.RetryDeadLettersRequest, context: Context
    ) -> pb.RetryDeadLettersResponse:
        """Put inputs back where they came from."""
        del context
        wanted, retried = set(request.ids), 0
        async with self._retrying:  # two at a time would put the same ones back twice
            if unknown := sorted(wanted - {entry.id async for entry in self._dead_letters(0, None)}):
                raise NotFoundError(f"there is no dead letter {unknown[0]}: `headwater dead-letters list` shows them")
            async for entry in self._dead_letters(0, None):
                if not entry.retried and (not wanted or entry.id in wanted):
                    await self._retry(entry)
                    retried += 1
        return pb.RetryDeadLettersResponse(retried=retried)

    async def _retry(self, entry: pb.DeadLetterEntry) -> None:
        letter = entry.dead_letter
        now_ms = int(self._clock() * 1000)
        marker = events_pb2.DeadLetterRetried(id=entry.id)
        marker.retried_at.FromMilliseconds(now_ms)
        messages = [message_of(topics.DEAD_LETTERS, letter.key, marker, now_ms)]
        if letter.topic:
            happened_ms = letter.occurred_at.ToMilliseconds()
            messages.append(
                Message(
                    letter.topic,
                    letter.key or None,
                    letter.value or None,
                    letter.type,
                    happened_ms,
                    letter.partition,
                    letter.origin,
                )
            )
        else:
            await self._decode_again(letter)
        await self._log.append(messages)

    async def _decode_again(self, letter: events_pb2.DeadLetter) -> None:
        from headwater.ingest.v1 import service_pb2, service_pb2_grpc

        request = service_pb2.PushRawRequest(
            format=letter.type,
            records=[letter.value],
            origin=letter.origin,
            tenant=letter.tenant,
            source=letter.source,
        )
        stub = service_pb2_grpc.IngestServiceStub(self._peers.channel("ingest"))
        async for _response in stub.PushRaw(iter([request])):
            pass

    # Rebuild ----------------------------------------------------------------------------------------------------

    async def Rebuild(self, request: pb.RebuildRequest, context: Context) -> AsyncIterator[pb.RebuildResponse]:
        """Drop read models and make them again from the log."""
        del context
        if unknown := sorted(set(request.stores) - set(self._stores)):
            raise InvalidInputError(f"there is no store {unknown[0]!r}: there are {', '.join(sorted(self._stores))}")
        if self._rebuilding.locked():
            raise UnavailableError("another rebuild is under way: wait for it to end")
        async with self._rebuilding:
            for name in request.stores or sorted(self._stores):
                async for response in self.rebuild(self._stores[name]):
                    yield response

    async def rebuild(self, store: ReadModel) -> AsyncIterator[pb.RebuildResponse]:
        """Rebuild one store while the log stands still, and tell of the progress.

        Where this is abandoned half-way, the log stays closed until `finish_rebuilds` has brought it to its end.
        """
        async with self._log.standing_still():
            await self.settle()
            before = await self._hash(store)
            ends = {group: await self._log.positions_of(group, self._inputs(group)) for group in store.groups}
            total = sum(sum(offsets.values()) for offsets in ends.values())
            await self._begin(store)
            while lag := await self._lag(store.groups):
                yield pb.RebuildResponse(
                    store=store.name, replayed=max(0, total - lag), total=total, hash_before=before
                )
                await asyncio.sleep(PROGRESS_EVERY_S)
            await self._finish(store)
            after = await self._hash(store)
        yield pb.RebuildResponse(store=store.name, replayed=total, total=total, hash_before=before, hash_after=after)

    async def finish_rebuilds(self) -> None:
        """Bring rebuilds to their end whose caller has gone, or that the process's end cut off; a background task."""
        while True:
            for store in self._stores.values():
                if any(map(self._log.is_muted, store.groups)):
                    async with self._rebuilding:
                        if any(map(self._log.is_muted, store.groups)):
                            log.warning("rebuild.resumed", store=store.name)
                            await self._finish(store)
            await asyncio.sleep(FINISH_EVERY_S)

    async def _finish(self, store: ReadModel) -> None:
        await self.settle(store)
        if store.reload is not None:
            await store.reload()
        await self._log.rebuilt(store.groups)

    async def _begin(self, store: ReadModel) -> None:
        for group in store.groups:
            await self._loops[group].pause()
        try:
            async with self._log.rebuilding(store.groups, store.internal_topics):
                await store.reset()
                if store.seed_topic is not None and store.seed is not None:
                    for partition in range(self._log.partitions(store.seed_topic)):
                        offset = 0
                        while records := await self._log.read(store.seed_topic, partition, offset):
                            offset = records[-1].offset + 1
                            await store.seed(records)
                            await asyncio.sleep(0)  # queries have their turn
        finally:
            for group in store.groups:
                self._loops[group].resume()

    async def settle(self, only: ReadModel | None = None) -> None:
        """Wait until everything in the log has been taken into account: by all, or by what builds one store.

        Raises:
            DeadlineError: it has not settled in ten minutes.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        groups, stores = (only.groups, [only]) if only else (tuple(self._loops), list(self._stores.values()))
        while True:
            ends = position_of({
                (topic, partition): end
                for topic in self._log.topics()
                for partition, end in enumerate(await self._log.end(topic))
            })  # fmt: skip
            if not await self._log.wait_committed(groups, ends, deadline - time.monotonic()):
                raise DeadlineError("the services have not caught up with the log: `headwater balance` shows the lag")
            for store in stores:
                if store.settled is not None:
                    try:
                        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                            await store.settled()
                    except TimeoutError as error:
                        raise DeadlineError(
                            f"the background work of {store.name} has not come to its end: `headwater balance` shows "
                            "what waits"
                        ) from error
            if not await self._lag(groups):
                return

    async def _lag(self, groups: Sequence[str]) -> int:
        return sum([await self._log.lag(group, self._inputs(group)) for group in groups])

    def _inputs(self, group: str) -> tuple[str, ...]:
        return self._loops[group].processor.topics

    async def _hash(self, store: ReadModel) -> str:
        with self._database.snapshot() as connection:
            return await store.hash(connection)

    # Verify and status ------------------------------------------------------------------------------------------

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        """Check conservation and replay, and what the services add."""
        del request, context
        if self._rebuilding.locked():
            raise UnavailableError("a rebuild is under way: wait for it to end")
        checks: list[pb.Check] = []
        async with self._rebuilding:
            async with self._log.standing_still():  # with sources that never rest it would not settle
                await self.settle()
                checks.extend(
                    pb.Check(name=f"conservation {group.group}", ok=_balanced(group), detail=_sentence(group))
                    for group in await self.balance()
                )
            for store in self._stores.values():
                async for response in self.rebuild(store):
                    last = response
                ok = last.hash_before == last.hash_after
                words = f"{last.total} records replayed: {last.hash_after[:16]}" + (
                    ", the same" if ok else f", was {last.hash_before[:16]}"
                )
                checks.append(pb.Check(name=f"replay {store.name}", ok=ok, detail=words))
            for service in self._services:
                if service.checks is not None:
                    checks.extend(await service.checks())
        return pb.VerifyResponse(checks=checks)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        """Tell what runs here."""
        del request, context
        status = pb.GetStatusResponse(version=version("headwater"), services=[s.name for s in self._services])
        for topic in self._log.topics():
            ends = {(topic, partition): end for partition, end in enumerate(await self._log.end(topic))}
            status.topics.add(topic=topic, end=position_of(ends), records=await self._log.count(topic))
        for store in self._stores.values():
            status.stores.add(store=store.name, hash=await self._hash(store))
        return status


def _balanced(group: pb.GroupBalance) -> bool:
    return group.inputs == group.applied + group.superseded + group.waiting + group.dead_lettered


def _sentence(group: pb.GroupBalance) -> str:
    return (
        f"{group.inputs} inputs = {group.applied} applied + {group.superseded} superseded + {group.waiting} waiting "
        f"+ {group.dead_lettered} dead-lettered"
    )
