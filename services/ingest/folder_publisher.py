"""Publishes what is new in the files of a folder, and remembers it in the same transaction."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from headwater.ingest.v1 import events_pb2
from services.ingest.folder_documents import FileChange, FileDocuments, change_of, documents_of
from services.ingest.folder_files import UNSURE, FolderGoneError, Stat, identity, read_files
from services.ingest.folder_store import FolderStore
from services.ingest.messages import Instant, Offer, dead_letter, messages_of
from services.ingest.settings import FolderSettings
from services.kernel.log import Log, Message
from services.kernel.positions import padded
from services.kernel.sqlite import Database

BATCH_BYTES = 4 << 20  # read at once, and held until they are published
BATCH_FILES = 256
UNIT_DOCUMENTS = 500  # published in one transaction: others get their turn in between


class Batch:
    """The messages of one transaction, and the versions that its documents get."""

    def __init__(self, folder: FolderSettings, version: int, now: Instant) -> None:
        self._folder, self._now = folder, now
        self.version = version
        self.messages: list[Message] = []

    def put(self, document: events_pb2.DocumentChange, changed_at: Instant) -> None:
        """Add a document as it is now."""
        self.version += 1
        document.position = f"folder:{self._folder.source}:{padded(self.version)}"
        document.occurred_at.seconds, document.occurred_at.nanos = changed_at
        self.messages.extend(messages_of(document, 0, self._now))

    def delete(self, document_id: str) -> None:
        """Add that a document is gone."""
        document = events_pb2.DocumentChange(
            tenant=self._folder.tenant,
            source=self._folder.source,
            document_id=document_id,
            operation=events_pb2.DOCUMENT_OPERATION_DELETE,
        )
        self.put(document, self._now)

    def give_up(self, line: bytes, error: str, origin: str) -> None:
        """Add a line that is no document."""
        offer = Offer("documents", origin, self._folder.tenant, self._folder.source)
        self.messages.append(dead_letter(line, error, offer, self._now))


class FolderPublisher:
    """Reads files of one folder and publishes the difference to what is known of them."""

    def __init__(
        self,
        folder: FolderSettings,
        bytes_max: int,
        database: Database,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._bytes_max = folder, bytes_max
        self._database, self._log, self._clock = database, log, clock
        self.store = FolderStore(database, folder)

    async def read(self, paths: Sequence[str]) -> None:
        """Publish what is new in files, a bounded number of bytes at a time.

        Args:
            paths: the files' paths within the folder.
        """
        start = 0
        while start < len(paths):
            files = await asyncio.to_thread(self._documents, paths[start : start + BATCH_FILES])
            start += len(files)
            # Without a content it is gone again, or cannot be read: the next look will tell.
            changes = [change_of(file, self.store.documents(file.path)) for file in files if file.documents is not None]
            for unit in _units(changes):
                await self._publish(unit)

    async def forget(self, paths: Sequence[str], which: tuple[int, int]) -> None:
        """Publish that files are gone, as long as the folder is still the one that they were missed in.

        Raises:
            FolderGoneError: it is not.
        """
        missing = Stat(UNSURE, 0)
        changes = (FileChange(path, {}, list(self.store.documents(path)), [], (0, 0), missing) for path in paths)
        for unit in _units(changes):
            if await asyncio.to_thread(identity, self._folder.path) != which:
                raise FolderGoneError(f"{self._folder.path} has been replaced")
            await self._publish(unit, are_gone=True)

    async def remember(self, which: tuple[int, int], signature: str) -> None:
        """Remember which folder was read, and with which settings."""
        state = self.store.state()
        if state[:3] != (*which, signature):
            async with self._database.transaction() as unit:
                self.store.save_state(unit, state._replace(device=which[0], inode=which[1], signature=signature))

    def _documents(self, paths: Sequence[str]) -> list[FileDocuments]:
        contents = read_files(self._folder.path, paths, self._bytes_max, BATCH_BYTES, time.time_ns())
        return [documents_of(item, self._folder) for item in contents]

    async def _publish(self, changes: Sequence[FileChange], *, are_gone: bool = False) -> None:
        """Publish changes of files as one transaction; `are_gone` says that the files are not there any more."""
        async with self._log.unit_from_outside() as unit:
            batch = self._batch()
            for change in changes:
                for document, _mark in change.put.values():
                    batch.put(document, change.changed_at)
                for document_id in change.gone:
                    batch.delete(document_id)
                for bad in change.bad_lines:
                    batch.give_up(bad.line, bad.error, f"{self._folder.path / change.path}:{bad.number}")
                if are_gone and change.is_last:
                    self.store.forget_file(unit, change.path)
                else:
                    marks = {document_id: mark for document_id, (_document, mark) in change.put.items()}
                    self.store.save_file(unit, change.path, change.stat, marks, change.gone)
            if batch.messages:
                unit.emit(batch.messages)
                self.store.save_state(unit, self.store.state()._replace(version=batch.version))

    def _batch(self) -> Batch:
        seconds, fraction = divmod(self._clock(), 1)
        now = int(seconds), int(fraction * 1_000_000) * 1_000
        # Versions only grow, whatever the files' own times say, and the clock.
        version = max(self.store.state().version, now[0] * 1_000_000_000 + now[1])
        return Batch(self._folder, version, now)


def _units(changes: Iterable[FileChange]) -> Iterator[list[FileChange]]:
    """Group changes, and cut those of files with many documents, so that a unit has a bounded number of documents."""
    unit: list[FileChange] = []
    documents = 0
    for change in changes:
        for part in change.parts(UNIT_DOCUMENTS):
            if unit and documents + part.size > UNIT_DOCUMENTS:
                yield unit
                unit, documents = [], 0
            unit.append(part)
            documents += part.size
    if unit:
        yield unit
