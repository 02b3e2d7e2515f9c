"""Records of raw topics as messages of the log: what their settings say, decoding, and dead letters.

Whatever a record holds, the others go on: one that cannot be decoded becomes a dead letter that holds it as an envelope
(see `decoders.kcat`), so that it can be put back. Each message's event id follows from the record's place.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from headwater.ingest.v1 import events_pb2
from services.ingest.bucket_source import Buckets
from services.ingest.decoders.common import Decoded, DecodeError, Hints, UnknownSchemaError
from services.ingest.decoders.kcat import Envelope, from_envelope, kept, place
from services.ingest.ingestion import RECORDS
from services.ingest.messages import Instant, Offer, dead_letter, messages_of
from services.ingest.schema_registry import SchemaRegistry
from services.ingest.settings import Settings, TopicsSettings
from services.kernel.errors import UnavailableError
from services.kernel.log import Message
from services.kernel.retry import backoff_s
from services.kernel.settings import DOCUMENT_BYTES_MAX

ENVELOPE = "kcat"  # the format of what a dead letter holds

log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """Records as messages, how many of them came to what, and why some were given up."""

    messages: Sequence[Message]
    outcomes: Mapping[str, int]
    errors: Sequence[str]

    def tell(self) -> None:
        """Tell the metrics and the log, once the messages last."""
        for outcome, number in self.outcomes.items():
            RECORDS.labels(outcome).inc(number)
        if self.errors:
            log.warning("topics.dead_letters", count=len(self.errors), first=self.errors[0])


class Selection:
    """Which topics are taken, and as what."""

    def __init__(self, entries: Sequence[TopicsSettings], own: Iterable[str] = ()) -> None:
        """Wire it.

        Args:
            entries: the settings; where several take a topic, the first does.
            own: Headwater's own topics in this cluster, which no pattern takes.
        """
        self.entries, self._own = tuple(entries), frozenset(own)

    def entry(self, topic: str) -> TopicsSettings | None:
        """What takes a topic; None if nothing does."""
        if topic in self._own:
            return None
        return next((entry for entry in self.entries if entry.takes(topic)), None)

    def pattern(self) -> str:
        """What the names of the topics match from their beginning, as one regular expression."""
        own = "|".join(map(re.escape, sorted(self._own)))
        names = [re.escape(name) for entry in self.entries for name in entry.names]
        patterns = [f"(?:{entry.pattern})" for entry in self.entries if entry.pattern]
        return (rf"(?!(?:{own})\Z)" if own else "") + rf"(?:{'|'.join((*names, *patterns))})\Z"

    def __str__(self) -> str:
        return ", ".join(name for entry in self.entries for name in (*entry.names, entry.pattern) if name)


class RecordDecoder:
    """Decodes records of raw topics.

    Args:
        settings: the table [ingest].
        buckets: where references of notifications lead.
        registry: where schemas are, if anywhere.
        partitions: how many partitions the topic `changes` has; asked when a record is decoded.
        clock: the time.
    """

    def __init__(
        self,
        settings: Settings,
        buckets: Buckets,
        registry: SchemaRegistry | None,
        partitions: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._buckets, self._registry = settings, buckets, registry
        self._partitions, self._clock = partitions, clock

    async def take(self, records: Sequence[Any], selection: Selection, note: Callable[[str], None]) -> Taken:
        """Return what records mean; objects that notifications among them tell of are published.

        Where the schema registry or an object store cannot be asked, they wait for it: nothing is given up for that.

        Args:
            records: as aiokafka gives them.
            selection: says as what they are taken.
            note: is told what is being waited for, and nothing when it is over.
        """
        attempt = 0
        while True:
            try:
                taken = await self._taken(records, selection)
            except UnavailableError as error:
                attempt += 1
                note(str(error))
                delay = backoff_s(attempt, base_s=0.2, cap_s=10.0)
                log.warning("topics.waiting", error=str(error), retry_in_s=round(delay, 2))
                await asyncio.sleep(delay)
            else:
                note("")
                return taken

    async def _taken(self, records: Sequence[Any], selection: Selection) -> Taken:
        attempt = await self._decoded(records, selection)
        if attempt.references:
            outcomes = await self._buckets.take([document for _, _, document in attempt.references])
            for (record, entry, _), reason in zip(attempt.references, outcomes, strict=True):
                if reason:
                    attempt.give_up(record, entry, reason)
                else:
                    attempt.outcomes["skipped" if reason == "" else "accepted"] += 1
        return Taken(attempt.messages, attempt.outcomes, attempt.errors)

    async def _decoded(self, records: Sequence[Any], selection: Selection) -> "_Attempt":
        while True:
            attempt = _Attempt(self._settings, self._partitions(), self._now())
            schemas = self._registry.schemas if self._registry is not None else None
            try:
                for record in records:
                    if entry := selection.entry(record.topic):
                        attempt.decode(record, entry, schemas)
            except UnknownSchemaError as error:
                if self._registry is None:
                    raise UnavailableError(f"{error} is needed, and there is no schema registry") from error
                await self._registry.fetch(error.schema_id)
            else:
                return attempt

    def _now(self) -> Instant:
        seconds, fraction = divmod(self._clock(), 1)
        return int(seconds), int(fraction * 1_000_000) * 1_000


class _Attempt:
    """Records being decoded."""

    def __init__(self, settings: Settings, partitions: int, now: Instant) -> None:
        self._settings, self._partitions, self._now = settings, partitions, now
        self.messages: list[Message] = []
        self.references: list[tuple[Any, TopicsSettings, events_pb2.DocumentChange]] = []
        self.errors: list[str] = []
        self.outcomes = dict.fromkeys(("accepted", "skipped", "dead_lettered"), 0)

    def decode(self, record: Any, entry: TopicsSettings, schemas: Mapping[int, Any] | None) -> None:
        """Add what a record means."""
        hints = Hints(entry.source, entry.tenant, self._settings.keys, schemas)
        try:
            messages = self._messages(record, entry, self._events(record, entry, hints))
        except UnknownSchemaError:
            raise
        except DecodeError as error:
            self.give_up(record, entry, str(error))
        except Exception as error:  # whatever is wrong with this record, it must not stop the others
            log.exception("topics.decoder_failed", topic=record.topic, partition=record.partition, offset=record.offset)
            self.give_up(record, entry, f"{type(error).__name__}: {error}")
        else:
            self.messages.extend(messages)

    def _events(self, record: Any, entry: TopicsSettings, hints: Hints) -> Sequence[Decoded]:
        value, limit = record.value, self._settings.record_bytes_max
        if value is None or value.isspace() or not value:
            return ()
        if len(value) > limit:
            raise DecodeError(f"the record has {len(value):,} bytes, the limit is {limit:,}",
                              "raise record_bytes_max in [ingest]")  # fmt: skip
        position = place(record.topic, record.partition, record.offset)
        timestamp_ms = record.timestamp if record.timestamp > 0 else None
        envelope = Envelope(record.key, value, record.topic, position, timestamp_ms, entry.format)
        return from_envelope(envelope, hints)

    def _messages(self, record: Any, entry: TopicsSettings, events: Sequence[Decoded]) -> list[Message]:
        messages: list[Message] = []
        references: list[tuple[Any, TopicsSettings, events_pb2.DocumentChange]] = []
        for event in events:
            if isinstance(event, events_pb2.DocumentChange) and event.reference:
                references.append((record, entry, event))
            else:
                messages.extend(messages_of(event, self._partitions, self._now))
        if any(len(message.value or b"") > DOCUMENT_BYTES_MAX for message in messages):
            raise DecodeError(f"what it means has over {DOCUMENT_BYTES_MAX:,} bytes", "write shorter records")
        self.references.extend(references)
        self.outcomes["accepted"] += len(events) - len(references)
        self.outcomes["skipped"] += not events
        return [each._replace(event_id=_event_id(record, number)) for number, each in enumerate(messages)]

    def give_up(self, record: Any, entry: TopicsSettings, reason: str) -> None:
        """Add a dead letter."""
        origin = f"{record.topic}/{record.partition}/{record.offset}"
        content = kept(record, entry.format)
        if len(content) > DOCUMENT_BYTES_MAX:
            content = kept(record, entry.format, whole=False)
            reason = f"{reason} (too long to be kept: read it at {origin})"
        letter = dead_letter(content, reason, Offer(ENVELOPE, origin, entry.tenant, entry.source), self._now)
        self.messages.append(letter._replace(event_id=_event_id(record, "dead")))
        self.outcomes["dead_lettered"] += 1
        self.errors.append(f"{origin}: {reason}")


def _event_id(record: Any, ordinal: object) -> str:
    return f"ingest:{record.topic}/{record.partition}/{record.offset}#{ordinal}"
