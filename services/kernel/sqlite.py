"""The one SQLite database of an embedded installation: the log and every read model, in one file, under one writer.

A unit of work is one SQLite transaction, so that state, offsets and published events become visible together or not
at all. Everything runs on the event loop's thread; one writer at a time, in order of arrival, so a reader never sees
a record before an earlier one. Checkpoints of the write-ahead log run in a thread beside it.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import structlog

from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.log import Message
from services.kernel.turn import Turn

FILE_NAME = "headwater.db"
LOCK_NAME = "lock"
CHECKPOINT_EVERY_S = 1.0
CHECKPOINT_BYTES = 8 << 20  # below this the write-ahead log is left alone
TRUNCATE_BYTES = 256 << 20  # beyond this writers wait until it has been emptied
BUSY_TIMEOUT_S = 30.0
# What is wrong with the statement or its values, not with the disk: SQLITE_ERROR of https://sqlite.org/rescode.html
STATEMENT_ERROR = 1

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Transaction:
    """An open unit of work: write through `connection`, publish with `emit`, and be told of the outcome."""

    def __init__(
        self, connection: sqlite3.Connection, append: Callable[["Transaction", Sequence[Message]], None]
    ) -> None:
        self.connection = connection
        self._append = append
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[], None]] = []

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        """Run one statement for every row."""
        return self.connection.executemany(sql, rows)

    def emit(self, messages: Sequence[Message]) -> None:
        """Append messages to the log in this transaction."""
        self._append(self, messages)


class Database:
    """The database of one installation; only one process at a time may have it open.

    Attributes:
        writer: the connection for units of work: use it only inside `transaction()`.
        reader: a connection that sees committed data; keep statements short, they run on the event loop.

    Raises:
        UnavailableError: another process uses the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE_NAME
        self._lock_file = _lock(folder)
        os.environ.setdefault("SQLITE_TMPDIR", str(folder))
        try:
            self.writer = self._connect(cache_kib=24_000)
            self.writer.execute("PRAGMA journal_mode=WAL")
            self.writer.execute("PRAGMA wal_autocheckpoint=0")
            self.reader = self._connect(cache_kib=8_000)
            self.reader.execute("PRAGMA query_only=ON")
        except sqlite3.DatabaseError as error:
            self._lock_file.close()
            raise UnavailableError(
                f"{self.path} cannot be opened as a database ({error}): restore it, or choose another with --data"
            ) from error
        self._turn = Turn()
        self._synchronous = ""
        self._appender: Callable[[Transaction, Sequence[Message]], None] = _no_log
        self._current: Transaction | None = None

    def _connect(self, cache_kib: int, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
        # Commits and checkpoints may run in a thread, one at a time; sqlite3 itself is built thread-safe.
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            timeout=timeout_s,
        )
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        connection.execute("PRAGMA temp_store=MEMORY")
        return connection

    def set_appender(self, appender: Callable[[Transaction, Sequence[Message]], None]) -> None:
        """Tell how `Transaction.emit` appends; the log calls this once."""
        self._appender = appender

    def migrate(self, component: str, statements: Sequence[str]) -> None:
        """Bring the tables of a component up to date, when the process starts.

        Args:
            component: whose tables they are.
            statements: every statement that ever changed them, oldest first; only ever add to the end.

        Raises:
            InvalidInputError: the database was written by a newer version.
        """
        self.writer.execute("CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER)")
        row = self.writer.execute("SELECT version FROM schema_versions WHERE component=?", (component,)).fetchone()
        version = row[0] if row else 0
        if version > len(statements):
            raise InvalidInputError(
                f"{self.path}: {component} was written by a newer version of Headwater (schema {version}, this one "
                f"knows {len(statements)}): upgrade, or choose another folder with --data"
            )
        with self.writer_transaction():
            for statement in statements[version:]:
                self.writer.execute(statement)
            self.writer.execute(
                "INSERT INTO schema_versions VALUES (?, ?) ON CONFLICT DO UPDATE SET version=excluded.version",
                (component, len(statements)),
            )

    @contextlib.contextmanager
    def writer_transaction(self) -> Iterator[None]:
        """A plain transaction for start-up, before anything else runs."""
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.writer.execute("ROLLBACK")
            raise
        self.writer.execute("COMMIT")

    @contextlib.asynccontextmanager
    async def transaction(self, *, durable: bool = False, urgent: bool = False) -> AsyncIterator[Transaction]:
        """Open a unit of work; leaving it normally commits, an exception rolls back.

        Args:
            durable: the commit is on disk before this returns. Otherwise it survives the death of the process, and a
                power failure may take away the newest units, always from the end: the log makes them again.
            urgent: somebody waits for it, and it is short: it goes ahead of the batches of processors.

        Raises:
            UnavailableError: the disk is full or failed; nothing was written.
        """
        async with self._turn.take(urgent=urgent):
            self._set_synchronous("FULL" if durable else "NORMAL")
            self.writer.execute("BEGIN IMMEDIATE")
            unit = Transaction(self.writer, self._appender)
            self._current = unit
            cancelled = False
            try:
                yield unit
                if durable:  # waits for the disk: let the loop go on meanwhile
                    _, cancelled = await _to_the_end(asyncio.to_thread(self.writer.execute, "COMMIT"))
                else:
                    self.writer.execute("COMMIT")
            except BaseException as error:
                self._roll_back(unit)
                if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != STATEMENT_ERROR:
                    raise self._explain(error) from error
                raise
            finally:
                self._current = None
            for callback in unit.on_commit:
                try:
                    callback()
                except Exception:  # the unit lasts, whatever becomes of a cache: it must not be done again
                    log.exception("sqlite.after_commit_failed")
            if cancelled:
                raise asyncio.CancelledError
            # One unit at most in a round of the loop: queries are served in between, however many there are.
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Open a connection that sees the database as it is now, for long reads across awaits (exports, hashes)."""
        connection = self._connect(cache_kib=2_000)
        try:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM sqlite_schema").close()  # only a first read fixes what is seen
            yield connection
        finally:
            connection.close()

    @property
    def unit(self) -> Transaction:
        """The open unit of work; for stores, whose `load` and `save` are called inside one."""
        if self._current is None:
            raise RuntimeError("no unit of work is open")
        return self._current

    def _roll_back(self, unit: Transaction) -> None:
        if self.writer.in_transaction:
            self.writer.execute("ROLLBACK")
        for callback in reversed(unit.on_rollback):  # each restores what it found, so the first one comes last
            callback()

    def _set_synchronous(self, mode: str) -> None:
        if self._synchronous != mode:
            self.writer.execute(f"PRAGMA synchronous={mode}")
            self._synchronous = mode

    def _explain(self, error: sqlite3.OperationalError) -> UnavailableError:
        words = str(error)
        if "full" in words or "disk I/O" in words:
            free = shutil.disk_usage(self.folder).free >> 20
            words = f"{words} ({free} MiB free): free some space, nothing was lost and work goes on by itself then"
        return UnavailableError(f"{self.path}: {words}")

    async def checkpoint_forever(self) -> None:
        """Copy the write-ahead log into the database from time to time; run it as a background task."""
        wal = self.path.with_name(FILE_NAME + "-wal")
        with self._checkpointer() as connection:
            while True:
                await asyncio.sleep(CHECKPOINT_EVERY_S)
                size = wal.stat().st_size if wal.exists() else 0
                try:
                    if size > TRUNCATE_BYTES:
                        await self._empty_wal(connection)
                    elif size > CHECKPOINT_BYTES:
                        await _in_thread(connection, "PRAGMA wal_checkpoint(PASSIVE)")
                except sqlite3.OperationalError as error:  # no space, for example: the next round tries again
                    log.warning("sqlite.checkpoint_failed", error=str(error))

    async def scrub(self) -> None:
        """Rewrite the file so that no deleted byte is left in it, nor in the write-ahead log (after an erasure).

        Waits until nobody reads a state of before: until then the write-ahead log holds it.

        Raises:
            UnavailableError: it could not be done, for want of space for example; deleted bytes may still be there.
        """
        try:
            async with self._turn.take():
                # The copy goes to a file beside the database: in memory it would take as much as the database has.
                self.writer.execute("PRAGMA temp_store=FILE")
                try:
                    await _in_thread(self.writer, "VACUUM")
                finally:
                    self.writer.execute("PRAGMA temp_store=MEMORY")
            with self._checkpointer() as connection:
                while not await self._empty_wal(connection):  # noqa: ASYNC110 - SQLite does not tell when readers end
                    await asyncio.sleep(CHECKPOINT_EVERY_S)
        except sqlite3.OperationalError as error:
            raise self._explain(error) from error

    async def _empty_wal(self, connection: sqlite3.Connection) -> bool:
        """Copy all of the write-ahead log and cut it off; False where somebody still reads an older state."""
        async with self._turn.take():
            [(busy, _, _)] = await _in_thread(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
        return not busy

    @contextlib.contextmanager
    def _checkpointer(self) -> Iterator[sqlite3.Connection]:
        """A connection that gives up at once when readers are in the way: writers wait for it meanwhile."""
        connection = self._connect(cache_kib=1_000, timeout_s=0)
        try:
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        """Close; the write-ahead log is emptied, and the folder is free for another process."""
        self.reader.close()
        self.writer.execute("PRAGMA busy_timeout=0")  # a reader that is left must not keep the process from ending
        with contextlib.suppress(sqlite3.OperationalError):  # nor must a full disk
            self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.writer.close()
        self._lock_file.close()


async def _to_the_end(work: Coroutine[Any, Any, T], on_cancel: Callable[[], None] = lambda: None) -> tuple[T, bool]:
    """Wait for work that must not be left half done; return whether the waiting task was cancelled meanwhile, too.

    A commit that runs on in its thread while the caller rolls back would leave the log's offsets behind the file's.
    """
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])  # unlike awaiting the task, this neither cancels it nor raises its error
        except asyncio.CancelledError:
            cancelled = True
            on_cancel()
    if cancelled and task.exception() is not None:
        raise asyncio.CancelledError from task.exception()
    return task.result(), cancelled


async def _in_thread(connection: sqlite3.Connection, sql: str) -> list[Any]:
    """Run a long statement beside the loop; a cancellation interrupts it."""
    work = asyncio.to_thread(lambda: connection.execute(sql).fetchall())
    rows, cancelled = await _to_the_end(work, connection.interrupt)
    if cancelled:
        raise asyncio.CancelledError
    return rows


def _no_log(_unit: Transaction, _messages: Sequence[Message]) -> None:
    raise RuntimeError("this database has no log")


def _lock(folder: Path) -> IO[str]:
    """Take the folder for this process, or tell who has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK_NAME).open("a+")
    except OSError as error:
        raise UnavailableError(
            f"{folder}: {error.strerror}: choose a folder that can be written with --data"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        owner = handle.read().strip() or "another process"
        handle.close()
        raise UnavailableError(
            f"{folder} is in use by {owner}: stop that process, talk to it with --address, or choose another folder "
            "with --data"
        ) from None
    handle.truncate(0)
    handle.write(f"{owner_of(os.getpid())}\n")
    handle.flush()
    return handle


def owner_of(pid: int) -> str:
    """Return how a process signs the folder that it has."""
    return f"process {pid}"


def holder(folder: Path) -> str | None:
    """Return who has a folder, as it signs; None when nobody has it. Raises OSError when it has never been one."""
    with (folder / LOCK_NAME).open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle.read().strip()
    return None
