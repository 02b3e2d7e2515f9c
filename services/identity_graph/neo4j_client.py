"""The connection to Neo4j: units of work, single questions, and what becomes of the driver's errors.

This is the only module that imports the driver.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from neo4j import AsyncDriver, AsyncGraphDatabase, AsyncTransaction, NotificationMinimumSeverity
from neo4j.exceptions import ClientError, DriverError, Neo4jError

from services.identity_graph.neo4j_settings import Neo4jSettings
from services.kernel.errors import UnavailableError

GRACE_S = 5.0  # beyond the time in which the server itself ends a unit of work
# What is wrong with a statement is a mistake in this program; everything else that a server refuses may pass.
_MISTAKES = ("Neo.ClientError.Statement.", "Neo.ClientError.Schema.")
_MADE_MEANWHILE = "Neo.ClientError.Schema.EquivalentSchemaRuleAlreadyExists"  # by another worker, IF NOT EXISTS or not

_TABLE = "RETURN collect(["
_LABELS = "Identity"

Rows = list[Any]
"""What a statement returns: a list for every row."""


def table(*columns: str) -> str:
    """Return how a statement ends that returns all rows in one: the driver takes 40 us for each that comes alone."""
    return f"{_TABLE}{', '.join(columns)}])"


def _rows(values: Rows, query: str) -> Rows:
    return values[0][0] if _TABLE in query else values


class Unit:
    """An open unit of work: one transaction."""

    def __init__(self, client: "Neo4j", transaction: AsyncTransaction) -> None:
        self._client, self._transaction = client, transaction

    async def run(self, query: str, **parameters: Any) -> Rows:
        """Run a statement and return all its rows, also of one that ends with a `table`.

        Raises:
            UnavailableError: the server is not there, does not let us in, or had to give this unit up for others.
        """
        async with self._client.asked():
            result = await self._transaction.run(self._client.named(query), parameters)
            return _rows(await result.values(), query)


class Neo4j:
    """A server, or a cluster of them; connections are opened when they are needed."""

    def __init__(self, settings: Neo4jSettings) -> None:
        self.settings = settings
        self._driver: AsyncDriver | None = None

    @property
    def _opened(self) -> AsyncDriver:
        if self._driver is None:
            logging.getLogger("neo4j").setLevel(logging.ERROR)  # it warns about every retry, and of what is deprecated
            settings = self.settings
            with self._translated():
                self._driver = AsyncGraphDatabase.driver(
                    settings.uri,
                    auth=(settings.username, settings.password) if settings.username else None,
                    max_connection_pool_size=settings.connections_max,
                    connection_timeout=settings.connect_timeout_s,
                    connection_acquisition_timeout=settings.connect_timeout_s + GRACE_S,
                    notifications_min_severity=NotificationMinimumSeverity.OFF,
                    telemetry_disabled=True,
                    user_agent="headwater",
                )
        return self._driver

    def named(self, query: str) -> str:
        """Return a statement with the labels of this installation; they all begin with one word."""
        prefix = self.settings.prefix
        return query.replace(_LABELS, f"{prefix}{_LABELS}") if prefix else query

    async def close(self) -> None:
        """Close all connections."""
        if self._driver is not None:
            await self._driver.close()
            self._driver = None

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """Open a unit of work; leaving it normally makes it last, everything else leaves nothing of it behind.

        Raises:
            UnavailableError: it could not be opened, or nobody knows whether it has become lasting.
        """
        session = self._opened.session(database=self.settings.database)
        try:
            async with self.asked():
                transaction = await session.begin_transaction(timeout=self.settings.timeout_s)
            yield Unit(self, transaction)
            async with self.asked():
                await transaction.commit()
        except asyncio.CancelledError:
            session.cancel()  # what was asked and not answered cannot be waited for
            raise
        finally:
            await self._leave(session.close())

    async def _leave(self, closing: Any) -> None:
        """Close a session: what has not become lasting is rolled back, by the server itself if it cannot be told."""
        try:
            async with asyncio.timeout(GRACE_S):
                await closing
        except (DriverError, Neo4jError, TimeoutError, OSError):
            pass

    async def ask(self, query: str, **parameters: Any) -> Rows:
        """Run one statement by itself, and return all its rows; it sees what has become lasting.

        Raises:
            UnavailableError: the server is not there, or does not let us in.
        """
        session = self._opened.session(database=self.settings.database)
        try:
            async with self.asked():
                result = await session.run(self.named(query), parameters)
                return _rows(await result.values(), query)
        except asyncio.CancelledError:
            session.cancel()
            raise
        finally:
            await self._leave(session.close())

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Bound the time of a question, and turn the driver's errors into ours."""
        with self._translated():
            async with asyncio.timeout(self.settings.timeout_s + GRACE_S):
                yield

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if (error.code or "").startswith(_MISTAKES) and error.code != _MADE_MEANWHILE:
                raise
            raise self._unavailable(error) from error
        except (DriverError, Neo4jError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UnavailableError:
        words = error.message if isinstance(error, Neo4jError) else str(error)
        return UnavailableError(f"Neo4j at {self.settings.uri}: {words or type(error).__name__}")
