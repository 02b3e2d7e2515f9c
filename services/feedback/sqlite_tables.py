"""The tables of answers, and what they tell of an answer: shared by the two processors of the service."""

import math
import sqlite3
from collections.abc import Iterable

import orjson

from services.feedback.answers import Answer, Classified, Key, Rating, Turn
from services.kernel.log import Offsets

SCHEMA = (
    """CREATE TABLE feedback_turns (
         tenant TEXT NOT NULL, subject TEXT NOT NULL, conversation_id TEXT NOT NULL, profile_id TEXT NOT NULL,
         asked_as TEXT NOT NULL, asked_ms INTEGER NOT NULL, digest TEXT NOT NULL, too_late INTEGER NOT NULL,
         model TEXT NOT NULL, answered INTEGER NOT NULL, verified INTEGER, latency_ms REAL, cost REAL,
         partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (tenant, subject))""",
    "CREATE INDEX feedback_turns_by_time ON feedback_turns (tenant, asked_ms, subject)",
    "CREATE INDEX feedback_turns_by_conversation ON feedback_turns (tenant, conversation_id)",
    "CREATE INDEX feedback_turns_too_late ON feedback_turns (tenant) WHERE too_late",
    # Who asked, by the names that an erasure uses; of every version of a turn, also of one that was replaced.
    """CREATE TABLE feedback_askers (
         tenant TEXT, name TEXT, subject TEXT, conversation_id TEXT, asked_ms INTEGER NOT NULL,
         PRIMARY KEY (tenant, name, subject, conversation_id)) WITHOUT ROWID""",
    """CREATE TABLE feedback_ratings (
         tenant TEXT NOT NULL, subject TEXT NOT NULL, rater TEXT NOT NULL, rated_ms INTEGER NOT NULL,
         digest TEXT NOT NULL, value INTEGER, has_text INTEGER NOT NULL, event BLOB NOT NULL,
         PRIMARY KEY (tenant, subject, rater))""",
    "CREATE INDEX feedback_ratings_by_rater ON feedback_ratings (tenant, rater) WHERE rater<>''",
    """CREATE TABLE feedback_classified (
         tenant TEXT NOT NULL, subject TEXT NOT NULL, words INTEGER NOT NULL, written_ms INTEGER NOT NULL,
         classified_ms INTEGER NOT NULL, digest TEXT NOT NULL, score REAL NOT NULL, category TEXT NOT NULL,
         event BLOB NOT NULL, PRIMARY KEY (tenant, subject))""",
    """CREATE TABLE feedback_newest (
         tenant TEXT, partition INTEGER, newest_ms INTEGER NOT NULL, "offset" INTEGER NOT NULL,
         PRIMARY KEY (tenant, partition)) WITHOUT ROWID""",
    # What is below is not made again by a replay: it tells of what the log holds no more, and of work under way.
    """CREATE TABLE feedback_forgotten (
         tenant TEXT, name TEXT, until_ms INTEGER NOT NULL, PRIMARY KEY (tenant, name)) WITHOUT ROWID""",
    """CREATE TABLE feedback_erased_turns (
         tenant TEXT, partition INTEGER, "offset" INTEGER, asked_ms INTEGER NOT NULL,
         PRIMARY KEY (tenant, partition, "offset")) WITHOUT ROWID""",
    """CREATE TABLE feedback_unlogged (
         tenant TEXT, subject TEXT, until_ms INTEGER NOT NULL, PRIMARY KEY (tenant, subject)) WITHOUT ROWID""",
    """CREATE TABLE feedback_erasures (
         erasure_id TEXT PRIMARY KEY, request BLOB NOT NULL, removed TEXT NOT NULL, related TEXT NOT NULL,
         done INTEGER NOT NULL)""",
)
TURN_COLUMNS = ", ".join(Turn._fields)
_BY_KEY = "FROM json_each(?) AS k CROSS JOIN {0} AS t ON t.tenant=k.value->>0 AND t.subject=k.value->>1"


def positions(connection: sqlite3.Connection, group: str, *, in_cluster: bool) -> Offsets:
    """Return how far a group was when a snapshot of the database was taken.

    Args:
        connection: the snapshot.
        group: the consumer group.
        in_cluster: whether the log is elsewhere, so that the database has only a ledger of it.
    """
    table = "ledger" if in_cluster else "log_groups"
    rows = connection.execute(f"SELECT topic, partition, next_offset FROM {table} WHERE name=?", (group,))
    return {(topic, partition): offset for topic, partition, offset in rows}


def known_answers(connection: sqlite3.Connection, keys: Iterable[Key]) -> dict[Key, Answer]:
    """Return all that is known of answers and conversations; those of which nothing is known are empty."""
    known = {key: Answer(is_conversation=key.subject.startswith("conversation:")) for key in keys}
    if not known:
        return known
    wanted = keys_json(known)
    turns = connection.execute(
        f"SELECT t.tenant, t.subject, {TURN_COLUMNS} {_BY_KEY.format('feedback_turns')}", (wanted,)
    )
    for tenant, subject, *fields in turns:
        turn = Turn(*fields)
        known[Key(tenant, subject)].turn = turn._replace(
            too_late=bool(turn.too_late),
            answered=bool(turn.answered),
            verified=None if turn.verified is None else bool(turn.verified),
            latency_ms=math.nan if turn.latency_ms is None else turn.latency_ms,  # SQLite has no NaN
            cost=math.nan if turn.cost is None else turn.cost,
        )
    ratings = connection.execute(
        f"SELECT t.tenant, t.subject, rater, rated_ms, digest, t.value, has_text {_BY_KEY.format('feedback_ratings')}",
        (wanted,),
    )
    for tenant, subject, rater, rated_ms, digest, value, has_text in ratings:
        known[Key(tenant, subject)].ratings[rater] = Rating(rated_ms, digest, value, bool(has_text))
    classified = connection.execute(
        "SELECT t.tenant, t.subject, words, written_ms, classified_ms, digest, score, category "
        + _BY_KEY.format("feedback_classified"),
        (wanted,),
    )
    for tenant, subject, *fields in classified:
        known[Key(tenant, subject)].classified = Classified(*fields)
    return known


def keys_json(keys: Iterable[Key]) -> str:
    """Keys as a parameter for json_each."""
    return orjson.dumps([list(key) for key in keys]).decode()
