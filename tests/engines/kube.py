"""A Kubernetes control plane for tests: a real API server, controllers and scheduler, and a node that runs nothing."""

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.engines import HERE, free_ports

SCRIPT = HERE / "kube.sh"


class Answer(NamedTuple):
    """What the API server answers: the status of HTTP, the object, and what it warns of."""

    status: int
    body: dict[str, Any]
    warnings: list[str]


class Kube:
    """A control plane of its own data folder; pods on its node become ready, and nothing runs in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(5)
        self.kubeconfig = folder / "kubeconfig"

    def start(self) -> None:
        self._run("start", str(self.folder))
        config = yaml.safe_load(self.kubeconfig.read_text(encoding="utf-8"))
        self._server = config["clusters"][0]["cluster"]["server"]
        self._token = config["users"][0]["user"]["token"]
        self._tls = ssl.create_default_context(cafile=str(self.folder / "keys/ca.crt"))

    def stop(self) -> None:
        self._run("stop", str(self.folder))

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, kind: str = "application/json"
    ) -> Answer:
        """Ask the API server as an administrator; `kind` is the body's media type."""
        request = urllib.request.Request(
            self._server + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind},
            method=method,
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )
        try:
            with opener.open(request, timeout=30) as found:
                return Answer(found.status, json.load(found), found.headers.get_all("Warning") or [])
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error), error.headers.get_all("Warning") or [])

    def _run(self, *words: str) -> None:
        environment = {**os.environ, "KUBE_PORT": str(self.port)}
        subprocess.run(
            ["bash", str(SCRIPT), *words],
            env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="session")
def kube_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    where = subprocess.run(["bash", str(SCRIPT), "where"], check=True, capture_output=True, text=True).stdout.strip()
    if not Path(where).is_dir() and not os.environ.get("HEADWATER_ENGINES"):
        pytest.skip("the control plane is not built: run `make kube`, or set HEADWATER_ENGINES=1")
    engine = Kube(tmp_path_factory.mktemp("kube"))
    engine.start()
    yield engine
    engine.stop()
