"""What ingest does with what it is given: decode, append, acknowledge. The same for gRPC, HTTP and folders.

An acknowledgement means that everything before it is in the log and would survive a power failure.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prometheus_client import Counter

from headwater.ingest.v1 import events_pb2, service_pb2
from services.ingest.bucket_source import Buckets
from services.ingest.decoders.common import DecodeError, Hints, UnknownSchemaError
from services.ingest.decoders.detect import FORMATS
from services.ingest.messages import Instant, Offer, dead_letter, messages_of
from services.ingest.schema_registry import SchemaRegistry
from services.ingest.settings import Settings
from services.ingest.validation import checked_change, checked_document, checked_tenant
from services.kernel import topics
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.log import DEFAULT_TENANT, Log, Message, Offsets

RECORDS = Counter("headwater_ingest_records", "Records that ingest was given, by what became of them.", ["outcome"])

SLICE_RECORDS = 500  # decoded and appended at once: others get their turn on the event loop in between
PUSH_CHANGES_MAX = 5_000  # appended as one, so that nobody else gets a turn in between
ERRORS_MAX = 5


class Outcome(NamedTuple):
    """What became of a number of records."""

    read: int = 0
    accepted: int = 0
    skipped: int = 0
    dead_lettered: int = 0
    errors: tuple[str, ...] = ()

    def plus(self, other: "Outcome") -> "Outcome":
        """The sums, and the first few errors."""
        return Outcome(
            self.read + other.read,
            self.accepted + other.accepted,
            self.skipped + other.skipped,
            self.dead_lettered + other.dead_lettered,
            (self.errors + other.errors)[:ERRORS_MAX],
        )


class Slice(NamedTuple):
    """Records decoded: what became of them, the messages to append, and documents that refer to objects.

    Each of these comes with the number of its record.
    """

    outcome: Outcome
    messages: list[Message]
    references: list[tuple[int, events_pb2.DocumentChange]]


class Ingestion:
    """Appends changes and documents to the log."""

    def __init__(
        self,
        log: Log,
        clock: Callable[[], float],
        settings: Settings,
        buckets: Buckets,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self._log, self._clock, self._settings = log, clock, settings
        self._buckets, self._registry = buckets, registry

    async def push(self, changes: Sequence[events_pb2.Change], reached: Offsets) -> int:
        """Append changes, all or none.

        Args:
            changes: the changes; record and time are filled in.
            reached: is advanced to the position that has been reached.

        Returns:
            How many were appended.

        Raises:
            InvalidInputError: one of them is not a change; nothing was appended.
        """
        if len(changes) > PUSH_CHANGES_MAX:
            raise InvalidInputError(f"{len(changes):,} changes in one request: push at most {PUSH_CHANGES_MAX:,}")
        now, partitions = self._now(), self._log.partitions(topics.CHANGES)
        messages: list[Message] = []
        for number, change in enumerate(changes, 1):
            checked = checked_change(change, f"change {number} of {len(changes)}", self._settings.record_bytes_max)
            messages.extend(messages_of(checked, partitions, now))
        await self._append(messages, reached)
        RECORDS.labels("accepted").inc(len(changes))
        return len(changes)

    async def push_raw(self, request: service_pb2.PushRawRequest, reached: Offsets) -> Outcome:
        """Decode records and append what they mean; what cannot be decoded goes to dead_letters.

        Args:
            request: the records, in order.
            reached: is advanced to the position that has been reached.

        Raises:
            InvalidInputError: there is no such format.
            UnavailableError: the schema registry or an object store cannot be asked now; what comes before this slice
                of the records is in the log.
        """
        format_ = request.format or "auto"
        if format_ not in FORMATS:
            raise InvalidInputError(f"there is no format {format_!r}: use one of {', '.join(FORMATS)}")
        total = Outcome()
        for start in range(0, len(request.records), SLICE_RECORDS):
            slice_ = await self._decoded(request, format_, start)
            await self._append(slice_.messages, reached)
            total = total.plus(slice_.outcome)
            if slice_.references:
                total = total.plus(await self._follow(request, format_, slice_.references, reached))
        for name in ("accepted", "skipped", "dead_lettered"):
            RECORDS.labels(name).inc(getattr(total, name))
        return total

    async def put_document(self, document: events_pb2.DocumentChange, reached: Offsets) -> str:
        """Append a document change.

        Args:
            document: the change; id and time are filled in.
            reached: is advanced to the position that has been reached.

        Returns:
            The document's id.

        Raises:
            InvalidInputError: it is not a document change, or too long.
        """
        if document.reference:
            raise InvalidInputError("a document needs its content: push the notification of an object with PushRaw")
        checked = checked_document(document, self._settings.document_bytes_max)
        await self._append(messages_of(checked, 0, self._now()), reached)
        RECORDS.labels("accepted").inc()
        return checked.document_id

    async def _decoded(self, request: service_pb2.PushRawRequest, format_: str, start: int) -> Slice:
        """Decode a slice of a request, with the schemas that it needs."""
        while True:
            try:
                return self._decode(request, format_, start)
            except UnknownSchemaError as error:
                if self._registry is None:
                    raise UnavailableError(f"{error} is needed, and there is no schema registry") from error
                await self._registry.fetch(error.schema_id)

    def _decode(self, request: service_pb2.PushRawRequest, format_: str, start: int) -> Slice:
        tenant = checked_tenant(request.tenant, _origin(request, start))
        schemas = self._registry.schemas if self._registry is not None else None
        hints = Hints(request.source, tenant, self._settings.keys, schemas)
        decode, partitions, now = FORMATS[format_], self._log.partitions(topics.CHANGES), self._now()
        limit = self._settings.record_bytes_max
        messages: list[Message] = []
        references: list[tuple[int, events_pb2.DocumentChange]] = []
        errors: list[str] = []
        accepted = skipped = dead_lettered = 0
        records = request.records[start : start + SLICE_RECORDS]
        for index, record in enumerate(records, start):
            try:
                if len(record) > limit:
                    raise _too_long(record, limit)
                events = decode(record, hints) if record and not record.isspace() else ()
            except DecodeError as error:
                origin = _origin(request, index)
                dead_lettered += 1
                errors.append(f"{origin}: {error}")
                messages.append(dead_letter(record, str(error), Offer(format_, origin, tenant, request.source), now))
                continue
            if not events:
                skipped += 1
            for event in events:
                if isinstance(event, events_pb2.DocumentChange) and event.reference:
                    references.append((index, event))
                    continue
                accepted += 1
                messages.extend(messages_of(event, partitions, now))
        outcome = Outcome(len(records), accepted, skipped, dead_lettered, tuple(errors[:ERRORS_MAX]))
        return Slice(outcome, messages, references)

    async def _follow(
        self,
        request: service_pb2.PushRawRequest,
        format_: str,
        references: Sequence[tuple[int, events_pb2.DocumentChange]],
        reached: Offsets,
    ) -> Outcome:
        """Append the documents that records refer to; each comes with the number of its record."""
        outcomes = await self._buckets.take([document for _, document in references])
        failed = {index: reason for (index, _), reason in zip(references, outcomes, strict=True) if reason}
        letters, errors, now = [], [], self._now()
        for index, reason in failed.items():
            origin, tenant = _origin(request, index), request.tenant or DEFAULT_TENANT
            errors.append(f"{origin}: {reason}")
            offer = Offer(format_, origin, tenant, request.source)
            letters.append(dead_letter(request.records[index], reason, offer, now))
        await self._append(letters, reached)
        for partition, offset in enumerate(await self._log.end(topics.DOCUMENTS)):
            reached[topics.DOCUMENTS, partition] = max(offset, reached.get((topics.DOCUMENTS, partition), 0))
        return Outcome(
            accepted=outcomes.count(None), skipped=outcomes.count(""), dead_lettered=len(failed), errors=tuple(errors)
        )

    async def _append(self, messages: Sequence[Message], reached: Offsets) -> None:
        if messages:
            position = await self._log.append(messages, durable=True)
            reached.update({(place.topic, place.partition): place.offset for place in position.offsets})

    def _now(self) -> Instant:
        seconds, fraction = divmod(self._clock(), 1)
        return int(seconds), int(fraction * 1_000_000) * 1_000


def _too_long(record: bytes, limit: int) -> DecodeError:
    return DecodeError(
        f"the record has {len(record):,} bytes, the limit is {limit:,}",
        "send large content as a document, or raise record_bytes_max in [ingest]",
    )


def _origin(request: service_pb2.PushRawRequest, index: int) -> str:
    """Where a record comes from: file and line, where they are known."""
    name = request.origin or request.source or "push"
    return f"{name}:{request.first_line + index}" if request.first_line else name
