"""What the files of a watched folder mean as documents, and what changed since they were last looked at. Pure.

A file is one document, `source/path`. A `.jsonl` file of documents (as corpora are shipped) is as many as it has lines,
`source/path#id`.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeVar

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import documents
from services.ingest.decoders.common import DecodeError, Hints, parse, parse_object
from services.ingest.folder_files import UNSURE, Content, Listing, Stat
from services.ingest.media_types import media_type
from services.ingest.settings import FolderSettings

T = TypeVar("T")

_LINE_SUFFIXES = (".jsonl", ".ndjson")

Marked = tuple[events_pb2.DocumentChange, bytes]
"""A document, with neither position nor time, and its fingerprint."""


class BadLine(NamedTuple):
    """A line of a file of documents that is none."""

    number: int
    line: bytes
    error: str


class FileDocuments(NamedTuple):
    """What is in a file.

    Attributes:
        path: the file's path within the folder.
        documents: its documents by id; None when the file could not be read.
        bad_lines: the lines that are none.
        changed_at: when the file changed.
        stat: how it looked then.
    """

    path: str
    documents: dict[str, Marked] | None
    bad_lines: list[BadLine]
    changed_at: tuple[int, int]
    stat: Stat


class FileChange(NamedTuple):
    """What is new in a file.

    Attributes:
        path: the file's path within the folder.
        put: documents that are new or changed, by id.
        gone: ids of documents that are gone.
        bad_lines: the lines that are no documents.
        changed_at: when the file changed.
        stat: how it looked then.
        is_last: whether there is no more to come of it.
    """

    path: str
    put: dict[str, Marked]
    gone: list[str]
    bad_lines: list[BadLine]
    changed_at: tuple[int, int]
    stat: Stat
    is_last: bool = True

    @property
    def size(self) -> int:
        """How many documents it is about."""
        return len(self.put) + len(self.gone) + len(self.bad_lines)

    def parts(self, size_max: int) -> Iterator["FileChange"]:
        """The change as itself, or in parts of a bounded size.

        A file counts as read with the last part only, so that a crash in between loses none.
        """
        if self.size <= size_max:
            yield self
            return
        begun = self._replace(put={}, gone=[], bad_lines=[], stat=Stat(UNSURE, 0), is_last=False)
        for put in batched(self.put.items(), size_max):
            yield begun._replace(put=dict(put))
        for gone in batched(self.gone, size_max):
            yield begun._replace(gone=gone)
        for bad_lines in batched(self.bad_lines, size_max):
            yield begun._replace(bad_lines=bad_lines)
        yield self._replace(put={}, gone=[], bad_lines=[])


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def documents_of(item: Content, folder: FolderSettings) -> FileDocuments:
    """The documents of a file, by what was read of it."""
    changed_at = divmod(item.mtime_ns, 1_000_000_000)
    if item.content is None:
        return FileDocuments(item.path, None, [], changed_at, item.stat)
    bad_lines: list[BadLine] = []
    if item.path.lower().endswith(_LINE_SUFFIXES) and _holds_documents(item.content):
        found = _lines(item.path, item.content, folder, bad_lines)
    else:
        found = {f"{folder.source}/{item.path}": _whole(item.path, item.content, folder)}
    marked = {document_id: (document, fingerprint(document)) for document_id, document in found.items()}
    return FileDocuments(item.path, marked, bad_lines, changed_at, item.stat)


def _whole(path: str, content: bytes, folder: FolderSettings) -> events_pb2.DocumentChange:
    return events_pb2.DocumentChange(
        tenant=folder.tenant,
        source=folder.source,
        document_id=f"{folder.source}/{path}",
        operation=events_pb2.DOCUMENT_OPERATION_PUT,
        content=content,
        media_type=media_type(path),
        name=path.rpartition("/")[2],
        metadata={"path": path},
        access=folder.access,
        uri=str(folder.path / path),
    )


def _holds_documents(content: bytes) -> bool:
    first = content.lstrip().partition(b"\n")[0]
    try:
        event = parse(first)
    except DecodeError:
        return False
    return type(event) is dict and documents.is_document(event)


def _lines(
    path: str, content: bytes, folder: FolderSettings, bad_lines: list[BadLine]
) -> dict[str, events_pb2.DocumentChange]:
    found: dict[str, events_pb2.DocumentChange] = {}
    hints = Hints(source=folder.source, tenant=folder.tenant)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            document = documents.to_document(parse_object(line), hints, f"{folder.source}/{path}#")
        except DecodeError as error:
            bad_lines.append(BadLine(number, line, str(error)))
            continue
        if document.operation == events_pb2.DOCUMENT_OPERATION_DELETE:
            found.pop(document.document_id, None)
            continue
        document.uri = document.uri or str(folder.path / path)
        document.metadata["path"] = path
        if not document.access:
            document.access.extend(folder.access)
        found[document.document_id] = document
    return found


def fingerprint(document: events_pb2.DocumentChange) -> bytes:
    """A hash of all that a document says: equal means that nothing needs to be told."""
    return hashlib.blake2b(document.SerializeToString(deterministic=True), digest_size=16).digest()


def change_of(file: FileDocuments, before: Mapping[str, bytes]) -> FileChange:
    """Compare a file's documents with the fingerprints of those that it had before."""
    now = file.documents or {}
    put = {document_id: marked for document_id, marked in now.items() if before.get(document_id) != marked[1]}
    gone = [document_id for document_id in before if document_id not in now]
    # Bad lines are news only when the file is.
    bad_lines = file.bad_lines if put or gone else []
    return FileChange(file.path, put, gone, bad_lines, file.changed_at, file.stat)


class Plan(NamedTuple):
    """What to do after a look at the files: read some, and forget others."""

    read: list[str]
    gone: list[str]


def plan(known: Mapping[str, Stat], listing: Listing, again: Collection[str] = ()) -> Plan:
    """Compare what is known with what is there.

    Args:
        known: the files that were there before, among those that were looked for now.
        listing: the files that are there.
        again: files to read whether they look changed or not.
    """
    changed = [path for path, stat in listing.found.items() if known.get(path) != stat or path in again]
    unreadable = set(listing.unreadable)
    gone = [path for path in known if path not in listing.found and not _is_below(path, unreadable)]
    return Plan(changed, gone)


def _is_below(path: str, folders: set[str]) -> bool:
    """Whether a path is one of `folders` or below one; what could not be looked at is not gone."""
    while path:
        if path in folders:
            return True
        path = path.rpartition("/")[0]
    return False
