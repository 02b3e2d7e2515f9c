"""Texts that wait for their classification, in the installation's database: the jobs of durable enrichment.

A job is about certain words of an answer. It stays when it is done, so that a replay of the log does not do it again.
"""

import sqlite3
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence

import orjson

from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import RATING_UNIT, Key, rating_value, verified
from services.feedback.ports import Example, Text
from services.kernel.jobs import WAITING, Job, JobState
from services.kernel.sqlite import Database, Transaction

SCHEMA = (
    """CREATE TABLE feedback_jobs (
         tenant TEXT, subject TEXT, words TEXT, state TEXT NOT NULL, attempts INTEGER NOT NULL, due_at REAL NOT NULL,
         error TEXT NOT NULL, PRIMARY KEY (tenant, subject, words)) WITHOUT ROWID""",
    f"""CREATE INDEX feedback_jobs_waiting ON feedback_jobs (due_at)
          WHERE state IN ({", ".join(sorted(f"'{state.value}'" for state in WAITING))})""",
)
# Written as in the index, or SQLite does not use it.
_WAITS = f"state IN ({', '.join(sorted(repr(state.value) for state in WAITING))})"


class SqliteJobs:
    """The jobs; a `services.kernel.enrichment.JobStore`."""

    def __init__(self, database: Database, provider: str) -> None:
        """Make the table; `provider` is whose health the jobs depend on."""
        self._database, self._provider = database, provider
        self.on_new: Callable[[], None] = lambda: None
        database.migrate("feedback.jobs", SCHEMA)

    def want(self, words: Mapping[Key, str], gone: Iterable[Key]) -> None:
        """Ask, in the open unit of work, that texts be classified.

        Args:
            words: of answers, the digests of the words that are to be classified, empty where there are none; others
                need no classification any more.
            gone: what was removed: nothing stays of its jobs.
        """
        unit = self._database.unit
        current = [(*key, digest) for key, digest in words.items()]
        unit.executemany("DELETE FROM feedback_jobs WHERE tenant=? AND subject=?", [(*key,) for key in gone])
        unit.executemany(
            f"UPDATE feedback_jobs SET state='done' WHERE tenant=? AND subject=? AND words<>? AND {_WAITS}", current
        )
        wanted = [job for job in current if job[2]]
        new = unit.executemany("INSERT OR IGNORE INTO feedback_jobs VALUES (?, ?, ?, 'pending', 0, 0, '')", wanted)
        if new.rowcount > 0:
            unit.on_commit.append(self.on_new)

    async def due(
        self, now: float, limit: int, running: Collection[Hashable], blocked: Collection[str]
    ) -> Sequence[Job]:
        """Return waiting jobs whose time has come."""
        if self._provider in blocked:
            return []
        rows = self._database.reader.execute(
            f"SELECT tenant, subject, words, state, attempts, due_at, error FROM feedback_jobs "
            f"WHERE {_WAITS} AND due_at<=? ORDER BY due_at LIMIT ?",
            (now, limit + len(running)),
        )
        return [job for job in map(self._job, rows) if job.key not in running][:limit]

    async def next_due_at(self, running: Collection[Hashable], blocked: Collection[str]) -> float:
        """Return when the next job comes due."""
        if self._provider in blocked:
            return float("inf")
        rows = self._database.reader.execute(
            f"SELECT tenant, subject, words, state, attempts, due_at, error FROM feedback_jobs "
            f"WHERE {_WAITS} ORDER BY due_at LIMIT ?",
            (len(running) + 1,),
        )
        return min((job.due_at for job in map(self._job, rows) if job.key not in running), default=float("inf"))

    def _job(self, row: tuple[str, str, str, str, int, float, str]) -> Job:
        tenant, subject, words, state, attempts, due_at, error = row
        return Job(
            key=(tenant, subject, words),
            version=words,
            provider=self._provider,
            state=JobState(state),
            attempts=attempts,
            due_at=due_at,
            error=error,
        )

    async def record(self, jobs: Sequence[Job]) -> None:
        """Make the state of failed jobs last."""
        async with self._database.transaction() as unit:
            unit.executemany(
                f"UPDATE feedback_jobs SET state=?, attempts=?, due_at=?, error=? "
                f"WHERE tenant=? AND subject=? AND words=? AND {_WAITS}",
                [(job.state.value, job.attempts, job.due_at, job.error, *_place(job)) for job in jobs],
            )

    def done(self, unit: Transaction, job: Job) -> bool:
        """Mark a job as done; tell whether it was still wanted."""
        where = f"WHERE tenant=? AND subject=? AND words=? AND {_WAITS}"
        return unit.execute(f"UPDATE feedback_jobs SET state='done' {where}", _place(job)).rowcount == 1

    def count(self, states: Iterable[JobState]) -> int:
        """Return how many jobs are in one of these states."""
        wanted = orjson.dumps([state.value for state in states]).decode()
        row = self._database.reader.execute(
            "SELECT count(*) FROM feedback_jobs WHERE state IN (SELECT value FROM json_each(?))", (wanted,)
        ).fetchone()
        return int(row[0])

    def is_quiet(self, now: float) -> bool:
        """Tell whether no job is due."""
        found = self._database.reader.execute(
            f"SELECT 1 FROM feedback_jobs WHERE {_WAITS} AND due_at<=? LIMIT 1", (now,)
        ).fetchone()
        return found is None

    # Texts ------------------------------------------------------------------------------------------------------

    def texts(self, jobs: Sequence[Job]) -> list[Text]:
        """Return the texts of jobs that are still there."""
        return [text for job in jobs if (text := self._text(job)) is not None]

    def _text(self, job: Job) -> Text | None:
        tenant, subject, words = _place(job)
        reader = self._database.reader
        turn_row = reader.execute(
            "SELECT digest, asked_ms, event FROM feedback_turns WHERE tenant=? AND subject=?", (tenant, subject)
        ).fetchone()
        turn = gateway_pb2.TurnCompleted.FromString(turn_row[2]) if turn_row else None
        signs = signs_of(turn) if turn is not None else ()
        if turn_row and turn is not None and turn_row[0] == words:
            return Text(
                Key(tenant, subject), words, turn.question, is_rating=False, rating=None, written_ms=turn_row[1],
                occurred_ms=turn_row[1], conversation_id=turn.conversation_id, signs=signs,
            )  # fmt: skip
        rating_row = reader.execute(
            "SELECT rated_ms, event FROM feedback_ratings WHERE tenant=? AND subject=? AND digest=?",
            (tenant, subject, words),
        ).fetchone()
        if rating_row is None:
            return None
        rating = events_pb2.AnswerRated.FromString(rating_row[1])
        return Text(
            Key(tenant, subject), words, rating.text, is_rating=True, rating=rating_value(rating),
            written_ms=rating_row[0], occurred_ms=turn_row[1] if turn_row else rating_row[0],
            conversation_id=turn.conversation_id if turn is not None else rating.conversation_id, signs=signs,
        )  # fmt: skip


