"""The one loop that runs every processor: take a batch, load its state, decide, save, publish, move on.

`decide` is a pure function; the store is the service's; delivery is the log's. An input takes effect once: state,
outputs and offset become lasting in one unit of work, and after a crash the batch is taken again from the offset.
An input on which `decide` fails is poison: it goes to `dead_letters` and the others go on. A store that fails is an
outage: the batch waits and is tried again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog

from headwater.common.v1 import events_pb2
from services.kernel import telemetry, topics
from services.kernel.errors import HeadwaterError
from services.kernel.foreground import Foreground
from services.kernel.log import (
    Batch,
    Consumer,
    Ledger,
    Log,
    Message,
    Offsets,
    PartitionLostError,
    Progress,
    Record,
    Tally,
)
from services.kernel.retry import backoff_s
from services.kernel.topics import TOPICS, Cleanup

BATCH_RECORDS_MAX = 1000
BATCH_RECORDS_MIN = 16
BATCH_BYTES_MAX = 1 << 20
DECIDE_ATTEMPTS = 2  # once among others, once alone
PATIENCE_S = 2.0
PATIENCE_STEP_S = 0.01

S = TypeVar("S")
log = structlog.get_logger(__name__)
_COMPACTED = {spec.name for spec in TOPICS if spec.cleanup is Cleanup.COMPACT}


class Outcome(Enum):
    """What became of an input."""

    APPLIED = "applied"  # it changed the state, caused an event, or was found to need neither
    SUPERSEDED = "superseded"  # it was older than, or the same as, what is there
    WAITING = "waiting"  # it waits for a retry


class Decision(NamedTuple):
    """What an input leads to."""

    outcome: Outcome
    outputs: Sequence[Message] = ()


APPLIED = Decision(Outcome.APPLIED)
SUPERSEDED = Decision(Outcome.SUPERSEDED)


class Store(Protocol[S]):
    """Where a processor's state is. `S` is the working set: the state of the keys of one batch."""

    async def load(self, batch: Sequence[Record]) -> S:
        """Load the state that deciding on a batch needs."""

    async def save(self, state: S, progress: Progress) -> None:
        """Make the working set last, within the open unit of work.

        Stores that are not in the local database keep `progress` in the same write; see `services.kernel.log.Ledger`.
        """


@dataclass(frozen=True, slots=True)
class Processor(Generic[S]):
    """A consumer group's work.

    Attributes:
        name: the consumer group.
        topics: what it consumes.
        store: its state.
        decide: pure; takes the working set and one record, and returns what the record leads to. It may change the
            working set, which belongs to this batch alone. An exception makes the record a dead letter.
        finish: pure; called once a batch after all decisions, for outputs that the batch leads to as a whole.
        may_wait: whether what it does now would soon have to be done again; then, while nobody asks anything, it lets
            its inputs gather for up to PATIENCE_S.
        ledger: the store's, where that is not in the local database.
        internal_topics: topics to another group of the same read model: these are published again when the store is
            made again from the log.
    """

    name: str
    topics: tuple[str, ...]
    store: Store[S]
    decide: Callable[[S, Record], Decision]
    finish: Callable[[S], Sequence[Message]] | None = None
    may_wait: Callable[[], Awaitable[bool]] | None = None
    ledger: Ledger | None = None
    internal_topics: tuple[str, ...] = ()


class _PoisonError(Exception):
    """`decide` failed on one record, or the batch as a whole failed (index None)."""

    def __init__(self, index: int | None, cause: Exception) -> None:
        super().__init__(str(cause))
        self.index = index
        self.cause = cause


