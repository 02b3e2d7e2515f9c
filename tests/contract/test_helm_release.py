"""The Helm chart on a real API server: it is admitted, installed, upgraded, rolled back, tested and taken away.

Nothing runs in the pods: their node only plays them. `make kube` builds what these tests need, and runs them.
"""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from services.kernel.settings import SERVICES
from services.kernel.topics import TOPICS
from tests.engines import Kafka
from tests.engines.helm import CASES, ENDPOINTS, HELM, Object, render, run
from tests.engines.kube import Answer, Kube, kube_engine

__all__ = ["kube_engine"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HELM.is_file(), reason="there is no Helm: `make kube` builds it and runs these tests"),
]

NAMES = [f"headwater-{name.replace('_', '-')}" for name in SERVICES]
NUMBERS = itertools.count(1)
PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
}
NEVER = {"services": {"profile": {"nodeSelector": {"no": "such-node"}}}}


class Namespace(NamedTuple):
    """A namespace with the strictest rules for pods, and Helm at work in it."""

    kube: Kube
    name: str

    def helm(self, *command: str, **options: Any) -> Any:
        return run(*command, "--namespace", self.name, kubeconfig=self.kube.kubeconfig, **options)

    def done(self, *command: str, **options: Any) -> str:
        """Run a command of Helm that must succeed."""
        finished = self.helm(*command, **options)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return str(finished.stdout)

    def get(self, kind: str, name: str = "") -> Any:
        """One object, or all of a kind; None when there is none of that name."""
        found = self.kube.ask("GET", PATHS[kind].format(self.name) + (f"/{name}" if name else ""))
        return (found.body if name else found.body["items"]) if found.status == 200 else None

    def create(self, found: Object, query: str = "") -> Answer:
        return self.kube.ask("POST", PATHS[found["kind"]].format(self.name) + query, found)

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.get(kind)}


@pytest.fixture
def namespace(kube_engine: Kube) -> Iterator[Namespace]:
    name = f"context-{next(NUMBERS)}"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    made = kube_engine.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    assert made.status == 201, made.body
    yield Namespace(kube_engine, name)
    kube_engine.ask("DELETE", f"/api/v1/namespaces/{name}")


def eventually(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.2)
    return found


def available(namespace: Namespace) -> dict[str, int]:
    return {
        each["metadata"]["name"]: each["status"].get("availableReplicas", 0) for each in namespace.get("Deployment")
    }


def templates(namespace: Namespace) -> dict[str, Any]:
    return {each["metadata"]["name"]: each["spec"]["template"] for each in namespace.get("Deployment")}


def config(namespace: Namespace, name: str) -> str:
    return str(namespace.get("ConfigMap", name)["data"]["headwater.toml"])


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_every_object_and_pod_security_every_pod(namespace: Namespace, case: str) -> None:
    for found in render(CASES[case]):
        if found["kind"] == "PodMonitor":
            continue  # a kind of the Prometheus operator's, which this server does not have
        found["metadata"].pop("namespace", None)
        answer = namespace.create(found, "?dryRun=All&fieldValidation=Strict")
        assert (answer.status, answer.warnings) == (201, []), answer
        if found["kind"] in {"Deployment", "Job"}:  # of these only the pods are refused, later
            pod = {"apiVersion": "v1", "kind": "Pod", **found["spec"]["template"]}
            pod["metadata"]["name"] = "pod"
            pod["spec"]["serviceAccountName"] = "default"
            answer = namespace.create(pod, "?dryRun=All&fieldValidation=Strict")
            assert (answer.status, answer.warnings) == (201, []), answer


def test_pod_security_is_really_asked(namespace: Namespace) -> None:
    (pod,) = [found for found in render(ENDPOINTS) if found["kind"] == "Pod"]
    pod["metadata"].pop("namespace", None)
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    answer = namespace.create(pod, "?dryRun=All")
    assert answer.status == 403
    assert "violates PodSecurity" in answer.body["message"]


def test_an_installation_waits_until_every_pod_is_ready(namespace: Namespace) -> None:
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS)
    assert available(namespace) == {name: 1 if name == "headwater-feedback" else 2 for name in NAMES}
    # What came before the services is gone once it has done its work.
    assert not namespace.get("Job")
    assert "headwater-topics" not in namespace.names("ConfigMap") | namespace.names("NetworkPolicy")


def test_an_upgrade_replaces_the_pods_that_it_concerns_and_a_rollback_brings_them_back(namespace: Namespace) -> None:
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS)
    before = templates(namespace)
    changed = {"services": {"profile": {"config": "[profile]\nrecords_max = 9"}}}
    namespace.done("upgrade", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS, also=changed)
    after = templates(namespace)
    assert {name for name in NAMES if before[name] != after[name]} == {"headwater-profile"}
    assert "records_max = 9" in config(namespace, "headwater-profile")
    namespace.done("rollback", "headwater", "--wait", "--timeout", "90s", chart=None)
    assert templates(namespace) == before
    assert "records_max" not in config(namespace, "headwater-profile")
    assert set(available(namespace).values()) == {1, 2}


def test_an_upgrade_that_does_not_get_ready_is_taken_back_and_the_old_pods_serve_on(namespace: Namespace) -> None:
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS)
    before = templates(namespace)
    failed = namespace.helm("upgrade", "headwater", "--atomic", "--timeout", "15s", values=ENDPOINTS, also=NEVER)
    assert failed.returncode != 0
    assert "has been rolled back" in failed.stderr
    assert templates(namespace) == before
    assert set(available(namespace).values()) == {1, 2}
    assert '"status":"deployed"' in namespace.done("status", "headwater", "--output", "json", chart=None)


