"""The table [kafka] of the configuration: where the cluster is, and how one gets in."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.kernel.errors import InvalidInputError
from services.kernel.settings import Section

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach a Kafka cluster.

    Attributes:
        bootstrap_servers: host:port, several separated by commas.
        prefix: begins the name of every topic, group and transactional id, on a cluster that others use too.
        replication: copies of each partition of new topics; with three or more, two must have a record before it
            is acknowledged.
        security_protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        ssl_cafile: certificates of who may sign the brokers'; empty means those of the system.
        ssl_certfile, ssl_keyfile, ssl_password: this client's own certificate, its key, and that one's password.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        sasl_username, sasl_password: who this client is.
    """

    bootstrap_servers: str
    prefix: str = ""
    replication: int = 3
    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_password: str = ""
    sasl_mechanism: str = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: str = ""

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "KafkaSettings":
        """Read the table [kafka]; raises InvalidInputError naming what is wrong with it."""
        read = Section("kafka", table, cls(""))
        settings = cls(
            bootstrap_servers=read.text("bootstrap_servers", required=True),
            prefix=read.text("prefix"),
            replication=read.whole("replication", 1, 32),
            security_protocol=read.choice("security_protocol", PROTOCOLS),
            ssl_cafile=read.text("ssl_cafile"),
            ssl_certfile=read.text("ssl_certfile"),
            ssl_keyfile=read.text("ssl_keyfile"),
            ssl_password=read.text("ssl_password"),
            sasl_mechanism=read.choice("sasl_mechanism", MECHANISMS),
            sasl_username=read.text("sasl_username"),
            sasl_password=read.text("sasl_password"),
        )
        if settings.security_protocol.startswith("SASL") and not (settings.sasl_username and settings.sasl_password):
            raise read.refusal("sasl_username", f"and sasl_password must be set for {settings.security_protocol}")
        if settings.ssl_keyfile and not settings.ssl_certfile:
            raise read.refusal("ssl_certfile", "must be set where ssl_keyfile is")
        return settings

    def connection(self) -> dict[str, Any]:
        """Return the arguments that every client of aiokafka takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        from aiokafka.helpers import create_ssl_context

        try:
            context: ssl.SSLContext = create_ssl_context(cafile=self.ssl_cafile or None)
        except OSError as error:  # the file is missing, or holds no certificate
            raise InvalidInputError(f"[kafka] ssl_cafile {self.ssl_cafile!r}: {error}") from error
        if self.ssl_certfile:
            try:
                # An empty password rather than none: OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile or None, self.ssl_password)
            except OSError as error:
                raise InvalidInputError(
                    f"[kafka] ssl_certfile {self.ssl_certfile!r}, ssl_keyfile {self.ssl_keyfile!r}, ssl_password: "
                    f"{error}: give a certificate and its key as PEM files, and the key's password if it has one"
                ) from error
        return context
