"""How messages and records look in Kafka: the CloudEvents Kafka binding in binary mode, and the topics' settings."""

import uuid
from datetime import UTC, datetime
from typing import Any

from services.kernel.errors import InvalidInputError
from services.kernel.log import EMPTY, SEPARATOR, Message, Record
from services.kernel.settings import DOCUMENT_BYTES_MAX
from services.kernel.topics import CHANGES, Cleanup, TopicSpec

RECORD_BYTES_MAX = DOCUMENT_BYTES_MAX + (1 << 20)
CONTENT_TYPE = b"application/protobuf"
SOURCE = b"/headwater"
_OURS = frozenset(("ce_id", "ce_type", "ce_source", "ce_time", "ce_specversion", "ce_subject", "content-type"))


def headers_of(message: Message) -> list[tuple[str, bytes]]:
    """Return a message's Kafka headers; what the message calls like one of the binding's own is left out.

    Raises:
        InvalidInputError: its time is not one of a calendar with years from 1 to 9999.
    """
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", (message.event_id or str(uuid.uuid4())).encode()),
        ("ce_type", message.type.encode()),
        ("ce_source", SOURCE),
        ("ce_time", _time_text(message.timestamp_ms).encode()),
    ]
    if message.key is not None:
        subject = message.key.decode(errors="replace").replace(SEPARATOR, "/")
        headers.append(("ce_subject", subject.encode()))
    if message.value is not None:
        headers.append(("content-type", CONTENT_TYPE))
    headers.extend((name, value.encode()) for name, value in message.headers.items() if name not in _OURS)
    return headers


def record_of(raw: Any, topic: str) -> Record:
    """Return the record that a `ConsumerRecord` of aiokafka holds; `topic` is its name without the prefix.

    What did not come from Headwater may lack headers: its place is its id then, and Kafka's own time its time.
    """
    headers = {name: (value or b"").decode(errors="replace") for name, value in raw.headers}
    others = {name: value for name, value in headers.items() if name not in _OURS}
    return Record(
        topic, raw.partition, raw.offset, raw.key, raw.value, headers.get("ce_type", ""),
        headers.get("ce_id") or f"{topic}/{raw.partition}/{raw.offset}",
        _time_ms(headers.get("ce_time", ""), raw.timestamp), others or EMPTY,
    )  # fmt: skip


def _cleanup(spec: TopicSpec) -> Cleanup:
    # A change that is not whole (`records.NOT_WHOLE`) adds to earlier ones of its key. The embedded log keeps those
    # when it compacts; Kafka's compaction looks at keys only, and would lose columns. So `changes` keeps everything.
    return Cleanup.KEEP if spec.name == CHANGES else spec.cleanup


def is_compacted_in_kafka(spec: TopicSpec) -> bool:
    """Tell whether Kafka keeps only the newest record of a key of a topic."""
    return _cleanup(spec) is Cleanup.COMPACT


def topic_config(spec: TopicSpec, replication: int) -> dict[str, str]:
    """Return the settings with which a topic is made."""
    config = {
        # The age of a record is since it was appended; when it happened is in `ce_time`.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(RECORD_BYTES_MAX),
    }
    if replication > 2:
        config["min.insync.replicas"] = "2"
    match _cleanup(spec):
        case Cleanup.COMPACT:
            lag = str(spec.compaction_lag_ms)
            return config | {
                "cleanup.policy": "compact",
                "min.compaction.lag.ms": lag,
                "delete.retention.ms": lag,
            }
        case Cleanup.DELETE:
            return config | {
                "cleanup.policy": "delete",
                "retention.ms": str(-1 if spec.retention_ms is None else spec.retention_ms),
                "retention.bytes": str(-1 if spec.retention_bytes is None else spec.retention_bytes),
            }
        case Cleanup.KEEP:
            return config | {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


def _time_text(timestamp_ms: int) -> str:
    try:
        happened = datetime.fromtimestamp(timestamp_ms // 1000, UTC).replace(microsecond=timestamp_ms % 1000 * 1000)
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidInputError(f"{timestamp_ms} ms since 1970 is not within the years 1 to 9999") from error
    return happened.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time_ms(text: str, otherwise: int) -> int:
    try:
        happened = datetime.fromisoformat(text)
    except ValueError:
        return otherwise
    if happened.tzinfo is None:
        happened = happened.replace(tzinfo=UTC)
    seconds = int(happened.replace(microsecond=0).timestamp())
    return seconds * 1000 + happened.microsecond // 1000
