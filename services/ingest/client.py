"""The client's side of ingest: files and standard input, streamed to the service in bounded batches."""

import asyncio
import gzip
import io
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import grpc
import orjson

from headwater.ingest.v1 import events_pb2, service_pb2
from services.ingest.batching import Batch, LineCutter, array_batches
from services.ingest.media_types import media_type
from services.kernel.errors import InvalidInputError, NotFoundError, from_rpc
from services.kernel.settings import DOCUMENT_BYTES_MAX

if TYPE_CHECKING:
    from headwater.ingest.v1.service_pb2_grpc import IngestServiceAsyncStub

LINE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
CHUNK_BYTES = 1 << 20
WHOLE_BYTES_MAX = 64 << 20  # of a JSON document that is not lines, which must be held whole
REQUESTS_IN_FLIGHT = 4
ERRORS_MAX = 20
DEFAULT_SOURCE = "documents"
STANDARD_INPUT = "-"

Progress = Callable[[int], None]
"""Called with the number of records that the service has answered for."""


class Totals(NamedTuple):
    """What became of the records of a file; `refused` ones were too long to be sent at all."""

    read: int = 0
    accepted: int = 0
    skipped: int = 0
    dead_lettered: int = 0
    refused: int = 0
    errors: tuple[str, ...] = ()
    position_token: str = ""

    def plus(self, answer: service_pb2.PushRawResponse) -> "Totals":
        """Add what the service answered to one request."""
        return self._replace(
            read=self.read + answer.read,
            accepted=self.accepted + answer.accepted,
            skipped=self.skipped + answer.skipped,
            dead_lettered=self.dead_lettered + answer.dead_lettered,
            errors=(self.errors + tuple(answer.errors))[:ERRORS_MAX],
            position_token=answer.position_token or self.position_token,
        )

    def plus_refused(self, origin: str, number: int) -> "Totals":
        """Add a record that was too long to be sent."""
        reason = f"{origin}:{number}: the line is longer than a request may be: send large content as a document"
        errors = (*self.errors, reason)[:ERRORS_MAX]
        return self._replace(read=self.read + 1, refused=self.refused + 1, errors=errors)


async def push_file(
    stub: "IngestServiceAsyncStub",
    path_or_stdin: str | Path | BinaryIO,
    source: str = "",
    format_: str = "auto",
    on_progress: Progress | None = None,
) -> Totals:
    """Push a file of events, one a line or as a JSON array, or a file that is a document as a whole.

    Args:
        stub: the service.
        path_or_stdin: a file, `-` for standard input, or an open binary stream. `.gz` is unpacked.
        source: the source's name; empty takes what the events say.
        format_: a format of events; with `auto`, a file that is not JSON is a document.
        on_progress: told how far it is.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is a directory, cannot be read, or is too large to be sent.
        UnavailableError: the service went away; what was acknowledged before is in the log.
    """
    if not isinstance(path_or_stdin, str | Path):
        return await _push_stream_of(stub, path_or_stdin, "-", source=source, format_=format_, on_progress=on_progress)
    if str(path_or_stdin) == STANDARD_INPUT:
        return await _push_stream_of(
            stub, sys.stdin.buffer, "-", source=source, format_=format_, on_progress=on_progress
        )
    path = Path(path_or_stdin)
    with _opened(path) as stream:
        if _is_document(path, format_, stream):
            return await _push_document(stub, path, source, on_progress)
        return await _push_stream_of(stub, stream, str(path), source=source, format_=format_, on_progress=on_progress)


async def push_batches(
    stub: "IngestServiceAsyncStub",
    batches: AsyncIterator[Batch],
    *,
    source: str = "",
    format_: str = "auto",
    origin: str = "",
    tenant: str = "",
    on_progress: Progress | None = None,
) -> Totals:
    """Push batches of records, a bounded number of requests ahead of the answers.

    Raises:
        HeadwaterError: what the service refused, or whatever `batches` raised.
    """
    window = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    totals, failures = Totals(), []

    async def requests() -> AsyncIterator[service_pb2.PushRawRequest]:
        nonlocal totals
        try:
            async for batch in batches:
                if not batch.records:
                    totals = totals.plus_refused(origin, batch.first)
                    continue
                await window.acquire()
                yield service_pb2.PushRawRequest(
                    source=source,
                    format=format_,
                    records=batch.records,
                    origin=origin,
                    first_line=batch.first,
                    tenant=tenant,
                )
        except Exception as error:  # noqa: BLE001 - grpc would hide it behind a cancelled call; it is raised below
            failures.append(error)

    try:
        async for answer in stub.PushRaw(requests()):
            window.release()
            totals = totals.plus(answer)
            if on_progress is not None:
                on_progress(totals.read)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, f"push (after {totals.read} records)") from error
    if failures:
        raise failures[0]
    return totals


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder: name its files, or watch it with [[ingest.folders]]")
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # a BinaryIO but in name
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error


