"""What ingest does with what it is given: decode, append, acknowledge. The same for gRPC, HTTP and folders.

An acknowledgement means that everything before it is in the log and would survive a power failure.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prometheus_client import Counter

from headwater.ingest.v1 import events_pb2, service_pb2
from services.ingest.decoders.common import DecodeError, Hints
from services.ingest.decoders.detect import FORMATS
from services.ingest.messages import Instant, Offer, dead_letter, messages_of
from services.ingest.settings import Settings
from services.ingest.validation import checked_change, checked_document, checked_tenant
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Log, Message, Offsets

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


class Ingestion:
    """Appends changes and documents to the log."""

    def __init__(self, log: Log, clock: Callable[[], float], settings: Settings) -> None:
        self._log, self._clock, self._settings = log, clock, settings

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
        """
        format_ = request.format or "auto"
        if format_ not in FORMATS:
            raise InvalidInputError(f"there is no format {format_!r}: use one of {', '.join(FORMATS)}")
        total = Outcome()
        for start in range(0, len(request.records), SLICE_RECORDS):
            part, messages = self._decode(request, format_, start)
            await self._append(messages, reached)
            total = total.plus(part)
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
        checked = checked_document(document, self._settings.document_bytes_max)
        await self._append(messages_of(checked, 0, self._now()), reached)
        RECORDS.labels("accepted").inc()
        return checked.document_id

    def _decode(self, request: service_pb2.PushRawRequest, format_: str, start: int) -> tuple[Outcome, list[Message]]:
        """Decode a slice of a request."""
        tenant = checked_tenant(request.tenant, _origin(request, start))
        hints = Hints(request.source, tenant, self._settings.keys)
        decode, partitions, now = FORMATS[format_], self._log.partitions(topics.CHANGES), self._now()
        limit = self._settings.record_bytes_max
        messages: list[Message] = []
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
                accepted += 1
                messages.extend(messages_of(event, partitions, now))
        return Outcome(len(records), accepted, skipped, dead_lettered, tuple(errors[:ERRORS_MAX])), messages

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
