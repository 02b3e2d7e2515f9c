"""Exports as the service runs them: one at a time, in a thread, with a record of every file that they ever wrote.

The record is what an erasure goes by: it must know where copies of conversations are. So a file is in the record
before it is on the disk.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Generator
from pathlib import Path

import orjson
import structlog

from headwater.common.v1 import common_pb2
from services.feedback.export import Step, Target, days, export
from services.feedback.formats import WRITERS, answer_ids
from services.feedback.sqlite_tables import positions
from services.kernel.errors import UnavailableError
from services.kernel.log import position_of
from services.kernel.sqlite import Database

SCHEMA = (
    """CREATE TABLE feedback_exports (
         folder TEXT, tenant TEXT, format TEXT, file TEXT, PRIMARY KEY (folder, tenant, format, file)) WITHOUT ROWID""",
)

log = structlog.get_logger(__name__)


class Exporter:
    """Runs exports, and finds and renews what they wrote."""

    def __init__(self, database: Database, group: str, *, in_cluster: bool) -> None:
        """Make the table; `group` is the consumer group whose position is that of an export."""
        self._database, self._group, self._in_cluster = database, group, in_cluster
        self._turn = asyncio.Lock()
        database.migrate("feedback.exports", SCHEMA)

    async def export(self, target: Target) -> AsyncGenerator[tuple[Step, common_pb2.Position | None]]:
        """Write a tenant's conversations.

        Yields:
            Progress, without blocking the event loop; with the last step the position that the files are a copy of.

        Raises:
            UnavailableError: the folder cannot be written, or the disk is full.
        """
        async with self._turn:
            with self._database.snapshot() as connection:
                files = [target.file(day) for day in days(connection, target.tenant)]
                position = position_of(positions(connection, self._group, in_cluster=self._in_cluster))
                await self._record(target, files)
                steps = export(connection, target)
                last = Step(0, ())
                try:
                    while (step := await _in_thread(steps)) is not None:
                        last = step
                        yield step, None
                finally:
                    steps.close()
            await self._drop_others(target, files)
            yield last, position

    async def _record(self, target: Target, files: Collection[Path]) -> None:
        place = (str(target.folder), target.tenant, target.format)
        async with self._database.transaction(durable=True) as unit:
            unit.executemany(
                "INSERT OR IGNORE INTO feedback_exports VALUES (?, ?, ?, ?)", [(*place, str(f)) for f in files]
            )

    async def _drop_others(self, target: Target, files: Collection[Path]) -> None:
        """Remove what earlier exports wrote for days of which there is nothing any more."""
        place = (str(target.folder), target.tenant, target.format)
        where = "WHERE folder=? AND tenant=? AND format=? AND file NOT IN (SELECT value FROM json_each(?))"
        kept = orjson.dumps([str(file) for file in files]).decode()
        rows = self._database.reader.execute(f"SELECT file FROM feedback_exports {where}", (*place, kept)).fetchall()
        await asyncio.to_thread(_unlink, [Path(name) for (name,) in rows])
        async with self._database.transaction() as unit:
            unit.execute(f"DELETE FROM feedback_exports {where}", (*place, kept))

    async def renew(self, tenant: str) -> int:
        """Write every export of a tenant anew, after an erasure; return how many files there are then.

        An export that cannot be written now is left as it is, and logged: `holding` still finds what is in it.
        """
        rows = self._database.reader.execute(
            "SELECT DISTINCT folder, format FROM feedback_exports WHERE tenant=?", (tenant,)
        ).fetchall()
        files = 0
        for folder, kind in rows:
            target = Target(Path(folder), tenant, kind)
            if kind not in WRITERS or not await asyncio.to_thread(target.folder.is_dir):
                continue
            try:
                async for step, position in self.export(target):
                    files += len(step.files) if position is not None else 0
            except UnavailableError as error:
                log.warning("feedback.export_not_renewed", folder=folder, error=str(error))
        return files

    async def holding(self, tenant: str, answers: Collection[str]) -> int:
        """Return how many exported files hold one of these answers, or cannot be read."""
        rows = self._database.reader.execute("SELECT file FROM feedback_exports WHERE tenant=?", (tenant,)).fetchall()
        paths = [Path(name) for (name,) in rows]
        return await asyncio.to_thread(lambda: sum(path.exists() and _holds(path, answers) for path in paths))


def _unlink(paths: Collection[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(f"cannot remove {path} ({error.strerror}), which an export wrote") from error


def _holds(path: Path, answers: Collection[str]) -> bool:
    try:
        return not answer_ids(path).isdisjoint(answers)
    except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors; what cannot be read proves nothing
        return True


async def _in_thread(steps: Generator[Step]) -> Step | None:
    # Shielded: the snapshot must not be closed while a thread still reads from it.
    pull = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
    try:
        return await asyncio.shield(pull)
    except asyncio.CancelledError:
        await asyncio.wait([pull])
        raise
