from typing import Any

import pytest

from services.kernel.errors import InvalidInputError
from services.kernel.kafka_settings import KafkaSettings

LOGIN = {"sasl_username": "u", "sasl_password": "p"}


def test_a_plain_cluster_needs_only_its_address() -> None:
    settings = KafkaSettings.from_config({"bootstrap_servers": "a:1,b:2"})
    assert settings.connection() == {"bootstrap_servers": "a:1,b:2", "security_protocol": "PLAINTEXT"}


def test_a_login_is_passed_on() -> None:
    table = {"bootstrap_servers": "a:1", "security_protocol": "SASL_PLAINTEXT", **LOGIN}
    connection = KafkaSettings.from_config(table).connection()
    assert connection["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (connection["sasl_plain_username"], connection["sasl_plain_password"]) == ("u", "p")


def test_tls_brings_a_context() -> None:
    pytest.importorskip("aiokafka")
    connection = KafkaSettings.from_config({"bootstrap_servers": "a:1", "security_protocol": "SSL"}).connection()
    assert connection["ssl_context"].check_hostname


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "bootstrap_servers is missing"),
        ({"bootstrap_servers": "a:1", "bootstrap": "b"}, "bootstrap is not a setting"),
        ({"bootstrap_servers": "a:1", "security_protocol": "TLS"}, "must be one of PLAINTEXT"),
        ({"bootstrap_servers": "a:1", "security_protocol": "SASL_SSL"}, "must be set for SASL_SSL"),
        ({"bootstrap_servers": "a:1", "ssl_keyfile": "k"}, "ssl_certfile must be set"),
        ({"bootstrap_servers": "a:1", "replication": 0}, "replication must be a whole number"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        KafkaSettings.from_config(table)


def test_a_certificate_that_is_not_there_is_named() -> None:
    pytest.importorskip("aiokafka")
    table = {"bootstrap_servers": "a:1", "security_protocol": "SSL", "ssl_cafile": "/nowhere/ca.pem"}
    with pytest.raises(InvalidInputError, match=r"\[kafka\] ssl_cafile"):
        KafkaSettings.from_config(table).connection()