def examples(connection: sqlite3.Connection, tenant: str, limit: int) -> Iterator[Example]:
    """Return the newest rated turns of a tenant whose raters are clearly satisfied or dissatisfied, at most `limit`."""
    rows = connection.execute(
        """SELECT t.digest, t.event, r.rating FROM feedback_turns AS t JOIN (
             SELECT tenant, subject, avg(value) AS rating FROM feedback_ratings
             WHERE tenant=? AND value IS NOT NULL GROUP BY tenant, subject) AS r USING (tenant, subject)
           WHERE r.rating<=? OR r.rating>=? ORDER BY t.asked_ms DESC, t.subject LIMIT ?""",
        (tenant, RATING_UNIT / 4, 3 * RATING_UNIT / 4, limit),
    )
    for digest, event, rating in rows:
        turn = gateway_pb2.TurnCompleted.FromString(event)
        yield Example(digest, turn.question, signs_of(turn), dissatisfied=rating <= RATING_UNIT / 4)


def signs_of(turn: gateway_pb2.TurnCompleted) -> tuple[str, ...]:
    """What an answer shows of itself."""
    signs = () if turn.answered else ("unanswered",)
    return (*signs, "unverified") if verified(turn) is False else signs


def _place(job: Job) -> tuple[str, str, str]:
    if not isinstance(job.key, tuple):
        raise TypeError(f"{job.key!r} is not the key of a classification")
    tenant, subject, words = job.key
    return tenant, subject, words
