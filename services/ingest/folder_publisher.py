"""Publishes what is new in the files of a folder, and remembers it in the same transaction."""

import asyncio
import time
from collections.abc import Callable, Sequence

from headwater.ingest.v1 import events_pb2
from services.ingest.folder_documents import documents_of, fingerprint
from services.ingest.folder_files import Content, FolderGoneError, identity, read_files
from services.ingest.folder_store import FolderStore
from services.ingest.messages import Instant, Offer, dead_letter, messages_of
from services.ingest.settings import FolderSettings
from services.kernel.log import Message
from services.kernel.positions import padded
from services.kernel.sqlite import Database, Transaction
from services.kernel.sqlite_log import SqliteLog

BATCH_BYTES = 4 << 20
BATCH_FILES = 256


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
        log: SqliteLog,
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
            contents = await asyncio.to_thread(self._contents, paths[start : start + BATCH_FILES])
            start += len(contents)
            await self._log.wait_open()
            async with self._database.transaction() as unit:
                batch = self._batch()
                for item in contents:
                    if item.content is not None:  # else gone again, or not to be read: the next look will tell
                        self._add_file(unit, batch, item, item.content)
                self._emit(unit, batch)

    async def forget(self, paths: Sequence[str], which: tuple[int, int]) -> None:
        """Publish that files are gone, as long as the folder is still the one that they were missed in.

        Raises:
            FolderGoneError: it is not.
        """
        for start in range(0, len(paths), BATCH_FILES):
            if await asyncio.to_thread(identity, self._folder.path) != which:
                raise FolderGoneError(f"{self._folder.path} has been replaced")
            await self._log.wait_open()
            async with self._database.transaction() as unit:
                batch = self._batch()
                for path in paths[start : start + BATCH_FILES]:
                    for document_id in self.store.documents(path):
                        batch.delete(document_id)
                    self.store.forget_file(unit, path)
                self._emit(unit, batch)

    async def remember(self, which: tuple[int, int], signature: str) -> None:
        """Remember which folder was read, and with which settings."""
        state = self.store.state()
        if state[:3] != (*which, signature):
            async with self._database.transaction() as unit:
                self.store.save_state(unit, state._replace(device=which[0], inode=which[1], signature=signature))

    def _contents(self, paths: Sequence[str]) -> list[Content]:
        return list(read_files(self._folder.path, paths, self._bytes_max, BATCH_BYTES, time.time_ns()))

    def _add_file(self, unit: Transaction, batch: Batch, item: Content, content: bytes) -> None:
        """Add what is new in a file."""
        documents, bad_lines = documents_of(item.path, content, self._folder)
        before = self.store.documents(item.path)
        marks = {document_id: fingerprint(document) for document_id, document in documents.items()}
        put = {document_id: mark for document_id, mark in marks.items() if before.get(document_id) != mark}
        gone = before.keys() - marks.keys()
        for document_id in put:
            batch.put(documents[document_id], divmod(item.mtime_ns, 1_000_000_000))
        for document_id in gone:
            batch.delete(document_id)
        if put or gone:  # the file has changed, so its bad lines are news as well
            for bad in bad_lines:
                batch.give_up(bad.line, bad.error, f"{self._folder.path / item.path}:{bad.number}")
        self.store.save_file(unit, item.path, item.stat, put, gone)

    def _batch(self) -> Batch:
        seconds, fraction = divmod(self._clock(), 1)
        now = int(seconds), int(fraction * 1_000_000) * 1_000
        # Versions only grow, whatever the files' own times say, and the clock.
        version = max(self.store.state().version, now[0] * 1_000_000_000 + now[1])
        return Batch(self._folder, version, now)

    def _emit(self, unit: Transaction, batch: Batch) -> None:
        if batch.messages:
            unit.emit(batch.messages)
            self.store.save_state(unit, self.store.state()._replace(version=batch.version))
