"""A broker that speaks TLS: to clients with a certificate of their own, and to those that log in."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import Kafka, need_kafka

USER, PASSWORD = "headwater", "12345678"  # of digits only: it must stay a text on its way through the settings
KEY_PASSWORD = "of-the-key"


class SecureKafka(Kafka):
    """A broker with TLS.

    Attributes:
        tls: the address for clients with a certificate.
        login: the address for `USER` with `PASSWORD`, by PLAIN or SCRAM-SHA-512.
        keys: the folder with `ca.pem`, `client.pem` and `client.key` (whose password is `KEY_PASSWORD`), and with
            `stranger.pem`, the certificate of an authority that has signed nothing here.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = folder / "keys"
        self.tls, self.login = f"127.0.0.1:{self.port + 4}", f"127.0.0.1:{self.port + 5}"
        self.options = {"KAFKA_TLS": str(self.keys), "KAFKA_PASSWORD": PASSWORD}

    def start(self) -> None:
        if not self.keys.exists():
            self._make_keys()
        super().start()

    def _make_keys(self) -> None:
        self.keys.mkdir(parents=True)
        for name in ("ca", "stranger"):
            self._openssl(
                f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            )
        self._sign("broker", "-noenc", "subjectAltName=IP:127.0.0.1")
        self._sign("client", f"-passout pass:{KEY_PASSWORD}", "extendedKeyUsage=clientAuth")
        broker = self.keys / "broker.pem"
        broker.write_text((self.keys / "broker.key").read_text() + broker.read_text())

    def _sign(self, name: str, key: str, extension: str) -> None:
        (self.keys / "extension").write_text(extension)
        self._openssl(f"req -newkey rsa:2048 {key} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        authority = "-CA ca.pem -CAkey ca.key -CAcreateserial"
        self._openssl(f"x509 -req -in {name}.csr {authority} -days 2 -extfile extension -out {name}.pem")

    def _openssl(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.keys, check=True, capture_output=True)


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    need_kafka()
    engine = SecureKafka(tmp_path_factory.mktemp("kafka-tls"))
    engine.start()
    yield engine
    engine.stop()