class ProcessorLoop(Generic[S]):
    """Runs one processor as one member of its consumer group."""

    def __init__(self, processor: Processor[S], log_: Log, foreground: Foreground | None = None) -> None:
        self.processor = processor
        self._log = log_
        self._foreground = foreground or Foreground()
        self._record_s = 1e-4  # what a record takes of the processor, as the last batch told
        self._resume = asyncio.Event()
        self._resume.set()
        self._idle = asyncio.Event()
        self._idle.set()  # until it runs, too: a start that fails ends with a stop
        self._gathered: Offsets = {}  # what had gathered when it was last waited for
        self._failing: str | None = None
        self._consumer: Consumer | None = None

    @property
    def failing(self) -> str | None:
        """Why it makes no progress just now; None when it does, or has nothing to do."""
        return self._failing or (self._consumer.trouble if self._consumer is not None else None)

    async def run(self) -> None:
        """Work until cancelled; a cancellation lets the batch in hand finish or leaves no trace of it."""
        consumer = self._log.consumer(
            self.processor.name, self.processor.topics, self.processor.ledger, self.processor.internal_topics
        )
        self._consumer = consumer
        try:
            while True:
                self._idle.set()
                await self._resume.wait()
                await self._let_gather()
                batch = await consumer.poll(self._batch_records(), BATCH_BYTES_MAX)
                if not self._resume.is_set():
                    continue
                self._idle.clear()
                await self._handle(consumer, batch)
        finally:
            self._idle.set()
            await consumer.close()

    async def _let_gather(self) -> None:
        """Wait a little where that saves work, and then not again until what has gathered is done."""
        may_wait = self.processor.may_wait
        if may_wait is None:
            return
        done = await self._log.committed(self.processor.name)
        if any(done.get(place, 0) < end for place, end in self._gathered.items()):
            return
        until = time.monotonic() + PATIENCE_S
        # Looked at anew in steps: what ends the wait is a question, a pause, or that nothing comes in any more.
        while not self._foreground.asked and self._resume.is_set() and await may_wait() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(PATIENCE_STEP_S)
        self._gathered = {
            (topic, partition): end
            for topic in self.processor.topics
            for partition, end in enumerate(await self._log.end(topic))
        }

    async def pause(self) -> None:
        """Stop after the batch in hand."""
        self._resume.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Go on."""
        self._resume.set()

    async def _handle(self, consumer: Consumer, batch: Batch) -> None:
        """Do a batch, whatever it takes: poison is isolated, an outage is waited for."""
        try:
            started = time.thread_time()  # of the processor, so that a busy machine does not make batches small
            await self._until_available(lambda: self._apply(consumer, batch))
            self._adapt(len(batch.records), time.thread_time() - started)
        except PartitionLostError as error:
            self._failing = None
            log.info("processor.partition_lost", group=self.processor.name, error=str(error))
        except _PoisonError as poison:
            if not batch.records:
                raise poison.cause from None  # no record is to blame: the loop starts anew, ever more slowly
            await self._isolate(consumer, batch, poison)

    async def _until_available(self, work: Callable[[], Awaitable[None]]) -> None:
        attempt = 0
        while True:
            try:
                await work()
            except (PartitionLostError, _PoisonError):
                raise
            except (HeadwaterError, OSError) as error:
                self._failing = str(error)
                attempt += 1
                delay = backoff_s(attempt, base_s=0.05, cap_s=10.0)
                log.warning(
                    "processor.waiting",
                    group=self.processor.name,
                    error=str(error),
                    retry_in_s=round(delay, 2),
                )
                self._idle.set()  # nothing is in hand meanwhile
                await asyncio.sleep(delay)
                if not self._resume.is_set():
                    return  # paused: the batch is polled again afterwards
                self._idle.clear()
            except Exception as error:  # not an outage: something about this batch, so find out which record it is
                raise _PoisonError(None, error) from error
            else:
                self._failing = None
                return

    async def _apply(self, consumer: Consumer, batch: Batch) -> None:
        processor = self.processor
        with telemetry.BATCH_SECONDS.labels(processor.name).time():
            async with consumer.unit():
                state = await processor.store.load(batch.records)
                outputs, tally = _decide(processor, state, batch)
                progress = Progress(
                    processor.name, batch.topic, batch.partition, batch.start, batch.next_offset, outputs, tally
                )
                consumer.check(outputs)
                await processor.store.save(state, progress)
                await consumer.commit(progress)
        for outcome, count in zip(Tally._fields, tally, strict=True):
            if count:
                telemetry.INPUTS.labels(processor.name, outcome).inc(count)

    async def _isolate(self, consumer: Consumer, batch: Batch, poison: _PoisonError) -> None:
        """Do what comes before the poisonous record, give that one up, and leave the rest to the next poll."""
        records = batch.records
        if len(records) == 1:
            await self._until_available(lambda: self._give_up(consumer, batch, poison))
            return
        # Where only the batch as a whole is known to fail, halve it until the culprit stands alone.
        cut = poison.index if poison.index is not None else len(records) // 2
        head = records[:cut] or records[:1]
        await self._handle(consumer, batch._replace(records=head, next_offset=head[-1].offset + 1))
        self._record_s = 1e-2  # short batches for a while: what was decided on beside poison is done again

    async def _give_up(self, consumer: Consumer, batch: Batch, poison: _PoisonError) -> None:
        record = batch.records[0]
        log.error("processor.dead_letter", group=self.processor.name, topic=record.topic, partition=record.partition,
                  offset=record.offset, exc_info=poison.cause)  # fmt: skip
        letter = dead_letter(
            record, self.processor.name, f"{type(poison.cause).__name__}: {poison.cause}", DECIDE_ATTEMPTS
        )
        progress = Progress(
            self.processor.name,
            batch.topic,
            batch.partition,
            batch.start,
            batch.next_offset,
            [letter],
            Tally(superseded=batch.gone, dead_lettered=1),
        )
        async with consumer.unit():
            # The store takes part, so that its own record of progress stays in step.
            await self.processor.store.save(await self.processor.store.load([]), progress)
            await consumer.commit(progress)
        telemetry.INPUTS.labels(self.processor.name, "dead_lettered").inc()

    def _batch_records(self) -> int:
        """Return how many records fit into the time for which a batch may hold the loop just now."""
        if self.processor.ledger is not None:  # it waits for its store most of the time, and others have their turn
            return BATCH_RECORDS_MAX
        fitting = int(self._foreground.batch_target_s / self._record_s)
        return max(BATCH_RECORDS_MIN, min(BATCH_RECORDS_MAX, fitting))

    def _adapt(self, records: int, cpu_s: float) -> None:
        if records >= BATCH_RECORDS_MIN:  # a shorter batch tells of its fixed costs only
            self._record_s = max(cpu_s / records, 1e-6)


def _decide(processor: Processor[S], state: S, batch: Batch) -> tuple[list[Message], Tally]:
    counts = dict.fromkeys(Outcome, 0)
    outputs: list[Message] = []
    decide, group = processor.decide, processor.name
    for index, record in enumerate(batch.records):
        try:
            decision = decide(state, record)
        except Exception as error:  # whatever is wrong with this record, it must not stop the others
            raise _PoisonError(index, error) from error
        counts[decision.outcome] += 1
        if decision.outputs:
            cause = f"{group}:{record.topic}/{record.partition}/{record.offset}"
            outputs.extend(_named(decision.outputs, cause))
    if processor.finish is not None:
        try:
            outputs.extend(
                _named(processor.finish(state), f"{group}:{batch.topic}/{batch.partition}/{batch.next_offset}-")
            )
        except Exception as error:  # as above
            raise _PoisonError(None, error) from error
    superseded = counts[Outcome.SUPERSEDED] + batch.gone
    return _newest_per_key(outputs), Tally(counts[Outcome.APPLIED], superseded, counts[Outcome.WAITING])


def _named(messages: Sequence[Message], cause: str) -> list[Message]:
    """Give every output an id that follows from its input alone."""
    return [
        message if message.event_id else message._replace(event_id=f"{cause}#{ordinal}")
        for ordinal, message in enumerate(messages)
    ]


def _newest_per_key(outputs: list[Message]) -> list[Message]:
    """Of several outputs of a batch with one key in a compacted topic, publish the last only, as compaction would."""
    newest: dict[tuple[str, bytes | None], int] = {}
    for index, message in enumerate(outputs):
        if message.topic in _COMPACTED:
            newest[message.topic, message.key] = index
    if not newest:
        return outputs
    return [
        message
        for index, message in enumerate(outputs)
        if message.topic not in _COMPACTED or newest[message.topic, message.key] == index
    ]


def dead_letter(record: Record, stage: str, error: str, attempts: int) -> Message:
    """Return the message that tells of an input that was given up, with all that is needed to put it back."""
    letter = events_pb2.DeadLetter(
        stage=stage, error=error, attempts=attempts, topic=record.topic, partition=record.partition,
        offset=record.offset, key=record.key or b"", value=record.value or b"", type=record.type,
        origin=record.event_id,
    )  # fmt: skip
    letter.occurred_at.FromMilliseconds(record.timestamp_ms)
    return Message(
        topics.DEAD_LETTERS, record.key, letter.SerializeToString(), letter.DESCRIPTOR.full_name, record.timestamp_ms,
        event_id=f"{stage}:{record.topic}/{record.partition}/{record.offset}#dead",
    )  # fmt: skip
