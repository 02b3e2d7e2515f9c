"""The connections to PostgreSQL with pgvector, and the settings of them.

[postgresql]                       # chunks of a cluster: words and vectors
uri = "postgresql://headwater@db.internal/headwater"
password = "…"                     # or HEADWATER__POSTGRESQL__PASSWORD
prefix = "headwater"               # of every table
connections = 8                    # of each process
timeout_s = 30.0
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.settings import Section

_PREFIX = re.compile("[a-z][a-z0-9_]{0,30}")
CONNECTIONS_MAX = 100
CONNECTION_WAIT_S = 5.0
# SQLSTATE, and classes of it that may pass: connection, resources, the operator, the system; and lost serialisations.
_NOT_ALLOWED = "42501"
_PASSING = ("08", "40", "53", "57", "58")


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Where PostgreSQL is: the table [postgresql].

    Attributes:
        uri: of the database, as libpq takes it.
        password: of the user, where it is not to stand in `uri`.
        prefix: begins the name of every table.
        connections: at most so many at a time, of each process.
        timeout_s: the longest that a statement may take, in seconds.
    """

    uri: str
    password: str = ""
    prefix: str = "headwater"
    connections: int = 8
    timeout_s: float = 30.0

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "PostgresSettings":
        """Read the table [postgresql]; raises InvalidInputError naming what is wrong with it."""
        read = Section("postgresql", table, cls(""))
        settings = cls(
            uri=read.text("uri", required=True),
            password=read.text("password"),
            prefix=read.text("prefix"),
            connections=read.whole("connections", 1, CONNECTIONS_MAX),
            timeout_s=read.number("timeout_s", 0.1, 3600),
        )
        if not _PREFIX.fullmatch(settings.prefix):
            raise read.refusal("prefix", "must be at most 31 small letters, digits and underscores, a letter first")
        return settings


class RefusedError(Exception):
    """The database refuses a statement for what it holds; says why, in its own words.

    Attributes:
        state: the SQLSTATE.
    """

    def __init__(self, state: str, words: str) -> None:
        super().__init__(words)
        self.state = state


class PostgresClient:
    """Gives out connections; what cannot be done at the moment is an UnavailableError."""

    def __init__(self, settings: PostgresSettings) -> None:
        """Connect when it is first asked."""
        self._settings = settings
        options: dict[str, Any] = {"options": f"-c statement_timeout={int(settings.timeout_s * 1000)}"}
        if settings.password:
            options["password"] = settings.password
        self._pool = AsyncConnectionPool(
            settings.uri,
            kwargs=options,
            min_size=0,
            max_size=settings.connections,
            timeout=CONNECTION_WAIT_S,
            reconnect_timeout=CONNECTION_WAIT_S,  # who asks after that tries anew
            open=False,
            check=AsyncConnectionPool.check_connection,
        )
        self._is_open = False

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Lend a connection with an open transaction; commits, or rolls back what an error cut short.

        Raises:
            UnavailableError: the database cannot be reached, or cannot do it at the moment.
            RefusedError: a statement is refused for what it holds.
            InvalidInputError: the database refuses the user.
        """
        with _told():
            if not self._is_open:
                await self._pool.open()
                self._is_open = True
            async with self._pool.connection() as connection, connection.transaction():
                yield connection

    async def vacuum(self, table: str) -> None:
        """Have a table vacuumed; raises as `transaction` does."""
        with _told():
            async with self._pool.connection() as connection:
                await connection.set_autocommit(True)
                try:
                    await connection.execute(sql.SQL("VACUUM {}").format(sql.Identifier(table)))
                finally:
                    await connection.set_autocommit(False)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except PoolTimeout as error:
        raise UnavailableError(f"PostgreSQL gives no connection within {CONNECTION_WAIT_S} s: {error}") from error
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if state == _NOT_ALLOWED:
            raise InvalidInputError(f"PostgreSQL: {error}: give the user of [postgresql] that right") from error
        if isinstance(error, psycopg.OperationalError) or state[:2] in _PASSING or not state:
            raise UnavailableError(f"PostgreSQL: {error}") from error
        raise RefusedError(state, str(error).splitlines()[0]) from error
