"""Answers in the installation's database: turns, ratings, classifications, and who was erased."""

import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import orjson

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import (
    Event,
    Key,
    Turn,
    conversation_key,
    event_of,
    key_of_event,
    milliseconds,
    names_of_erasure,
    names_of_rater,
    names_of_turn,
)
from services.feedback.decider import Answers, Found
from services.feedback.sqlite_jobs import SqliteJobs
from services.feedback.sqlite_tables import SCHEMA, TURN_COLUMNS, keys_json, known_answers
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Progress, Record
from services.kernel.sqlite import Database
from services.kernel.windows import EventTime

_REBUILT = ("turns", "askers", "ratings", "classified", "newest")


class SqliteAnswers:
    """The store of the processor that takes events in; a `services.kernel.processor.Store`."""

    def __init__(self, database: Database, event_time: EventTime, jobs: SqliteJobs | None) -> None:
        """Make the tables. `on_erased` is called when something of an erasure is left to do.

        Args:
            database: the installation's database.
            event_time: how lateness is told.
            jobs: where texts wait for their classification; None when nothing is classified.
        """
        self._database, self._event_time, self._jobs = database, event_time, jobs
        self.on_erased: Callable[[], None] = lambda: None
        database.migrate("feedback", SCHEMA)

    # Processing -------------------------------------------------------------------------------------------------

    async def load(self, batch: Sequence[Record]) -> Answers:
        """Load what is known of the answers that the batch is about."""
        state = Answers(self._event_time)
        keys: dict[Key, None] = {}
        names: dict[Key, None] = {}
        for record in batch:
            try:
                event = event_of(record)
                if event is None:
                    continue
                state.events[record.offset] = event
                if isinstance(event, common_pb2.ErasureRequested):
                    self._find(state, event, record)
                    continue
                key = key_of_event(event)
            except InvalidInputError:
                continue  # `decide` finds the same, and makes it a dead letter
            keys[key] = None
            names.update(dict.fromkeys(_names(event, key)))
            if isinstance(event, gateway_pb2.TurnCompleted) and event.conversation_id:
                keys[conversation_key(event.tenant, event.conversation_id)] = None
        for found in state.subjects.values():
            keys.update(dict.fromkeys(thing.key for thing in found))
            conversations = (conversation_key(t.key.tenant, t.conversation_id) for t in found if t.conversation_id)
            keys.update(dict.fromkeys(conversations))
        state.known = known_answers(self._database.writer, keys)
        state.forgotten = self._forgotten([*keys, *names])
        if batch and batch[0].topic == topics.CONVERSATIONS:
            for tenant in {key.tenant for key in keys}:
                self._load_time(state, tenant, batch[0].partition, batch[-1].offset)
        return state

    def _find(self, state: Answers, event: common_pb2.ErasureRequested, record: Record) -> None:
        """Look for everything of an erasure's subject."""
        until_ms = milliseconds(event.requested_at, record.timestamp_ms)
        names, tenant = names_of_erasure(event), event.tenant or DEFAULT_TENANT
        found = list(self._found(tenant, names, until_ms))
        erased = {thing.key.subject for thing in found if not thing.rater}
        state.subjects[event.erasure_id] = found
        state.sole_conversations[event.erasure_id] = [
            conversation
            for conversation in sorted({thing.conversation_id for thing in found} - {""})
            if erased.issuperset(
                subject
                for (subject,) in self._database.writer.execute(
                    "SELECT subject FROM feedback_turns WHERE tenant=? AND conversation_id=?", (tenant, conversation)
                )
            )
        ]

    def _found(self, tenant: str, names: Sequence[Key], until_ms: int) -> Iterator[Found]:
        writer = self._database.writer
        for _, name in names:
            for subject, conversation in writer.execute(
                "SELECT subject, conversation_id FROM feedback_askers WHERE tenant=? AND name=? AND asked_ms<=?",
                (tenant, name, until_ms),
            ).fetchall():
                yield Found(Key(tenant, subject), conversation)
            for value in (name, name.partition(":")[2]):
                for subject, rater in writer.execute(
                    "SELECT subject, rater FROM feedback_ratings "
                    "WHERE tenant=? AND rater=? AND rater<>'' AND rated_ms<=?",
                    (tenant, value, until_ms),
                ).fetchall():
                    yield Found(Key(tenant, subject), rater=rater)

    def _forgotten(self, names: Collection[Key]) -> dict[Key, int]:
        rows = self._database.writer.execute(
            "SELECT t.tenant, t.name, t.until_ms FROM json_each(?) AS k CROSS JOIN feedback_forgotten AS t "
            "ON t.tenant=k.value->>0 AND t.name=k.value->>1",
            (keys_json(names),),
        )
        return {Key(tenant, name): until_ms for tenant, name, until_ms in rows}

    def _load_time(self, state: Answers, tenant: str, partition: int, offset: int) -> None:
        """Load how far a tenant's time has come in a partition, and what of it the log does not hold any more."""
        writer, place = self._database.writer, (tenant, partition)
        row = writer.execute(
            'SELECT newest_ms, "offset" FROM feedback_newest WHERE tenant=? AND partition=?', place
        ).fetchone()
        if row is not None:
            state.newest_ms[place] = row[0]
        erased = writer.execute(
            'SELECT "offset", asked_ms FROM feedback_erased_turns '
            'WHERE tenant=? AND partition=? AND "offset">? AND "offset"<? ORDER BY "offset"',
            (*place, -1 if row is None else row[1], offset),
        )
        state.erased_turns[place] = deque(erased)

    async def save(self, state: Answers, progress: Progress) -> None:
        """Write what the batch has changed."""
        del progress
        unit = self._database.unit
        unit.executemany(
            f'INSERT OR REPLACE INTO feedback_turns (tenant, subject, {TURN_COLUMNS}, partition, "offset", event) '
            f"VALUES (?, ?, {', '.join('?' * len(Turn._fields))}, ?, ?, ?)",
            [(*key, *turn, r.partition, r.offset, r.value) for key, (turn, r) in state.turns.items()],
        )
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_ratings VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*key, rater, *rating, record.value) for (key, rater), (rating, record) in state.ratings.items()],
        )
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_classified VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*key, *classified, record.value) for key, (classified, record) in state.classified.items()],
        )
        unit.executemany(
            "INSERT OR REPLACE INTO feedback_newest VALUES (?, ?, ?, ?)",
            [(*place, newest_ms, max(state.events, default=-1)) for place, newest_ms in state.newest_ms.items()],
        )
        unit.executemany(
            "INSERT INTO feedback_askers VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET asked_ms=min(asked_ms, excluded.asked_ms)",
            [(*name, subject, conversation, ms) for (name, subject, conversation), ms in state.askers.items()],
        )
        self._remove(state)
        unit.executemany(
            "INSERT OR IGNORE INTO feedback_erasures VALUES (?, ?, ?, ?, 0)",
            [
                (e.request.erasure_id, e.request.SerializeToString(), orjson.dumps(e.removed), orjson.dumps(e.related))
                for e in state.erasures
            ],
        )
        if state.erasures or state.unlogged:
            unit.on_commit.append(self.on_erased)
        if self._jobs is not None:
            self._jobs.want({key: state.known[key].words for key in state.touched}, state.removed)

    def _remove(self, state: Answers) -> None:
        unit = self._database.unit
        unit.executemany(
            "INSERT INTO feedback_forgotten VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET until_ms=max(until_ms, excluded.until_ms)",
            [(*key, until_ms) for key, until_ms in state.remembered.items()],
        )
        unit.executemany(
            "DELETE FROM feedback_askers WHERE tenant=? AND name=? AND asked_ms<=?",
            [(*name, erasure.until_ms) for erasure in state.erasures for name in erasure.names],
        )
        unit.executemany(
            "INSERT INTO feedback_unlogged VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET until_ms=max(until_ms, excluded.until_ms)",
            [(*key, until_ms) for key, until_ms in state.unlogged.items()],
        )
        unit.executemany(
            "INSERT OR IGNORE INTO feedback_erased_turns VALUES (?, ?, ?, ?)",
            [(key.tenant, record.partition, record.offset, ms) for key, (record, ms) in state.refused.items()],
        )
        gone = [(*key,) for key in state.removed]
        raters = [(*key, rater) for key, rater in state.removed_ratings]
        where = "WHERE tenant=? AND subject=?"
        unit.executemany(
            "INSERT OR IGNORE INTO feedback_erased_turns "
            f'SELECT tenant, partition, "offset", asked_ms FROM feedback_turns {where}',
            gone,
        )
        for table in ("turns", "ratings", "classified"):
            unit.executemany(f"DELETE FROM feedback_{table} {where}", gone)
        unit.executemany(f"DELETE FROM feedback_ratings {where} AND rater=?", raters)

    # The read model ---------------------------------------------------------------------------------------------

    async def reset(self) -> None:
        """Empty the tables that a replay makes again, within the open unit of work."""
        for table in _REBUILT:
            self._database.unit.execute(f"DELETE FROM feedback_{table}")

    def erased_turns(self, connection: sqlite3.Connection) -> Iterator[tuple[str, int, int, int]]:
        """Return tenant, partition, offset and time of turns that were erased, by offset."""
        return connection.execute(
            'SELECT tenant, partition, "offset", asked_ms FROM feedback_erased_turns ORDER BY partition, "offset"'
        )

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
        """Return what the state is made of: the events that count, whatever else came."""
        for table, columns in (
            ("feedback_turns", "digest, too_late"),
            ("feedback_ratings", "rater, digest"),
            ("feedback_classified", "digest"),
        ):
            for row in connection.execute(f"SELECT tenant, subject, {columns} FROM {table}"):
                yield (table, *row)


def _names(event: Event, key: Key) -> Iterator[Key]:
    """The names by which the person of an event may have been erased."""
    if isinstance(event, gateway_pb2.TurnCompleted):
        yield from names_of_turn(key.tenant, event.profile_id, event.asked_as)
    elif not isinstance(event, common_pb2.ErasureRequested) and hasattr(event, "rater"):
        yield from names_of_rater(key.tenant, event.rater)
