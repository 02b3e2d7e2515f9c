"""The lake: conversations as files, one a day of event time, each whole or not there.

A file is written aside, brought to the disk, and renamed into its place, where it replaces what an earlier export had
written; so whoever reads the folder sees every turn once. The bytes follow from what the tables hold alone: the same
position in the log gives the same files.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.formats import BATCH_ROWS, WRITERS
from services.feedback.lake import DAY_MS, Row, day_of, row_of
from services.kernel.errors import UnavailableError

BATCH_BYTES = 8 << 20  # a batch ends with this, or with BATCH_ROWS
FETCH_ROWS = 50
TEMPORARY = ".part-"


class Target(NamedTuple):
    """Where to, whose, and in which format (a key of WRITERS)."""

    folder: Path
    tenant: str
    format: str

    def file(self, day: str) -> Path:
        """The file of a day."""
        return self.folder / "conversations" / f"date={day}" / f"part-{quote(self.tenant, safe='')}.{self.format}"


class Step(NamedTuple):
    """How far an export has come: turns written, files that are whole."""

    turns: int
    files: tuple[Path, ...]


def days(connection: sqlite3.Connection, tenant: str) -> list[str]:
    """Return the days on which a tenant's questions were asked, oldest first."""
    found: list[str] = []
    after_ms = -1
    while True:  # a jump in the index a day, instead of a look at every turn
        row = connection.execute(
            "SELECT asked_ms FROM feedback_turns WHERE tenant=? AND asked_ms>? ORDER BY asked_ms LIMIT 1",
            (tenant, after_ms),
        ).fetchone()
        if row is None:
            return found
        found.append(day_of(row[0]))
        after_ms = row[0] // DAY_MS * DAY_MS + DAY_MS - 1


def export(connection: sqlite3.Connection, target: Target) -> Generator[Step]:
    """Write a tenant's conversations.

    Args:
        connection: a snapshot of the database.
        target: where to.

    Yields:
        Progress, after every batch and after every file.

    Raises:
        UnavailableError: the folder cannot be written, or the disk is full. Files that are whole stay.
    """
    turns = 0
    files: tuple[Path, ...] = ()
    for day, rows in _by_day(_rows(connection, target.tenant)):
        path = target.file(day)
        with _published(path) as file:
            writer = WRITERS[target.format](file)
            for batch in _batches(rows):
                with _explained(path):
                    writer.write(batch)
                turns += len(batch)
                yield Step(turns, files)
            with _explained(path):
                writer.finish()
        files = (*files, path)
        yield Step(turns, files)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"cannot write {path} ({error.strerror or error}): free some space, or choose a folder that can be "
            "written, and export again; files that are there already are whole"
        ) from error


@contextlib.contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, on the disk, when all went well."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f"{TEMPORARY}*"):  # of an export that was killed
            left_over.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            with _explained(path):
                file.flush()
                os.fsync(file.fileno())
        with _explained(path):
            Path(name).chmod(0o644)  # as other files are; the temporary one is its owner's
            Path(name).replace(path)
            _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _by_day(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[str, Iterator[tuple[int, Row]]]]:
    """Rows, which come in the order of time, by day; a day's rows must be taken before the next day."""
    waiting = next(rows, None)
    while waiting is not None:
        day = day_of(waiting[1]["asked_at"])

        def of_day(day: str = day) -> Iterator[tuple[int, Row]]:
            nonlocal waiting
            while waiting is not None and day_of(waiting[1]["asked_at"]) == day:
                yield waiting
                waiting = next(rows, None)

        yield day, of_day()


def _batches(rows: Iterator[tuple[int, Row]]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row_size, row in rows:
        batch.append(row)
        size += row_size
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rows(connection: sqlite3.Connection, tenant: str) -> Iterator[tuple[int, Row]]:
    """The rows of a tenant in the order of time, each with its size in bytes."""
    cursor = connection.execute(
        "SELECT subject, asked_ms, conversation_id, event FROM feedback_turns "
        "WHERE tenant=? ORDER BY asked_ms, subject",
        (tenant,),
    )
    while rows := cursor.fetchmany(FETCH_ROWS):
        for subject, asked_ms, conversation_id, event in rows:
            yield (
                len(event),
                row_of(
                    gateway_pb2.TurnCompleted.FromString(event),
                    tenant,
                    asked_ms,
                    ratings=_ratings(connection, tenant, subject),
                    conversation_ratings=(
                        _ratings(connection, tenant, f"conversation:{conversation_id}") if conversation_id else []
                    ),
                    classified=_classified(connection, tenant, subject),
                ),
            )


def _ratings(connection: sqlite3.Connection, tenant: str, subject: str) -> list[events_pb2.AnswerRated]:
    rows = connection.execute(
        "SELECT event FROM feedback_ratings WHERE tenant=? AND subject=? ORDER BY rater", (tenant, subject)
    )
    return [events_pb2.AnswerRated.FromString(event) for (event,) in rows]


def _classified(connection: sqlite3.Connection, tenant: str, subject: str) -> events_pb2.TurnClassified | None:
    row = connection.execute(
        "SELECT event FROM feedback_classified WHERE tenant=? AND subject=?", (tenant, subject)
    ).fetchone()
    return events_pb2.TurnClassified.FromString(row[0]) if row else None
