"""What a worker of a cluster keeps in its local database: how far its stores are, and what is still to be published.

The log is elsewhere then, so that state and log cannot change in one transaction. A batch of a processor keeps its
progress and its outputs beside the state (see `services.kernel.log.Ledger`). Whatever else publishes in a unit of work
of the local database (`Transaction.emit`: background work, sources) puts its messages into an outbox, and `relay` takes
them to the log: in order, and after a crash perhaps twice, with the same event ids.
"""

import base64
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from services.kernel.log import EMPTY, Message, PartitionLostError, Progress, Tally
from services.kernel.sqlite import Database, Transaction
from services.kernel.waiters import Waiters

RELAY_MESSAGES = 500
LOOK_AGAIN_S = 5.0
_NEWS = "outbox"

SCHEMA = (
    """CREATE TABLE ledger (
         name TEXT, topic TEXT, partition INTEGER, start INTEGER NOT NULL, next_offset INTEGER NOT NULL,
         outputs BLOB NOT NULL, tally TEXT NOT NULL, PRIMARY KEY (name, topic, partition)) WITHOUT ROWID""",
    "CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, message BLOB NOT NULL)",
)


def encode_messages(messages: Sequence[Message]) -> bytes:
    """Return messages as JSON, for an outbox."""
    return orjson.dumps([_fields(message) for message in messages])


def decode_messages(raw: bytes | str) -> list[Message]:
    """Return the messages of an outbox."""
    return [_message(fields) for fields in orjson.loads(raw)]


def _fields(message: Message) -> list[Any]:
    return [
        message.topic,
        _text(message.key),
        _text(message.value),
        message.type,
        message.timestamp_ms,
        message.partition,
        message.event_id,
        dict(message.headers),
    ]


def _message(fields: list[Any]) -> Message:
    topic, key, value, kind, timestamp_ms, partition, event_id, headers = fields
    return Message(topic, _bytes(key), _bytes(value), kind, timestamp_ms, partition, event_id, headers or EMPTY)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


class LocalLedger:
    """The ledger of stores in the local database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.news = Waiters()
        database.migrate("ledger", SCHEMA)
        database.set_appender(self._put)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[None]:
        """Open a unit of work of the local database."""
        async with self._database.transaction():
            yield

    async def record(self, progress: Progress) -> None:
        """Keep the progress, within the open unit."""
        place = (progress.group, progress.topic, progress.partition)
        unit = self._database.unit
        row = unit.execute("SELECT next_offset FROM ledger WHERE name=? AND topic=? AND partition=?", place).fetchone()
        if (row[0] if row else 0) != progress.start:
            raise PartitionLostError(f"{progress.group} has done {progress.topic}/{progress.partition} already")
        unit.execute(
            "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *place,
                progress.start,
                progress.next_offset,
                encode_messages(progress.outputs),
                orjson.dumps([*progress.tally]).decode(),
            ),
        )

    async def pending(self, group: str, topic: str, partition: int) -> Progress | None:
        """Return the newest progress of a partition; None if there is none."""
        row = self._database.reader.execute(
            "SELECT start, next_offset, outputs, tally FROM ledger WHERE name=? AND topic=? AND partition=?",
            (group, topic, partition),
        ).fetchone()
        if row is None:
            return None
        start, next_offset, outputs, tally = row
        return Progress(
            group, topic, partition, start, next_offset, decode_messages(outputs), Tally(*orjson.loads(tally))
        )

    def forget(self, unit: Transaction, groups: Collection[str]) -> None:
        """Forget how far groups are, in the open unit: their stores were emptied."""
        unit.executemany("DELETE FROM ledger WHERE name=?", [(group,) for group in groups])

    # Outbox -----------------------------------------------------------------------------------------------------

    def _put(self, unit: Transaction, messages: Sequence[Message]) -> None:
        named = (message if message.event_id else message._replace(event_id=str(uuid.uuid4())) for message in messages)
        unit.executemany(
            "INSERT INTO outbox (message) VALUES (?)", [(orjson.dumps(_fields(message)),) for message in named]
        )
        unit.on_commit.append(lambda: self.news.wake((_NEWS,)))

    def waiting(self) -> int:
        """Return how many messages wait to be published."""
        return int(self._database.reader.execute("SELECT count(*) FROM outbox").fetchone()[0])

    async def relay(self, append: Callable[[Sequence[Message]], Awaitable[object]]) -> None:
        """Take messages from the outbox to the log until cancelled.

        Args:
            append: publishes messages; when it returns, they are lasting.
        """
        while True:
            rows = self._database.reader.execute(
                "SELECT id, message FROM outbox ORDER BY id LIMIT ?", (RELAY_MESSAGES,)
            ).fetchall()
            if not rows:
                await self.news.wait((_NEWS,), LOOK_AGAIN_S)
                continue
            await append([_message(orjson.loads(message)) for _, message in rows])
            async with self._database.transaction() as unit:
                unit.execute("DELETE FROM outbox WHERE id<=?", (rows[-1][0],))
