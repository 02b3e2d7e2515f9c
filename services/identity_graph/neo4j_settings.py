"""The table [neo4j] of the configuration: where the graph is, and how one gets in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.kernel.settings import Section

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
SCHEMES = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")


@dataclass(frozen=True, slots=True)
class Neo4jSettings:
    """How to reach a Neo4j server.

    Attributes:
        uri: bolt://host:port, or neo4j://host:port for a cluster; +s after the scheme for TLS, +ssc for TLS with a
            certificate that nobody has signed.
        username, password: who this client is; empty where the server asks nobody.
        database: the name of the database.
        prefix: begins the labels of all nodes, in a database that others use too.
        connections_max: connections of this process.
        connect_timeout_s: how long a connection may take to open.
        timeout_s: how long a unit of work may take; the server ends it then, and lets go of what it held.
    """

    uri: str
    username: str = ""
    password: str = ""
    database: str = "neo4j"
    prefix: str = ""
    connections_max: int = 20
    connect_timeout_s: float = 5.0
    timeout_s: float = 60.0

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Neo4jSettings":
        """Read the table [neo4j]; raises InvalidInputError naming what is wrong with it."""
        read = Section("neo4j", table, cls(""))
        settings = cls(
            uri=read.text("uri", required=True),
            username=read.text("username"),
            password=read.text("password"),
            database=read.text("database"),
            prefix=read.text("prefix"),
            connections_max=read.whole("connections_max", 3, 1000),
            connect_timeout_s=read.number("connect_timeout_s", 0.1),
            timeout_s=read.number("timeout_s", 1.0),
        )
        scheme, _, address = settings.uri.partition("://")
        if scheme not in SCHEMES or not address:
            raise read.refusal("uri", "must be like bolt://host:7687; it may begin with " + ", ".join(SCHEMES))
        if settings.prefix and not _LABEL.fullmatch(settings.prefix):
            raise read.refusal("prefix", "must be letters, digits and underscores, a letter first")
        if bool(settings.username) != bool(settings.password):
            raise read.refusal("password", "and username go together: set both, or none")
        return settings
