"""What the log and the sources do with clients of Kafka: read one partition, send, stop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from services.kernel.kafka_records import RECORD_BYTES_MAX, Headers

FETCH_WAIT_MS = 100
STOP_S = 10.0
TURNS = 4  # of the event loop, until aiokafka has sent what it sends next
FEW_RECORDS = 32
Outgoing = tuple[bytes | None, bytes | None, Headers]
"""Key, value and headers of a record to send."""

log = structlog.get_logger(__name__)


Ends = Callable[[Sequence[TopicPartition]], Awaitable[dict[TopicPartition, int]]]


class Reader:
    """Reads one partition, on from where it was or from elsewhere."""

    def __init__(self, place: TopicPartition | None, isolation: str = "read_committed") -> None:
        """Wire it; a reader of no partition only tells of ends."""
        self.lock = asyncio.Lock()
        self._place, self._isolation, self._consumer = place, isolation, None
        self._next = -1
        self._end = 0  # as last known

    async def _get(self, connection: dict[str, Any]) -> Any:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **connection,
                isolation_level=self._isolation,
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

    async def read(self, connection: dict[str, Any], offset: int, max_records: int, ends: Ends) -> list[Any]:
        """Return committed records from `offset` on, as aiokafka has them: at least one if there is one.

        Args:
            connection: how the cluster is reached.
            offset: of the first one.
            max_records: how many, at most.
            ends: tells where partitions end, by a connection of its own: on this one, the answer would come behind
                that to the last fetch, which waits for records.

        Raises:
            KafkaError: no broker answers.
        """
        async with self.lock:
            consumer = await self._get(connection)
            if offset >= self._end:  # else there is something, without asking
                self._end = (await ends([self._place]))[self._place]
                if offset >= self._end:
                    return []
            if offset != self._next:
                consumer.seek(self._place, offset)
            self._next = -1  # unless this comes to its end
            found: list[Any] = []
            while not found and (offset := await consumer.position(self._place)) < self._end:
                got = await consumer.getmany(self._place, timeout_ms=FETCH_WAIT_MS, max_records=max_records)
                found = got.get(self._place, [])
            self._next = await consumer.position(self._place)
            for _ in range(TURNS):  # aiokafka asks for more, while these are looked at
                await asyncio.sleep(0)
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


async def send(producer: Any, place: TopicPartition, records: Sequence[Outgoing]) -> int:
    """Send records to a partition, in order; returns the offset after the last of them.

    Many go in batches of their own, at a fraction of what aiokafka takes to send them one by one. Few are sent one by
    one: so they join what others send at the same time, where a batch of their own would wait for its turn.

    Raises:
        KafkaError: the first that there was, when all are through.
    """
    sending: list[tuple[Any, int]] = []  # with the number of records
    failure: BaseException | None = None
    try:
        if len(records) < FEW_RECORDS:
            for key, value, headers in records:
                sent = await producer.send(place.topic, value, key=key, partition=place.partition, headers=headers)
                sending.append((sent, 1))
        else:
            for batch in _batches(producer, records):
                sent = await producer.send_batch(batch, place.topic, partition=place.partition)
                sending.append((sent, batch.record_count()))
    except KafkaError as error:
        failure = error
    # Each is awaited, or else asyncio would complain of the others.
    results: list[Any] = await asyncio.gather(*(sent for sent, _ in sending), return_exceptions=True)
    failure = failure or next((result for result in results if isinstance(result, BaseException)), None)
    if failure is not None:
        raise failure
    return int(results[-1].offset) + sending[-1][1]


def _batches(producer: Any, records: Sequence[Outgoing]) -> list[Any]:
    """Return records as batches, each as full as the producer makes its own; a record longer than that is alone.

    Raises:
        MessageSizeTooLargeError: a record is longer than what the brokers take.
    """
    batches: list[Any] = []
    batch: Any = None
    for key, value, headers in records:
        if batch is None or batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value, headers=headers)  # the first one always has a place
            if batch.size() > RECORD_BYTES_MAX:
                raise MessageSizeTooLargeError(f"a record of {batch.size()} bytes")
            batches.append(batch)
    for batch in batches:
        batch.close()  # nobody else's records come into it, so that it is known where each is
    return batches


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
