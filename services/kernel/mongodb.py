"""The one module that knows MongoDB's driver: settings, connection, and errors as ours.

`motor` gets only critical fixes any more; what would take its place, pymongo's own asynchronous client, changes nothing
but this file.

Every write is acknowledged by a majority, and journalled. Nothing here needs transactions over documents, so that a
server without a replica set does, too.
"""

from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import bson
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne, WriteConcern
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidURI,
    PyMongoError,
    WriteConcernError,
)

from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.settings import Section

__all__ = [
    "DeleteOne",
    "DuplicateKeyError",
    "InsertOne",
    "Mongo",
    "MongoSettings",
    "ReplaceOne",
    "UpdateOne",
    "asked",
    "decoded",
    "encoded",
]

T = TypeVar("T")
DUPLICATE_KEY = 11000
PAGE_DOCUMENTS = 500
MAJORITY = WriteConcern(w="majority", j=True)


@dataclass(frozen=True, slots=True)
class MongoSettings:
    """The table [mongodb] of the configuration.

    Attributes:
        uri: mongodb://…, with user and password where the server asks for them.
        database: where the collections are.
        timeout_s: how long a server is looked for, and an operation waited for.
    """

    uri: str
    database: str = "headwater"
    timeout_s: float = 20.0

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "MongoSettings":
        """Read the table [mongodb]; raises InvalidInputError naming what is wrong with it."""
        read = Section("mongodb", table, cls(""))
        uri = read.text("uri", required=True)
        if not uri.startswith(("mongodb://", "mongodb+srv://")):
            raise read.refusal("uri", "must begin with mongodb:// or mongodb+srv://")
        return cls(uri, read.text("database", required="database" in table) or cls(uri).database,
                   read.number("timeout_s", 0.1, 600))  # fmt: skip


async def asked(request: Awaitable[T]) -> T:
    """Return the server's answer.

    Raises:
        UnavailableError: it cannot be reached, or did not answer in time; whether a write was done is not known then.
        DuplicateKeyError: something else has a key that must be unique.
    """
    try:
        return await request
    except DuplicateKeyError:
        raise
    except (ConnectionFailure, AutoReconnect) as error:
        raise UnavailableError(f"MongoDB: {error!s:.300}") from error
    except PyMongoError as error:
        # Not acknowledged by a majority, or by a server that is just becoming another's copy.
        passing = isinstance(error, WriteConcernError) or error.has_error_label("RetryableWriteError")
        if (passing and not isinstance(error, BulkWriteError)) or error.timeout:
            raise UnavailableError(f"MongoDB: {error!s:.300}") from error
        raise


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as BSON."""
    return bytes(bson.encode(document))


def decoded(raw: bytes) -> dict[str, Any]:
    """Return the document that BSON holds."""
    return dict(bson.decode(raw))


class Mongo:
    """A database of a MongoDB; connected when it is first asked."""

    def __init__(self, settings: MongoSettings) -> None:
        """Wire it; raises InvalidInputError when the URI is none."""
        timeout_ms = int(settings.timeout_s * 1000)
        try:
            self._client: Any = AsyncIOMotorClient(
                settings.uri,
                serverSelectionTimeoutMS=timeout_ms,
                connectTimeoutMS=timeout_ms,
                timeoutMS=timeout_ms,
                appname="headwater",
            )
        except (InvalidURI, ConfigurationError) as error:
            raise InvalidInputError(f"[mongodb] uri: {error}") from error
        self._database = self._client.get_database(settings.database, write_concern=MAJORITY)

    def collection(self, name: str) -> Any:
        """Return a collection, an `AsyncIOMotorCollection`."""
        return self._database[name]

    async def start(self) -> None:
        """Find the server; raises UnavailableError when it does not answer."""
        await asked(self._client.admin.command("ping"))

    async def find(self, name: str, filter_: Mapping[str, Any], fields: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return all documents that a filter leads to; of each the `fields` only, where some are named."""
        cursor = self.collection(name).find(filter_, dict.fromkeys(fields, 1) if fields else None)
        return await asked(cursor.to_list(None))

    async def pages(
        self, name: str, filter_: Mapping[str, Any], fields: Collection[str]
    ) -> AsyncIterator[dict[str, Any]]:
        """Go through all documents that a filter leads to, some at a time."""
        cursor = self.collection(name).find(filter_, dict.fromkeys(fields, 1), batch_size=PAGE_DOCUMENTS)
        while found := await asked(cursor.to_list(PAGE_DOCUMENTS)):
            for each in found:
                yield each

    async def write(self, name: str, operations: Sequence[Any]) -> None:
        """Do writes in any order; those that a unique key refuses are as good as done.

        Args:
            name: the collection.
            operations: of pymongo: InsertOne, ReplaceOne, UpdateOne, DeleteOne.
        """
        if not operations:
            return
        try:
            await asked(self.collection(name).bulk_write(operations, ordered=False))
        except BulkWriteError as error:
            details = error.details or {}
            others = [each for each in details.get("writeErrors", ()) if each.get("code") != DUPLICATE_KEY]
            if others or details.get("writeConcernErrors"):
                words = others[0].get("errmsg") if others else details["writeConcernErrors"][0]
                raise UnavailableError(f"MongoDB refused a write into {name}: {words!s:.300}") from error

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()
