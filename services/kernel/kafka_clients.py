"""Clients of Kafka that the log and the sources share: a reader of one partition, and how a client is stopped."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

FETCH_WAIT_MS = 100
STOP_S = 10.0

log = structlog.get_logger(__name__)


class Reader:
    """Reads one partition, on from where it was or from elsewhere."""

    def __init__(self, place: TopicPartition | None) -> None:
        """Wire it; a reader of no partition only tells of ends."""
        self.lock = asyncio.Lock()
        self._place, self._consumer = place, None
        self._next = -1

    async def _get(self, connection: dict[str, Any]) -> Any:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **connection,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=FETCH_WAIT_MS,
            )
            try:
                await consumer.start()
            except BaseException:
                await stop(consumer)
                raise
            if self._place is not None:
                consumer.assign([self._place])
            self._consumer = consumer
        return self._consumer

    async def read(self, connection: dict[str, Any], offset: int, max_records: int) -> list[Any]:
        """Return committed records from `offset` on, as aiokafka has them: at least one if there is one.

        Raises:
            KafkaError: no broker answers.
        """
        async with self.lock:
            consumer = await self._get(connection)
            end = (await consumer.end_offsets([self._place]))[self._place]
            if offset >= end:
                return []
            if offset != self._next:
                consumer.seek(self._place, offset)
            self._next = -1  # unless this comes to its end
            found: list[Any] = []
            while not found and (offset := await consumer.position(self._place)) < end:
                got = await consumer.getmany(self._place, timeout_ms=FETCH_WAIT_MS, max_records=max_records)
                found = got.get(self._place, [])
            self._next = await consumer.position(self._place)
            return found

    async def ends(self, connection: dict[str, Any], places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset of each partition; raises KafkaError when no broker answers."""
        async with self.lock:
            consumer = await self._get(connection)
            ends: dict[TopicPartition, int] = await consumer.end_offsets(places)
            return ends

    async def close(self) -> None:
        """Close the connections."""
        async with self.lock:
            if self._consumer is not None:
                await stop(self._consumer)
                self._consumer = None


async def stop(client: Any) -> None:
    """Stop a producer, a consumer or an admin client, within a time: it may have failed, or nobody may answer.

    What it raises is told in the log only. A consumer that stops while no broker answers raises the CancelledError of
    its own tasks, which would end the task that waits for it: hence a task of its own.
    """
    is_admin = isinstance(client, AIOKafkaAdminClient)
    stopping = asyncio.ensure_future(client.close() if is_admin else client.stop())
    await asyncio.wait([stopping], timeout=STOP_S)
    if stopping.done() and not stopping.cancelled() and stopping.exception() is None:
        return
    stopping.cancel()
    log.info("kafka.stopped_hard", client=type(client).__name__)
    if not is_admin:
        # aiokafka has no other way to let go of the connections; a consumer gives its client no public name.
        await (getattr(client, "client", None) or client._client).close()  # noqa: SLF001
