"""TLS and logins on a real broker: what is set gets in, and what is set wrong is told."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.kernel.errors import HeadwaterError, InvalidInputError, UnavailableError
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import Message, Progress, Tally
from services.kernel.topics import CHANGES, RATINGS, TOPICS
from tests.engines.kafka_tls import KEY_PASSWORD, PASSWORD, USER, SecureKafka

pytestmark = [pytest.mark.slow, pytest.mark.engine]
NOT_LONG_S = 20.0
SETTLE_S = (
    0.3  # aiokafka does not wait for the end of a connection that was refused: the event loop must not end before
)


def tls(kafka: SecureKafka, **changes: Any) -> KafkaSettings:
    """With a certificate of this client's own."""
    settings = KafkaSettings(
        kafka.tls, prefix=f"{uuid.uuid4().hex}.", replication=1, security_protocol="SSL",
        ssl_cafile=str(kafka.keys / "ca.pem"), ssl_certfile=str(kafka.keys / "client.pem"),
        ssl_keyfile=str(kafka.keys / "client.key"), ssl_password=KEY_PASSWORD,
    )  # fmt: skip
    return replace(settings, **changes)


def login(kafka: SecureKafka, **changes: Any) -> KafkaSettings:
    """With a user and a password."""
    settings = KafkaSettings(
        kafka.login, prefix=f"{uuid.uuid4().hex}.", replication=1, security_protocol="SASL_SSL",
        ssl_cafile=str(kafka.keys / "ca.pem"), sasl_username=USER, sasl_password=PASSWORD,
    )  # fmt: skip
    return replace(settings, **changes)


async def refused(settings: KafkaSettings) -> HeadwaterError:
    log = KafkaLog(settings)
    async with asyncio.timeout(NOT_LONG_S):
        with pytest.raises(HeadwaterError) as refusal:
            await log.start()
        await log.close()
    await asyncio.sleep(SETTLE_S)
    return refusal.value


@pytest.fixture(params=["certificate", "SCRAM-SHA-512", "PLAIN"])
def settings(secure_kafka: SecureKafka, request: pytest.FixtureRequest) -> Iterator[KafkaSettings]:
    if request.param == "certificate":
        yield tls(secure_kafka)
    else:
        yield login(secure_kafka, sasl_mechanism=request.param)


async def test_every_client_of_the_log_gets_in(settings: KafkaSettings) -> None:
    log = KafkaLog(settings, partitions=1)
    await log.start()
    await log.create_topics(TOPICS)
    sent = [Message(CHANGES, b"k", str(n).encode(), "test", n) for n in range(100)]
    await log.append(sent)
    assert [(each.value, each.timestamp_ms) for each in await log.read(CHANGES, 0, 0)] == [
        (each.value, each.timestamp_ms) for each in sent
    ]
    member = log.consumer("g", [CHANGES])
    batch = await member.poll(100, 1 << 20)
    outputs = [Message(RATINGS, each.key, each.value, "test", 1) for each in batch.records]
    async with member.unit():
        await member.commit(
            Progress("g", CHANGES, 0, batch.start, batch.next_offset, outputs, Tally(applied=len(outputs)))
        )
    assert (await log.committed("g"))[CHANGES, 0] == batch.next_offset
    assert len(await log.read(RATINGS, 0, 0)) == len(outputs) > 0
    await member.close()
    await log.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sasl_password": "wrong"}, "[kafka] sasl_username, sasl_password"),
        ({"sasl_password": "wrong", "sasl_mechanism": "PLAIN"}, "[kafka] sasl_username, sasl_password"),
        ({"sasl_username": "nobody"}, "does not let 'nobody' in by SCRAM-SHA-512"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "[kafka] sasl_mechanism"),
        ({"ssl_cafile": ""}, "[kafka] ssl_cafile"),
    ],
)
async def test_a_login_that_is_refused_says_what_to_change(
    secure_kafka: SecureKafka, changes: dict[str, Any], words: str
) -> None:
    error = await refused(login(secure_kafka, **changes))
    assert isinstance(error, InvalidInputError)
    assert words in str(error)


async def test_a_certificate_that_is_refused_says_what_to_change(secure_kafka: SecureKafka) -> None:
    stranger = await refused(tls(secure_kafka, ssl_cafile=str(secure_kafka.keys / "stranger.pem")))
    assert isinstance(stranger, InvalidInputError)
    assert "[kafka] ssl_cafile" in str(stranger)
    without = await refused(tls(secure_kafka, ssl_certfile="", ssl_keyfile=""))
    assert isinstance(without, InvalidInputError)
    assert "[kafka] ssl_certfile, ssl_keyfile" in str(without)
    other_name = await refused(tls(secure_kafka, bootstrap_servers=secure_kafka.tls.replace("127.0.0.1", "localhost")))
    assert isinstance(other_name, InvalidInputError)
    assert "[kafka] bootstrap_servers" in str(other_name)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
async def test_another_protocol_is_suspected_where_the_broker_only_hangs_up(
    secure_kafka: SecureKafka, protocol: str
) -> None:
    error = await refused(login(secure_kafka, security_protocol=protocol))
    assert isinstance(error, UnavailableError)  # it may be restarting
    assert f"[kafka] security_protocol is {protocol}" in str(error)


async def test_a_login_where_none_is_wanted_is_told(secure_kafka: SecureKafka) -> None:
    error = await refused(tls(secure_kafka, security_protocol="SASL_SSL", sasl_username=USER, sasl_password=PASSWORD))
    assert isinstance(error, InvalidInputError)
    assert "security_protocol" in str(error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ssl_cafile": "/nowhere"}, "ssl_cafile '/nowhere'"),
        ({"ssl_password": ""}, "ssl_password"),  # which OpenSSL must not ask for at the terminal
        ({"ssl_password": "wrong"}, "ssl_password"),
        ({"ssl_certfile": "/nowhere"}, "ssl_certfile '/nowhere'"),
    ],
)
def test_files_that_cannot_be_used_are_named(secure_kafka: SecureKafka, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        tls(secure_kafka, **changes).connection()


@pytest.mark.parametrize(("password", "status"), [(PASSWORD, 0), ("wrong", 1)])
def test_a_process_takes_its_password_from_the_environment(
    secure_kafka: SecureKafka, tmp_path: Path, password: str, status: int
) -> None:
    (tmp_path / "headwater.toml").write_text(
        f'[kafka]\nbootstrap_servers = "{secure_kafka.login}"\nprefix = "{uuid.uuid4().hex}."\nreplication = 1\n'
        f'security_protocol = "SASL_SSL"\nssl_cafile = "{secure_kafka.keys / "ca.pem"}"\nsasl_username = "{USER}"\n'
    )
    found = subprocess.run(
        [sys.executable, "-m", "services.kernel.create_topics"],
        env={**os.environ, "HEADWATER_CONFIG": str(tmp_path / "headwater.toml"),
             "HEADWATER__KAFKA__SASL_PASSWORD": password},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == status, found.stderr
    assert status == 0 or "[kafka] sasl_username, sasl_password" in found.stderr.splitlines()[-1]