def test_an_installation_that_does_not_get_ready_leaves_nothing(namespace: Namespace) -> None:
    failed = namespace.helm("install", "headwater", "--atomic", "--timeout", "15s", values=ENDPOINTS, also=NEVER)
    assert failed.returncode != 0
    for kind in PATHS.keys() - {"ConfigMap", "ServiceAccount", "Pod"}:
        assert not namespace.get(kind), kind
    assert not {each for each in namespace.names("ConfigMap") if each.startswith("headwater")}
    assert namespace.names("ServiceAccount") == {"default"}
    eventually(lambda: not namespace.get("Pod"))


def test_without_topics_no_service_is_installed(namespace: Namespace) -> None:
    late = {"topics": {"deadlineSeconds": 10}, "services": {"ingest": {"nodeSelector": {"no": "such-node"}}}}
    failed = namespace.helm("install", "headwater", "--timeout", "60s", values=ENDPOINTS, also=late)
    assert failed.returncode != 0
    assert "DeadlineExceeded" in failed.stderr
    assert not namespace.get("Deployment")
    assert namespace.names("Job") == {"headwater-topics"}  # for its log
    namespace.done("upgrade", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS)
    assert available(namespace).keys() == set(NAMES)
    assert not namespace.get("Job")


async def test_what_the_job_runs_makes_the_topics(kafka_engine: Kafka, tmp_path: Path) -> None:
    prefix = f"{tmp_path.name}."
    kafka = {"bootstrapServers": kafka_engine.address, "replication": 1, "prefix": prefix}
    found = render({**ENDPOINTS, "config": "partitions = 3", "kafka": kafka})
    (job,) = [each for each in found if each["kind"] == "Job"]
    (config,) = [each for each in found if each["kind"] == "ConfigMap" and each["metadata"]["name"] == config_of(job)]
    (tmp_path / "headwater.toml").write_text(config["data"]["headwater.toml"], encoding="utf-8")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    environment["HEADWATER_CONFIG"] = str(tmp_path / "headwater.toml")
    command = [sys.executable, *container["command"][1:]]
    for _ in range(2):  # topics that are there stay
        await asyncio.to_thread(subprocess.run, command, env={**os.environ, **environment}, check=True, timeout=90)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_engine.address)
    await admin.start()
    made = await admin.describe_topics([f"{prefix}{topic.name}" for topic in TOPICS])
    await admin.close()
    partitions = {each["topic"]: len(each["partitions"]) for each in made}
    assert partitions == {f"{prefix}{topic.name}": topic.partitions or 3 for topic in TOPICS}


def config_of(job: Object) -> str:
    (name,) = [each["configMap"]["name"] for each in job["spec"]["template"]["spec"]["volumes"] if "configMap" in each]
    return str(name)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_the_release_s_test_says_whether_every_service_is_well(namespace: Namespace, phase: str) -> None:
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS)

    def end() -> None:  # as the node would, if it ran anything
        eventually(lambda: namespace.get("Pod", "headwater-test") is not None)
        namespace.kube.ask(
            "PATCH",
            f"{PATHS['Pod'].format(namespace.name)}/headwater-test/status",
            {"status": {"phase": phase}},
            "application/merge-patch+json",
        )

    node = threading.Thread(target=end)
    node.start()
    tested = namespace.helm("test", "headwater", "--timeout", "60s", chart=None)
    node.join()
    assert (tested.returncode == 0) == (phase == "Succeeded"), tested.stdout + tested.stderr
    assert (namespace.get("Pod", "headwater-test") is None) == (phase == "Succeeded")  # else its log is of interest


def test_an_autoscaler_s_word_outlives_an_upgrade(namespace: Namespace) -> None:
    scaled = {"services": {"profile": {"autoscaling": {"enabled": True, "minReplicas": 3}}}}
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS, also=scaled)
    eventually(lambda: namespace.get("Deployment", "headwater-profile")["spec"]["replicas"] == 3)
    changed = {"services": {"profile": {**scaled["services"]["profile"], "config": "[profile]\nrecords_max = 9"}}}
    namespace.done("upgrade", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS, also=changed)
    assert namespace.get("Deployment", "headwater-profile")["spec"]["replicas"] == 3


def test_one_process_keeps_its_data_when_it_is_taken_away(namespace: Namespace) -> None:
    volume(namespace.kube, "embedded")
    values = {"mode": "embedded", "embedded": {"storage": {"size": "1Gi", "className": "embedded"}}}
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=values)
    assert available(namespace) == {"headwater": 1}
    namespace.done("uninstall", "headwater", "--wait", "--timeout", "60s", chart=None)
    assert not namespace.get("Deployment")
    assert namespace.names("PersistentVolumeClaim") == {"headwater"}


def volume(kube: Kube, name: str) -> None:
    """A volume that a claim of the class `name` gets; there is no provisioner."""
    made = kube.ask(
        "POST",
        "/api/v1/persistentvolumes",
        {
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": name,
                "hostPath": {"path": "/nowhere"},
            },
        },
    )
    assert made.status in {201, 409}, made.body


def test_a_release_that_is_taken_away_leaves_nothing_but_volumes(namespace: Namespace) -> None:
    volume(namespace.kube, "lake")
    kept: Mapping[str, Any] = {"services": {"feedback": {"storage": {"size": "1Gi", "className": "lake"}}}}
    namespace.done("install", "headwater", "--wait", "--timeout", "90s", values=ENDPOINTS, also=kept)
    namespace.done("uninstall", "headwater", "--wait", "--timeout", "60s", chart=None)
    for kind in PATHS.keys() - {"ConfigMap", "ServiceAccount", "Pod", "PersistentVolumeClaim"}:
        assert not namespace.get(kind), kind
    assert namespace.names("PersistentVolumeClaim") == {"headwater-feedback"}
