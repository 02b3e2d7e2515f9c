"""How the identity graph lies in Neo4j: its labels, and what is made certain of them.

    (:IdentityRecord)-[:HOLDS]->(:IdentityContent)-[:NAMES]->(:IdentityLink)

A record holds a content, which names identifiers; contents that identifiers join have one `component`. A node
`IdentityComponent` stands for each of these to be claimed by. All else lies beside the graph. Every label has one key;
Community Edition knows no keys of nodes, but what is unique has an index, and of two workers that MERGE one value at
the same time, one waits for the other.
"""

import hashlib

from services.identity_graph.model import OVERGROWN
from services.kernel.log import SEPARATOR

KEYS = (
    ("IdentityRecord", "key"),
    ("IdentityContent", "id"),
    ("IdentityContent", "digest"),
    ("IdentityLink", "link"),
    ("IdentityComponent", "id"),
    ("IdentityLane", "name"),  # how far the store is in a partition; whoever claims it works on the partition alone
    ("IdentityTruncation", "name"),
    ("IdentityErased", "birth"),
    ("IdentityGhost", "key"),  # told to be somebody's before everything was worked out anew
    ("IdentitySource", "name"),  # what a source told of itself, by partition
    ("IdentityErasure", "id"),
    ("IdentityAnswer", "name"),
    ("IdentitySettings", "name"),
)
INDEXES = (
    ("IdentityRecord", "birth"),
    ("IdentityContent", "component"),
    ("IdentityBuried", "digest"),  # of what records held that are gone
    ("IdentityBuried", "key"),
    ("IdentityTruncation", "partition"),
    ("IdentityAnswer", "erasure"),
)
STATEMENTS = (
    *(
        f"CREATE CONSTRAINT {label}_{key} IF NOT EXISTS FOR (n:{label}) REQUIRE n.{key} IS UNIQUE"
        for label, key in KEYS
    ),
    *(f"CREATE INDEX {label}_{name} IF NOT EXISTS FOR (n:{label}) ON (n.{name})" for label, name in INDEXES),
)
FIRST = (
    f"MERGE (:IdentityComponent {{id: {OVERGROWN}}})",
    "MERGE (:IdentitySettings {name: 'settings'})",
)
GRAPH = (
    "IdentityRecord",
    "IdentityContent",
    "IdentityLink",
    "IdentityComponent",
    "IdentityTruncation",
    "IdentityBuried",
)
"""Labels of all that is worked out from the changes."""

IDS_PER_LANE = 1 << 40
"""Every partition hands out its own ids of nodes and components, so that no counter is everybody's."""


def digest_of(tenant: str, text: str) -> str:
    """Return what a content is found by."""
    return hashlib.sha256(f"{tenant}{SEPARATOR}{text}".encode()).hexdigest()[:32]


def lane_of(group: str, topic: str, partition: int) -> str:
    """Return the name of a partition's lane; the names of one topic sort as its partitions do."""
    return f"{group}{SEPARATOR}{topic}{SEPARATOR}{partition:06d}"
