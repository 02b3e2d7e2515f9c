"""Records of raw topics as messages of the log: what their settings say, decoding, and dead letters.

Whatever a record holds, the others go on: one that cannot be decoded becomes a dead letter that holds it as an envelope
(see `decoders.kcat`), so that it can be put back. Each message's event id follows from the record's place.
"""

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
from services.kernel.settings import DOCUMENT_BYTES_MAX

ENVELOPE = "kcat"  # the format of what a dead letter holds

log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """Records as messages, and how many of them came to what."""

    messages: Sequence[Message]
    counts: Mapping[str, int]

    def count(self) -> None:
        """Tell the metrics, once the messages last."""
        for outcome, number in self.counts.items():
            RECORDS.labels(outcome).inc(number)


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

    def match(self, topic: str) -> bool:
        """Whether a topic is taken; so called because a client of Kafka takes this for a pattern."""
        return self.entry(topic) is not None

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

    async def take(self, records: Sequence[Any], selection: Selection) -> Taken:
        """Return what records mean; objects that notifications among them tell of are published.

        Args:
            records: as aiokafka gives them.
            selection: says as what they are taken.

        Raises:
            UnavailableError: the schema registry, or an object store, cannot be asked now.
        """
        while True:
            try:
                attempt = _Attempt(self._settings, self._partitions(), self._now())
                schemas = self._registry.schemas if self._registry is not None else None
                for record in records:
                    attempt.decode(record, selection.entry(record.topic) or TopicsSettings(), schemas)
                break
            except UnknownSchemaError as error:
                if self._registry is None:
                    raise UnavailableError(f"{error} is needed, and there is no schema registry") from error
                await self._registry.fetch(error.schema_id)
        if attempt.references:
            outcomes = await self._buckets.take([document for _, _, document in attempt.references])
            for (record, entry, _), reason in zip(attempt.references, outcomes, strict=True):
                if reason:
                    attempt.give_up(record, entry, reason)
                else:
                    attempt.counts["skipped" if reason == "" else "accepted"] += 1
        return Taken(attempt.messages, attempt.counts)

    def _now(self) -> Instant:
        seconds, fraction = divmod(self._clock(), 1)
        return int(seconds), int(fraction * 1_000_000) * 1_000


class _Attempt:
    """Records being decoded."""

    def __init__(self, settings: Settings, partitions: int, now: Instant) -> None:
        self._settings, self._partitions, self._now = settings, partitions, now
        self.messages: list[Message] = []
        self.references: list[tuple[Any, TopicsSettings, events_pb2.DocumentChange]] = []
        self.counts = dict.fromkeys(("accepted", "skipped", "dead_lettered"), 0)

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
        self.counts["accepted"] += len(events) - len(references)
        self.counts["skipped"] += not events
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
        self.counts["dead_lettered"] += 1
        log.warning("topics.dead_letter", topic=record.topic, partition=record.partition, offset=record.offset,
                    reason=reason)  # fmt: skip


def _event_id(record: Any, ordinal: object) -> str:
    return f"ingest:{record.topic}/{record.partition}/{record.offset}#{ordinal}"
