"""The graph under test in a real Neo4j."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from services.identity_graph.model import Kinds
from services.identity_graph.neo4j_adapters import neo4j_adapters
from services.identity_graph.neo4j_client import Neo4j
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.identity_graph.ports import Told
from services.kernel.log import Ledger, Progress
from services.kernel.sqlite import Database
from tests.laws.identity_world import PARTITIONS, Tables


async def nothing_told() -> AsyncIterator[Sequence[Told]]:
    """A log in which nothing is."""
    for _ in ():
        yield ()


async def wipe(uri: str) -> None:
    """Empty the whole server."""
    client = Neo4j(Neo4jSettings(uri))
    try:
        while (await client.ask("MATCH (n) WITH n LIMIT 10000 DETACH DELETE n RETURN count(*)"))[0][0]:
            pass
    finally:
        await client.close()


class Worker:
    """One worker's connection to the graph; see `identity_world.Place`."""

    def __init__(
        self, uri: str, kinds: Kinds, database: Database, partitions: int = PARTITIONS, prefix: str = ""
    ) -> None:
        table = {"uri": uri, "prefix": prefix}
        self.adapters = neo4j_adapters(table, database, kinds, lambda: partitions, "identity_graph")
        self.neo4j = Neo4j(Neo4jSettings.from_config(table))
        ledger = self.adapters.ledgers[0]
        assert ledger is not None
        self.ledger: Ledger = ledger

    def unit(self) -> AbstractAsyncContextManager[object]:
        return self.ledger.unit()

    async def record(self, progress: Progress) -> None:
        await self.ledger.record(progress)

    async def tables(self) -> Tables:
        ask = self.neo4j.ask
        stored = await ask("MATCH (r:IdentityRecord) WHERE r.buried IS NOT NULL RETURN r.buried, r.key")
        nodes: dict[int, Any] = {
            number: tuple(fields)
            for number, *fields in await ask(
                "MATCH (n:IdentityContent) RETURN n.id, n.text, n.rows, n.first_seen, n.first_key, n.links, n.component"
            )
        }
        components = {row[0] for row in await ask("MATCH (k:IdentityComponent) RETURN k.id")}
        assert components == {fields[5] for fields in nodes.values()} - {None} | {0}
        assert not await ask("MATCH (i:IdentityLink) WHERE NOT (i)<-[:NAMES]-() RETURN i.link")
        return Tables(
            nodes,
            [
                (node, seen, key)
                for node, seen, key in await ask(
                    "MATCH (r:IdentityRecord)-[:HOLDS]->(n:IdentityContent) RETURN n.id, r.first_seen, r.key"
                )
            ],
            {(link, node) for link, node in await ask("MATCH (i:IdentityLink)<-[:NAMES]-(n) RETURN i.link, n.id")},
            {link for (link,) in await ask("MATCH (i:IdentityLink) WHERE i.records IS NOT NULL RETURN i.link")},
            {(digest, key) for digest, key in await ask("MATCH (b:IdentityBuried) RETURN b.digest, b.key")},
            {(digest, key) for text, key in stored for digest in orjson.loads(text)},
        )

    async def hash(self) -> str:
        return await self.adapters.life.hash(None)  # type: ignore[arg-type]  # it does not look at the local database

    def close(self) -> None:
        """Do nothing: see `opened`."""


@asynccontextmanager
async def opened(
    uri: str, folder: Path, kinds: Kinds, workers: int = 1, partitions: int = PARTITIONS
) -> AsyncIterator[list[Worker]]:
    """Open workers on an empty graph."""
    await wipe(uri)
    database = Database(folder)
    found = [Worker(uri, kinds, database, partitions) for _ in range(workers)]
    try:
        await found[0].adapters.life.start()
        await found[0].adapters.life.renew("", nothing_told())
        yield found
    finally:
        for worker in found:
            await worker.adapters.life.close()
            await worker.neo4j.close()
        database.close()