def _is_document(path: Path, format_: str, stream: BinaryIO) -> bool:
    """Whether a file is a document as a whole: one that is not JSON, unless a format of events is named."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if format_ != "auto" or suffix in LINE_SUFFIXES or path.suffix == ".gz" or not stream.seekable():
        return False
    first = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    stream.seek(0)
    return bool(suffix) or first not in (b"{", b"[", b"")


async def _push_document(
    stub: "IngestServiceAsyncStub", path: Path, source: str, on_progress: Progress | None
) -> Totals:
    document = await asyncio.to_thread(_document, path, source)
    if not document.content:
        return _nothing(str(path))
    try:
        answer = await stub.PutDocument(service_pb2.PutDocumentRequest(document=document))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, f"{path}") from error
    if on_progress is not None:
        on_progress(1)
    return Totals(read=1, accepted=1, position_token=answer.position_token)


def _document(path: Path, source: str) -> events_pb2.DocumentChange:
    status = path.stat()
    if status.st_size > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(
            f"{path} has {status.st_size:,} bytes, more than the {DOCUMENT_BYTES_MAX:,} that any installation takes: "
            "split it"
        )
    document = events_pb2.DocumentChange(
        source=source or DEFAULT_SOURCE,
        operation=events_pb2.DOCUMENT_OPERATION_PUT,
        content=path.read_bytes(),
        media_type=media_type(path.name),
        name=path.name,
        uri=str(path.absolute()),
    )
    document.occurred_at.FromNanoseconds(status.st_mtime_ns)
    return document


async def _push_stream_of(
    stub: "IngestServiceAsyncStub",
    stream: BinaryIO,
    origin: str,
    *,
    source: str,
    format_: str,
    on_progress: Progress | None,
) -> Totals:
    records = _records_of(stream, origin)
    totals = await push_batches(stub, records, source=source, format_=format_, origin=origin, on_progress=on_progress)
    return totals if totals.read else _nothing(origin)


def _nothing(origin: str) -> Totals:
    return Totals(errors=(f"{origin}: it is empty: there was nothing to read",))


async def _records_of(stream: BinaryIO, origin: str) -> AsyncIterator[Batch]:
    """The records of a stream: its lines as they come, or the elements of the one JSON value that it is."""
    try:
        chunk = await _read(stream)
        if not _is_of_lines(origin) and _is_whole_value(chunk):
            for batch in array_batches(await _whole_value(stream, chunk, origin)):
                yield batch
            return
        cutter = LineCutter()
        while chunk:
            for batch in cutter.feed(chunk):
                yield batch
            chunk = await _read(stream)
        for batch in cutter.end():
            yield batch
    except (OSError, EOFError, zlib.error) as error:  # a broken disk, or a broken .gz
        raise InvalidInputError(f"{origin} cannot be read any further: {error}") from error


def _is_of_lines(origin: str) -> bool:
    """Whether a file's name says that it holds lines, so that a bad first line is no more than a bad line."""
    return origin.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _is_whole_value(start: bytes) -> bool:
    """Whether a text begins as one JSON value over several lines, or as an array, rather than with one event a line."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"[":
        return True
    line, newline, rest = text.partition(b"\n")
    if text[:1] != b"{" or not newline or not rest.strip() or len(line) > 4096:
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        # Written with indentation, a value's first line is no more than its beginning.
        return rest.lstrip(b" \t\r\n")[:1] in (b'"', b"}")
    return False


async def _whole_value(stream: BinaryIO, start: bytes, origin: str) -> list[Any]:
    parts, size = [start], len(start)
    while chunk := await _read(stream):
        parts.append(chunk)
        size += len(chunk)
        if size > WHOLE_BYTES_MAX:
            raise InvalidInputError(f"{origin} is one JSON value of over {WHOLE_BYTES_MAX:,} bytes: write one a line")
    try:
        value = orjson.loads(b"".join(parts).removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"{origin} is not JSON ({error}): write one JSON object a line, or an array") from error
    return value if type(value) is list else [value]


async def _read(stream: BinaryIO) -> bytes:
    """What there is to read, up to a chunk; waits when there is nothing yet."""
    await _readable(stream)
    if isinstance(stream, io.BufferedReader):
        return await asyncio.to_thread(stream.read1, CHUNK_BYTES)
    return await asyncio.to_thread(stream.read, CHUNK_BYTES)


async def _readable(stream: BinaryIO) -> None:
    """Wait on the event loop for a pipe or terminal: a thread that waits there could not be cancelled."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        descriptor = stream.fileno()
        loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    except (OSError, NotImplementedError, io.UnsupportedOperation):
        return  # an ordinary file is always ready
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
