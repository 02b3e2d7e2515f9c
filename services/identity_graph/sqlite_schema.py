"""The tables of the identity graph, and how values come into statements."""

import zlib
from collections.abc import Iterable

import orjson

SCHEMA = (
    """CREATE TABLE identity_records (
         id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, birth TEXT NOT NULL, partition INTEGER NOT NULL,
         place INTEGER NOT NULL, position TEXT NOT NULL, first_seen INTEGER NOT NULL, node INTEGER, carried TEXT,
         buried TEXT, aside TEXT)""",
    "CREATE INDEX identity_records_birth ON identity_records (birth)",
    "CREATE INDEX identity_records_node ON identity_records (node) WHERE node IS NOT NULL",
    """CREATE TABLE identity_nodes (
         id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, text TEXT NOT NULL, links TEXT NOT NULL,
         rows INTEGER NOT NULL, first_seen INTEGER NOT NULL, first_key TEXT NOT NULL, component INTEGER, profile TEXT,
         suspect INTEGER NOT NULL, muted TEXT, lone INTEGER)""",
    "CREATE INDEX identity_nodes_component ON identity_nodes (component) WHERE component IS NOT NULL",
    # A node that stands alone is found by a checksum of what it holds; the others are found by their links.
    "CREATE INDEX identity_nodes_lone ON identity_nodes (lone) WHERE lone IS NOT NULL",
    "CREATE TABLE identity_links (link TEXT, node INTEGER, PRIMARY KEY (link, node)) WITHOUT ROWID",
    """CREATE TABLE identity_crowds (
         link TEXT PRIMARY KEY, records INTEGER NOT NULL, rows INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE identity_truncations (
         tenant TEXT, source TEXT, entity TEXT, partition INTEGER, position TEXT NOT NULL,
         PRIMARY KEY (partition, tenant, source, entity)) WITHOUT ROWID""",
    # Records that are gone, by digests of what they held: for erasures.
    "CREATE TABLE identity_buried (digest TEXT, record INTEGER, PRIMARY KEY (digest, record)) WITHOUT ROWID",
    """CREATE TABLE identity_erased (
         birth TEXT PRIMARY KEY, place INTEGER NOT NULL, position TEXT NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE identity_counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO identity_counters VALUES ('generation', 0), ('node', 0)",
    "CREATE TABLE identity_settings (fingerprint TEXT)",
    # Records that were told to be somebody's before everything was worked out anew.
    "CREATE TABLE identity_ghosts (key TEXT PRIMARY KEY, first_seen INTEGER NOT NULL) WITHOUT ROWID",
)


def checksum(tenant: str, text: str) -> int:
    """Return the checksum by which a node that nothing links is found."""
    return zlib.crc32(text.encode(), zlib.crc32(tenant.encode()))


def as_json(values: Iterable[object]) -> tuple[str]:
    """Return values as the one parameter that `json_each` takes."""
    return (orjson.dumps(list(values)).decode(),)
