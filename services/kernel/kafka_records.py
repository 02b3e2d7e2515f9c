"""How messages and records look in Kafka: the CloudEvents Kafka binding in binary mode, and the topics' settings."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from services.kernel.errors import InvalidInputError
from services.kernel.log import EMPTY, SEPARATOR, Message, Record
from services.kernel.settings import DOCUMENT_BYTES_MAX
from services.kernel.topics import CHANGES, Cleanup, TopicSpec

RECORD_BYTES_MAX = DOCUMENT_BYTES_MAX + (1 << 20)
_SPECIFICATION, _SOURCE = ("ce_specversion", b"1.0"), ("ce_source", b"/headwater")
_CONTENT_TYPE = ("content-type", b"application/protobuf")
_USUAL = ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject", "content-type")
_OURS = frozenset(_USUAL)
Headers = list[tuple[str, bytes]]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def headers_of(message: Message) -> Headers:
    """Return a message's Kafka headers; what the message calls like one of the binding's own is left out.

    Raises:
        InvalidInputError: its time is not one of a calendar with years from 1 to 9999.
    """
    headers = [
        _SPECIFICATION,
        ("ce_id", message.event_id.encode() if message.event_id else os.urandom(16).hex().encode()),
        ("ce_type", message.type.encode()),
        _SOURCE,
        ("ce_time", _time_text(message.timestamp_ms).encode()),
    ]
    if message.key is not None:
        subject = message.key.decode(errors="replace").replace(SEPARATOR, "/")
        headers.append(("ce_subject", subject.encode()))
    if message.value is not None:
        headers.append(_CONTENT_TYPE)
    if message.headers:
        headers.extend((name, value.encode()) for name, value in message.headers.items() if name not in _OURS)
    return headers


def records_of(raw: Iterable[Any], topic: str) -> list[Record]:
    """Return the records that `ConsumerRecord`s of aiokafka hold; `topic` is its name without the prefix.

    What did not come from Headwater may lack headers: its place is its id then, and Kafka's own time its time.
    """
    return [_usual_record_of(each, topic) or _record_of(each, topic) for each in raw]


def _usual_record_of(raw: Any, topic: str) -> Record | None:
    """Return the record when it has the headers that `headers_of` mostly gives: quicker than to search for each."""
    headers = raw.headers
    if len(headers) != len(_USUAL):
        return None
    (n0, _), (n1, event_id), (n2, kind), (n3, _), (n4, time), (n5, _), (n6, _) = headers
    if (n0, n1, n2, n3, n4, n5, n6) != _USUAL or not (event_id and kind and time):
        return None
    try:
        fields = (
            topic, raw.partition, raw.offset, raw.key, raw.value, kind.decode(), event_id.decode(),
            _time_ms(time.decode(), raw.timestamp), EMPTY,
        )  # fmt: skip
    except UnicodeDecodeError:
        return None
    return tuple.__new__(Record, fields)  # what `Record(*fields)` comes to, at half the time


def _record_of(raw: Any, topic: str) -> Record:
    kind = event_id = happened = ""
    others: dict[str, str] = {}
    for name, value in raw.headers:
        if name == "ce_type":
            kind = _text(value)
        elif name == "ce_id":
            event_id = _text(value)
        elif name == "ce_time":
            happened = _text(value)
        elif name not in _OURS:
            others[name] = _text(value)
    return Record(
        topic, raw.partition, raw.offset, raw.key, raw.value, kind,
        event_id or f"{topic}/{raw.partition}/{raw.offset}", _time_ms(happened, raw.timestamp), others or EMPTY,
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


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _time_text(timestamp_ms: int) -> str:
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    try:
        return f"{_second_text(seconds)}.{milliseconds:03}Z"
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidInputError(f"{timestamp_ms} ms since 1970 is not within the years 1 to 9999") from error


@lru_cache(256)  # what is appended at one time often happened at one time
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def _time_ms(text: str, otherwise: int) -> int:
    try:
        happened = datetime.fromisoformat(text)
    except ValueError:
        return otherwise
    if happened.tzinfo is None:
        happened = happened.replace(tzinfo=UTC)
    return (happened - _EPOCH) // _MILLISECOND
