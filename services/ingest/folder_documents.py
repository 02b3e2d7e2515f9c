"""What the files of a watched folder mean as documents, and what changed since they were last looked at. Pure.

A file is one document, `source/path`. A `.jsonl` file of documents (as corpora are shipped) is as many as it has lines,
`source/path#id`.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from headwater.ingest.v1 import events_pb2
from services.ingest.decoders import documents
from services.ingest.decoders.common import DecodeError, Hints, parse, parse_object
from services.ingest.folder_files import Listing, Stat
from services.ingest.media_types import media_type
from services.ingest.settings import FolderSettings

_LINE_SUFFIXES = (".jsonl", ".ndjson")


class BadLine(NamedTuple):
    """A line of a file of documents that is none."""

    number: int
    line: bytes
    error: str


class FileDocuments(NamedTuple):
    """The documents of a file by id, with neither position nor time, and the lines that are none."""

    documents: dict[str, events_pb2.DocumentChange]
    bad_lines: list[BadLine]


def documents_of(path: str, content: bytes, folder: FolderSettings) -> FileDocuments:
    """The documents of a file.

    Args:
        path: the file's path within the folder.
        content: what is in it.
        folder: the folder's settings.
    """
    if path.lower().endswith(_LINE_SUFFIXES) and _holds_documents(content):
        return _lines(path, content, folder)
    document = events_pb2.DocumentChange(
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
    return FileDocuments({document.document_id: document}, [])


def _holds_documents(content: bytes) -> bool:
    first = content.lstrip().partition(b"\n")[0]
    try:
        event = parse(first)
    except DecodeError:
        return False
    return type(event) is dict and documents.is_document(event)


def _lines(path: str, content: bytes, folder: FolderSettings) -> FileDocuments:
    found: dict[str, events_pb2.DocumentChange] = {}
    bad: list[BadLine] = []
    hints = Hints(source=folder.source, tenant=folder.tenant)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            document = documents.to_document(parse_object(line), hints, f"{folder.source}/{path}#")
        except DecodeError as error:
            bad.append(BadLine(number, line, str(error)))
            continue
        if document.operation == events_pb2.DOCUMENT_OPERATION_DELETE:
            found.pop(document.document_id, None)
            continue
        document.uri = document.uri or str(folder.path / path)
        document.metadata["path"] = path
        if not document.access:
            document.access.extend(folder.access)
        found[document.document_id] = document
    return FileDocuments(found, bad)


def fingerprint(document: events_pb2.DocumentChange) -> bytes:
    """A hash of all that a document says: equal means that nothing needs to be told."""
    return hashlib.blake2b(document.SerializeToString(deterministic=True), digest_size=16).digest()


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
