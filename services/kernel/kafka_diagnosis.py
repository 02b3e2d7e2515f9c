"""Why a cluster of Kafka cannot be reached, in words that name the setting to change.

aiokafka tells its caller only that it cannot bootstrap, whether nobody listens or the password is wrong. So one more
connection is made then, to each broker in turn, whose error is told.
"""

import ssl
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from services.kernel.errors import HeadwaterError, InvalidInputError, UnavailableError
from services.kernel.kafka_settings import KafkaSettings

PATIENCE_MS = 5000  # with one broker
OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


async def unreachable(settings: KafkaSettings, error: Exception, where: str = "[kafka]") -> HeadwaterError:
    """Return the error to tell instead of what aiokafka has raised.

    Args:
        settings: how the cluster was to be reached.
        error: what was raised.
        where: the table that the settings were read from.

    Returns:
        An InvalidInputError when only other settings would help; else an UnavailableError.
    """
    connection = settings.connection()
    servers = connection.pop("bootstrap_servers")
    told = repr(error)
    for host, port, _ in collect_hosts(servers, randomize=False):
        server = f"{host}:{port}"
        try:
            found = await create_conn(host, port, request_timeout_ms=PATIENCE_MS, **connection)
        except (KafkaError, OSError, TimeoutError) as reason:
            if words := _to_change(settings, server, reason):
                return InvalidInputError(f"{where} {words}")
            told = f"{server}: {reason!r}"
            if _is_cut_off(reason):
                told += f"; {where} security_protocol is {settings.security_protocol}: if it is up, it may want another"
        else:
            await found.close()
            if not settings.security_protocol.startswith("SASL"):
                told += f"; {where} security_protocol is {settings.security_protocol}: it may want a login"
    return UnavailableError(f"Kafka at {servers}: {told}")


def _to_change(settings: KafkaSettings, server: str, reason: Exception) -> str | None:
    """Return which setting has to change, and how; None when it may be no setting at all."""
    match reason:
        case ssl.SSLCertVerificationError() if reason.verify_code in OTHER_NAME:
            return (
                f"bootstrap_servers: the certificate of {server} is for another name ({reason.verify_message}): "
                "write the name or address that is in the certificate"
            )
        case ssl.SSLCertVerificationError():
            return (
                f"ssl_cafile: the certificate of {server} is not trusted ({reason.verify_message}): "
                "name the file with the certificate of the authority that has signed it"
            )
        case SaslAuthenticationFailed() | AuthenticationFailedError():
            return (
                f"sasl_username, sasl_password: {server} does not let {settings.sasl_username!r} in by "
                f"{settings.sasl_mechanism}: give the password that the cluster has for that user"
            )
        case UnsupportedSaslMechanismError():
            return f"sasl_mechanism: {server} has no {settings.sasl_mechanism}: choose one that it has"
        case IllegalSaslStateError():
            other = "SSL" if settings.security_protocol == "SASL_SSL" else "PLAINTEXT"
            return (
                f"security_protocol: {server} wants no login: set it to {other}, or name the port of a listener "
                "that wants one"
            )
    if isinstance(reason.__cause__, ssl.SSLError):  # what the broker says when the handshake is through for us
        return (
            f"ssl_certfile, ssl_keyfile: {server} does not take this client's certificate, or wants one "
            f"({reason.__cause__.reason}): name one that the cluster trusts"
        )
    return None


def _is_cut_off(reason: Any) -> bool:
    return isinstance(reason, ConnectionResetError | KafkaError | ssl.SSLError)
