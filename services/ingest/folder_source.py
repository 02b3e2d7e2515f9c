"""Watches a folder and keeps its documents in the log equal to its files.

A folder that is not there says nothing about its files: a mount that went away, or a folder that is being replaced, is
not the deletion of every document. No delete is published until it is back; then it is compared with what is known.
The same holds for a folder that cannot be read, and for an empty folder that has taken the known one's place.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence

import structlog

from headwater.common.v1 import operations_pb2
from services.ingest.folder_documents import plan
from services.ingest.folder_files import FolderGoneError, Listing, Selection, identity, list_files, look_at
from services.ingest.folder_publisher import FolderPublisher
from services.ingest.settings import FolderSettings, Settings
from services.kernel.log import Log
from services.kernel.sqlite import Database

DEBOUNCE_MS = 50  # how long a burst of changes is gathered at most
STEP_MS = 4  # how long it must be quiet for a burst to be over
LOOK_EVERY_MS = 500  # whether the folder itself is still there
RETURN_S = 0.5  # how often a folder that is gone is looked for
SETTLE_S = 0.05  # programs save by removing and renaming: a file must stay away to be gone
POLL_S = 2.0  # how often the folder is compared when the system does not notify

log = structlog.get_logger(__name__)


class _NoNotificationsError(Exception):
    """The system does not, or no longer, notify of changes. The message says why."""


class FolderSource:
    """One watched folder."""

    def __init__(
        self,
        folder: FolderSettings,
        settings: Settings,
        database: Database,
        log_: Log,
        clock: Callable[[], float],
    ) -> None:
        self._source, self._root = folder.source, folder.path
        self._bytes_max, self._rescan_s = settings.document_bytes_max, settings.rescan_s
        self._publisher = FolderPublisher(folder, settings.document_bytes_max, database, log_, clock)
        self._store = self._publisher.store
        self._selection = Selection(folder.include, folder.exclude)
        self._signature = "\x1f".join(("1", *folder.access))  # what else than the files makes the documents
        self._trouble = ""
        self._polling = False

    async def watch(self) -> None:
        """Follow the folder until cancelled."""
        while True:
            try:
                await self._follow()
            except FolderGoneError as error:
                self._note(f"{error}: its documents stay as they are until it is back")
                await asyncio.sleep(RETURN_S)
            except _NoNotificationsError as error:
                if not self._polling:
                    log.warning("folder.polling", source=self._source, every_s=POLL_S, reason=str(error))
                self._polling = True
                await asyncio.sleep(POLL_S)

    async def _follow(self) -> None:
        """Follow the folder as long as it is there, or as one round where the system does not notify."""
        which = await asyncio.to_thread(identity, self._root)
        # Watch first and list second, so that nothing falls between the two.
        batches = self._notifications()
        following = asyncio.ensure_future(anext(batches))
        try:
            await asyncio.sleep(0)
            await self.reconcile()
            compared_at = time.monotonic()
            while True:
                paths = await following
                following = asyncio.ensure_future(anext(batches))
                self._polling = False
                if await asyncio.to_thread(identity, self._root) != which:
                    return  # another folder is at its place: begin anew with that one
                if time.monotonic() - compared_at > self._rescan_s or _is_swap(paths):
                    await self.reconcile()
                    compared_at = time.monotonic()
                elif paths:
                    await self._look_at(paths, which)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await batches.aclose()

    async def _notifications(self) -> AsyncGenerator[list[str]]:
        """The paths within the folder at which something changed; an empty list from time to time.

        Raises:
            _NoNotificationsError: the system does not notify.
        """
        from watchfiles import awatch

        root = f"{self._root}/"
        changes = awatch(
            self._root,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=LOOK_EVERY_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        try:
            async with contextlib.aclosing(changes):
                async for batch in changes:
                    yield sorted({path.removeprefix(root) for _, path in batch if path.startswith(root)})
        except (OSError, RuntimeError) as error:  # no watches left, or a file system without notifications
            raise _NoNotificationsError(str(error)) from error
        raise _NoNotificationsError("the notifications ended")

    async def reconcile(self) -> None:
        """Compare all files with what is known, and publish the difference.

        Raises:
            FolderGoneError: the folder is not there, or an empty one is at its place.
        """
        state, known = self._store.state(), self._store.files()
        listing = await asyncio.to_thread(list_files, self._root, self._selection, self._bytes_max)
        which = await asyncio.to_thread(identity, self._root)
        if known and not listing.found and not listing.too_large and which != (state.device, state.inode):
            raise FolderGoneError(f"{self._root} is empty, and not the folder that was read before")
        self._note_listing(listing)
        again: Collection[str] = listing.found if state.signature != self._signature else ()
        todo = plan(known, listing, again)
        await self._publisher.read(todo.read)
        await self._publisher.forget(todo.gone, which)
        await self._publisher.remember(which, self._signature)

    async def _look_at(self, paths: Sequence[str], which: tuple[int, int]) -> None:
        """Publish what changed at some paths, of files or folders."""
        listing = await asyncio.to_thread(look_at, self._root, self._selection, self._bytes_max, paths)
        # Read even what looks the same: the system has just said that it is not.
        todo = plan(self._store.files_at(paths), listing, again=set(paths))
        await self._publisher.read(todo.read)
        if todo.gone:
            await asyncio.sleep(SETTLE_S)
            listing = await asyncio.to_thread(look_at, self._root, self._selection, self._bytes_max, todo.gone)
            await self._publisher.read([path for path in todo.gone if path in listing.found])
            await self._publisher.forget([path for path in todo.gone if path not in listing.found], which)

    def _note_listing(self, listing: Listing) -> None:
        if listing.unreadable:
            self._note(f"{len(listing.unreadable)} cannot be read, for example {listing.unreadable[0]}")
        elif listing.too_large:
            words = f"over {self._bytes_max:,} bytes (document_bytes_max in [ingest]) and left out"
            self._note(f"{len(listing.too_large)} files are {words}, for example {listing.too_large[0]}")
        else:
            self._note("")

    def _note(self, trouble: str) -> None:
        """Log what is wrong when it begins, and when it is over."""
        if trouble and trouble != self._trouble:
            log.warning("folder.trouble", source=self._source, path=str(self._root), trouble=trouble)
        elif self._trouble and not trouble:
            log.info("folder.well", source=self._source, path=str(self._root))
        self._trouble = trouble

    async def check(self) -> operations_pb2.Check:
        """Compare the folder with what is known of it, for `headwater verify`."""
        name = f"folder {self._source}"
        try:
            listing = await asyncio.to_thread(list_files, self._root, self._selection, self._bytes_max)
        except FolderGoneError as error:
            return operations_pb2.Check(name=name, ok=False, detail=str(error))
        known = self._store.files()
        missed, extra = listing.found.keys() - known.keys(), known.keys() - listing.found.keys()
        words = f"{len(listing.found)} files, {len(missed)} never seen, {len(extra)} gone but still known"
        if self._trouble:
            words = f"{words}; {self._trouble}"
        return operations_pb2.Check(name=name, ok=not missed and not extra and not self._trouble, detail=words)


def _is_swap(paths: Sequence[str]) -> bool:
    """Whether Kubernetes has swapped the folder `..data` that all files of a mounted ConfigMap are links to."""
    return any(path.startswith("..") for path in paths)
