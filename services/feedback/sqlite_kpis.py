"""Observations, windows and KPIs in the installation's database."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

import orjson

from services.feedback.answers import Answer, Key
from services.feedback.decider import touch_message
from services.feedback.kpis import Computed, entries_restored, entries_state, observation_of
from services.feedback.ports import KpiQuery
from services.feedback.projection import Clock, KpiRow, Observations, key_of_touch, name_of, touch_of
from services.feedback.settings import Settings
from services.feedback.sqlite_tables import keys_json, known_answers
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, SEPARATOR, Progress, Record
from services.kernel.sqlite import Database
from services.kernel.window_table import Cell, CellKey, Entry, WindowTable, cells_of
from services.kernel.windows import Session

SCHEMA = (
    """CREATE TABLE feedback_observations (
         tenant TEXT NOT NULL, subject TEXT NOT NULL, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
         entries BLOB NOT NULL, PRIMARY KEY (tenant, subject))""",
    "CREATE INDEX feedback_observations_by_time ON feedback_observations (tenant, last_ms)",
    # `dimensions` is a JSON object with sorted keys. An empty window stays, for its revision.
    """CREATE TABLE feedback_windows (
         tenant TEXT NOT NULL, window TEXT NOT NULL, dimensions TEXT NOT NULL, start_ms INTEGER NOT NULL,
         end_ms INTEGER NOT NULL, state BLOB NOT NULL, revision INTEGER NOT NULL,
         PRIMARY KEY (tenant, window, dimensions, start_ms, end_ms))""",
    """CREATE TABLE feedback_kpis (
         tenant TEXT, window TEXT, dimensions TEXT, start_ms INTEGER, end_ms INTEGER, kpi TEXT, value REAL,
         count INTEGER NOT NULL, revision INTEGER NOT NULL,
         PRIMARY KEY (tenant, window, dimensions, start_ms, end_ms, kpi)) WITHOUT ROWID""",
    "CREATE INDEX feedback_kpis_by_end ON feedback_kpis (tenant, end_ms) WHERE count>0",
    "CREATE INDEX feedback_kpis_by_window ON feedback_kpis (tenant, window, end_ms) WHERE count>0",
    "CREATE TABLE feedback_told (tenant TEXT PRIMARY KEY, until_ms INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE feedback_definitions (definitions TEXT NOT NULL)",
)
_REBUILT = ("feedback_observations", "feedback_windows", "feedback_kpis", "feedback_told")
CLOSING_MAX = 1_000  # KPIs of windows that close, in one batch
TOUCHES = 1_000  # answers that are touched again in one unit of work


class SqliteObservations:
    """The store of the processor that makes KPIs; a `services.kernel.processor.Store`, and the `KpiReader`."""

    def __init__(self, database: Database, settings: Settings) -> None:
        """Make the tables. The answers' tables must be there."""
        self._database, self._settings = database, settings
        self._sessions = [spec for spec in settings.windows if isinstance(spec, Session)]
        database.migrate("feedback.kpis", SCHEMA)

    # Processing -------------------------------------------------------------------------------------------------

    async def load(self, batch: Sequence[Record]) -> Observations:
        """Load the touched answers, and the windows that they were and will be in."""
        settings = self._settings
        table = WindowTable(settings.windows, settings.with_spread)
        state = Observations(settings.kpis, settings.dimensions, table)
        keys: dict[Key, None] = {}
        tenants: dict[str, None] = {}
        for record in batch:
            try:
                touch = touch_of(record)
            except InvalidInputError:
                continue  # `decide` finds the same, and makes it a dead letter
            tenants[touch.tenant or DEFAULT_TENANT] = None
            if (key := key_of_touch(touch)) is not None:
                keys[key] = None
        state.known = known_answers(self._database.writer, keys)
        state.clocks = {tenant: self._clock(tenant) for tenant in tenants}
        self._restore(table, state.known)
        return state

    def _restore(self, table: WindowTable, known: Mapping[Key, Answer]) -> None:
        rows = self._database.writer.execute(
            "SELECT t.tenant, t.subject, t.entries FROM json_each(?) AS k CROSS JOIN feedback_observations AS t "
            "ON t.tenant=k.value->>0 AND t.subject=k.value->>1",
            (keys_json(known),),
        )
        for tenant, subject, entries in rows:
            table.observations[name_of(Key(tenant, subject))] = entries_restored(entries)
        touched = [entry for entries in table.observations.values() for entry in entries]
        for key, answer in known.items():
            touched.extend(observation_of(key.tenant, answer, self._settings.dimensions))
        fixed = [spec for spec in self._settings.windows if not isinstance(spec, Session)]
        self._restore_cells(table, {key for entry in touched for spec in fixed for key in cells_of(spec, entry)})
        if self._sessions:
            self._restore_sessions(table, touched)

    def _restore_cells(self, table: WindowTable, keys: Iterable[CellKey]) -> None:
        wanted = orjson.dumps([[*_split(key.group), key.spec, key.start_ms, key.end_ms] for key in keys]).decode()
        rows = self._database.writer.execute(
            """SELECT t.tenant, t.window, t.dimensions, t.start_ms, t.end_ms, t.state, t.revision
               FROM json_each(?) AS k CROSS JOIN feedback_windows AS t ON t.tenant=k.value->>0
                 AND t.dimensions=k.value->>1 AND t.window=k.value->>2 AND t.start_ms=k.value->>3
                 AND t.end_ms=k.value->>4""",
            (wanted,),
        )
        for tenant, window, dimensions, start_ms, end_ms, cell, revision in rows:
            key = CellKey(window, tenant + SEPARATOR + dimensions, start_ms, end_ms)
            table.cells[key] = Cell.restored(orjson.loads(cell), revision)

    def _restore_sessions(self, table: WindowTable, touched: Sequence[Entry]) -> None:
        """Restore every session within a gap of a touched entry, and its members. The longest gap's hold the others."""
        longest = max(self._sessions, key=lambda spec: spec.gap_ms)
        places = {(group, entry.time_ms) for entry in touched for group in entry.groups}
        spans: dict[str, set[tuple[int, int]]] = {}
        for group, time_ms in places:
            found = self._database.writer.execute(
                # Sessions do not overlap, and are a gap apart: those near a moment are among the last four before it.
                """SELECT start_ms, end_ms FROM (
                     SELECT start_ms, end_ms FROM feedback_windows
                     WHERE tenant=? AND dimensions=? AND window=? AND start_ms<=? ORDER BY start_ms DESC LIMIT 4)
                   WHERE end_ms>=?""",
                (*_split(group), longest.name, time_ms + longest.gap_ms, time_ms),
            )
            spans.setdefault(group, set()).update(found)
        for group, known in spans.items():
            for start_ms, end_ms in known:
                self._restore_span(table, group, start_ms, end_ms)

    def _restore_span(self, table: WindowTable, group: str, start_ms: int, end_ms: int) -> None:
        tenant, dimensions = _split(group)
        names = orjson.dumps([spec.name for spec in self._sessions]).decode()
        cells = self._database.writer.execute(
            "SELECT window, start_ms, end_ms, state, revision FROM feedback_windows WHERE tenant=? AND dimensions=? "
            "AND window IN (SELECT value FROM json_each(?)) AND start_ms>=? AND start_ms<?",
            (tenant, dimensions, names, start_ms, end_ms),
        )
        for window, start, end, state, revision in cells:
            table.cells[CellKey(window, group, start, end)] = Cell.restored(orjson.loads(state), revision)
        rows = self._database.writer.execute(
            "SELECT subject, entries FROM feedback_observations WHERE tenant=? AND last_ms>=? AND first_ms<?",
            (tenant, start_ms, end_ms),
        )
        for subject, entries in rows:
            for index, entry in enumerate(entries_restored(entries)):
                if group in entry.groups and start_ms <= entry.time_ms < end_ms:
                    table.restore_member(name_of(Key(tenant, subject)), index, group, entry)

    def _clock(self, tenant: str) -> Clock:
        writer = self._database.writer
        row = writer.execute("SELECT until_ms FROM feedback_told WHERE tenant=?", (tenant,)).fetchone()
        told_ms = row[0] if row else None
        watermark_ms = self._settings.event_time.watermark(_newest(writer, tenant))
        clock = Clock(told_ms, watermark_ms, reached_ms=watermark_ms)
        if watermark_ms is None or (told_ms is not None and watermark_ms <= told_ms):
            clock.reached_ms = told_ms
            return clock
        rows = writer.execute(
            f"SELECT {_KPI} FROM feedback_kpis WHERE tenant=? AND count>0 AND end_ms>? AND end_ms<=? "
            "ORDER BY end_ms LIMIT ?",
            (tenant, -1 if told_ms is None else told_ms, watermark_ms, CLOSING_MAX + 1),
        ).fetchall()
        closing = [_row(row) for row in rows]
        if len(closing) > CLOSING_MAX:
            # Those of the last end may not all be here; where all have one end, the rest is not told.
            last_ms = closing[-1].key.end_ms
            closing = [row for row in closing if row.key.end_ms < last_ms] or closing[:CLOSING_MAX]
            clock.more, clock.reached_ms = True, closing[-1].key.end_ms
        clock.closing = closing
        return clock

    async def save(self, state: Observations, progress: Progress) -> None:
        """Write what the batch has changed."""
        del progress
        unit = self._database.unit
        unit.executemany(
            "DELETE FROM feedback_observations WHERE tenant=? AND subject=?",
            [(*key,) for key, entries in state.put.items() if not entries],
        )
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_observations VALUES (?, ?, ?, ?, ?)",
            [
                (*key, min(e.time_ms for e in entries), max(e.time_ms for e in entries), entries_state(entries))
                for key, entries in state.put.items()
                if entries
            ],
        )
        self._save_windows(state)
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_told VALUES (?, ?)",
            [(tenant, c.reached_ms) for tenant, c in state.clocks.items() if c.reached_ms not in (None, c.told_ms)],
        )

    def _save_windows(self, state: Observations) -> None:
        unit = self._database.unit
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_windows VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*_place(c.key), orjson.dumps(c.cell.state()), c.cell.revision) for c in state.changes],
        )
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_kpis VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*_place(row.key), *row.computed, row.revision) for row in state.rows],
        )
        # A session that is no more never comes back under its name, but by chance: nothing refers to its revision.
        names = {spec.name for spec in self._sessions}
        gone = [_place(c.key) for c in state.changes if c.key.spec in names and not c.cell.state()]
        where = "WHERE tenant=? AND window=? AND dimensions=? AND start_ms=? AND end_ms=?"
        unit.executemany(f"DELETE FROM feedback_windows {where}", gone)
        unit.executemany(f"DELETE FROM feedback_kpis {where}", gone)

    # Queries ----------------------------------------------------------------------------------------------------

    def read(self, query: KpiQuery, limit: int) -> list[KpiRow]:
        """Return KPIs of the newest windows, at most `limit`, by KPI and window; call it in a thread."""
        conditions, values = ["tenant=?", "count>0", "end_ms>?"], [query.tenant or DEFAULT_TENANT, query.ends_after_ms]
        if query.window:
            conditions.append("window=?")
            values.append(query.window)
        if query.kpis:
            conditions.append("kpi IN (SELECT value FROM json_each(?))")
            values.append(orjson.dumps(sorted(query.kpis)).decode())
        with self._database.snapshot() as connection:
            rows = connection.execute(
                f"SELECT {_KPI} FROM feedback_kpis WHERE {' AND '.join(conditions)} "
                "ORDER BY end_ms DESC, start_ms DESC, window, dimensions, kpi LIMIT ?",
                (*values, limit),
            )
            return sorted(map(_row, rows), key=lambda row: (row.computed.kpi, row.key))

    def table(self, connection: sqlite3.Connection) -> dict[tuple[CellKey, str], Computed]:
        """Return all KPIs that have a value."""
        rows = map(_row, connection.execute(f"SELECT {_KPI} FROM feedback_kpis WHERE count>0"))
        return {(row.key, row.computed.kpi): row.computed for row in rows}

    def newest_ms(self, tenant: str) -> Mapping[int, int]:
        """Return the time of the newest turn of each partition."""
        return _newest(self._database.reader, tenant or DEFAULT_TENANT)

    def too_late(self, tenant: str) -> int:
        """Return how many turns were too late to be counted."""
        row = self._database.reader.execute(
            "SELECT count(*) FROM feedback_turns WHERE tenant=? AND too_late", (tenant or DEFAULT_TENANT,)
        ).fetchone()
        return int(row[0])

    # Definitions ------------------------------------------------------------------------------------------------

    async def renew(self) -> int:
        """Begin anew when windows, dimensions or KPIs were defined otherwise the last time; call it before work begins.

        Every answer is touched again; return how many. The new definitions are noted at the end, so that a process that
        dies meanwhile does all of it again.
        """
        settings = self._settings
        names = [spec.name for spec in settings.windows]
        definitions = orjson.dumps([names, settings.dimensions, [list(kpi) for kpi in settings.kpis]]).decode()
        if self._database.reader.execute("SELECT definitions FROM feedback_definitions").fetchall() == [(definitions,)]:
            return 0
        async with self._database.transaction():
            await self.reset()
        touched = 0
        with self._database.snapshot() as connection:
            keys = connection.execute(
                """SELECT tenant, subject, max(at_ms) FROM (
                     SELECT tenant, subject, asked_ms AS at_ms FROM feedback_turns
                     UNION ALL SELECT tenant, subject, rated_ms FROM feedback_ratings)
                   GROUP BY tenant, subject"""
            )
            while rows := keys.fetchmany(TOUCHES):
                async with self._database.transaction() as unit:
                    unit.emit([touch_message(Key(tenant, subject), at_ms) for tenant, subject, at_ms in rows])
                touched += len(rows)
        async with self._database.transaction(durable=True) as unit:
            unit.execute("DELETE FROM feedback_definitions")
            unit.execute("INSERT INTO feedback_definitions VALUES (?)", (definitions,))
        return touched

    # The read model ---------------------------------------------------------------------------------------------

    async def reset(self) -> None:
        """Empty the tables, within the open unit of work."""
        for name in _REBUILT:
            self._database.unit.execute(f"DELETE FROM {name}")

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
        """Return what the state is made of. Revisions tell how it came about, and are not part of it."""
        for row in connection.execute("SELECT tenant, subject, entries FROM feedback_observations"):
            yield ("feedback_observations", *row)
        columns = "tenant, window, dimensions, start_ms, end_ms"
        for row in connection.execute(f"SELECT {columns}, state FROM feedback_windows WHERE state<>?", (b"{}",)):
            yield ("feedback_windows", *row)
        for row in connection.execute(f"SELECT {columns}, kpi, value, count FROM feedback_kpis WHERE count>0"):
            yield ("feedback_kpis", *row)


_KPI = "tenant, window, dimensions, start_ms, end_ms, kpi, value, count, revision"


def _row(row: tuple[str, str, str, int, int, str, float | None, int, int]) -> KpiRow:
    tenant, window, dimensions, start_ms, end_ms, kpi, value, count, revision = row
    key = CellKey(window, tenant + SEPARATOR + dimensions, start_ms, end_ms)
    return KpiRow(key, Computed(kpi, value, count), revision)


def _newest(connection: sqlite3.Connection, tenant: str) -> dict[int, int]:
    return dict(connection.execute("SELECT partition, newest_ms FROM feedback_newest WHERE tenant=?", (tenant,)))


def _split(group: str) -> tuple[str, str]:
    tenant, _, dimensions = group.partition(SEPARATOR)
    return tenant, dimensions


def _place(key: CellKey) -> tuple[str, str, str, int, int]:
    tenant, dimensions = _split(key.group)
    return tenant, key.spec, dimensions, key.start_ms, key.end_ms
