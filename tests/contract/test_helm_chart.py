"""The Helm chart: what it renders is valid for Kubernetes, is locked down, and is what Headwater reads.

Skipped where there is no Helm; `make helm` builds it and runs these tests.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.kernel.settings import load

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/headwater"
TOOLS = Path(
    subprocess.run(
        ["bash", ROOT / "tests/engines/helm.sh", "where"], check=True, capture_output=True, text=True
    ).stdout.strip()
)
HELM = TOOLS / "bin/helm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HELM.is_file(), reason="there is no Helm: `make helm` builds it and runs these tests"),
]

CASES: Mapping[str, Mapping[str, Any]] = {
    "the defaults": {},
    "everything that can be set": {
        "image": {"repository": "registry.example/headwater", "tag": "1.2.3", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "fullnameOverride": "context",
        "config": 'partitions = 8\n\n[rag_gateway.llm]\nbase_url = "https://models.example/v1"\nmodel = "m"\n'
        'api_key_env = "MODELS_KEY"\n',
        "services": {
            "headwater": {
                "env": [{"name": "HEADWATER__RAG_GATEWAY__TOP_K", "value": "12"}],
                "secretEnv": [{"name": "MODELS_KEY", "secret": "models", "key": "api-key"}],
                "storage": {"size": "1Ti", "className": "fast", "accessMode": "ReadWriteOncePod"},
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "8Gi"}},
                "podAnnotations": {"example.com/team": "context"},
                "podLabels": {"example.com/team": "context"},
                "nodeSelector": {"disktype": "ssd"},
                "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "extraVolumes": [{"name": "policies", "persistentVolumeClaim": {"claimName": "policies"}}],
                "extraVolumeMounts": [{"name": "policies", "mountPath": "/policies", "readOnly": True}],
            }
        },
        "service": {"type": "LoadBalancer", "grpcPort": 443, "httpPort": 80, "annotations": {"a": "b"}},
        "serviceAccount": {"name": "reader", "annotations": {"a": "b"}},
        "podDisruptionBudget": {"maxUnavailable": 0},
        "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"team": "context"}}}]},
    },
    "nothing that can be left out": {
        "serviceAccount": {"create": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
}
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a second replica": ({"services": {"headwater": {"replicas": 2}}}, "the embedded database has one writer"),
    "no replica": ({"services": {"headwater": {"replicas": 0}}}, "the embedded database has one writer"),
    "a misspelt setting": ({"networkPolicies": {}}, "networkPolicies"),
    "a misspelt setting of a service": ({"services": {"headwater": {"replica": 1}}}, "replica"),
    "a key in plain": ({"services": {"headwater": {"secretEnv": [{"name": "KEY", "value": "s3cret"}]}}}, "secret"),
    "a shared volume": ({"services": {"headwater": {"storage": {"accessMode": "ReadWriteMany"}}}}, "accessMode"),
    "a size that is none": ({"services": {"headwater": {"storage": {"size": "big"}}}}, "size"),
    "an image without a name": ({"image": {"repository": ""}}, "repository"),
}
Object = dict[str, Any]
Render = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def helm(tmp_path: Path) -> Render:
    """Run a command of Helm on a chart with values, without a cluster and without what a user has configured."""

    def run(*command: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> Any:
        file = tmp_path / "values.yaml"
        file.write_text(json.dumps(values or {}), encoding="utf-8")
        return subprocess.run(
            [HELM, *command, chart, "--values", file],
            capture_output=True, text=True, check=False, timeout=60,
            env={name: str(tmp_path / name) for name in ("HOME", "KUBECONFIG", "HELM_CONFIG_HOME", "HELM_CACHE_HOME")},
        )  # fmt: skip

    return run


@pytest.fixture(params=CASES)
def rendered(helm: Render, request: pytest.FixtureRequest) -> str:
    done = helm("template", "release", "--namespace", "context", values=CASES[request.param])
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def objects(text: str) -> dict[str, Object]:
    """The rendered objects by kind; there is one of each."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def pods(found: Mapping[str, Object]) -> list[Object]:
    """The specifications of all pods: the service's, and that of `helm test`."""
    return [found["StatefulSet"]["spec"]["template"]["spec"], found["Pod"]["spec"]]


def default(helm: Render, **values: Any) -> dict[str, Object]:
    done = helm("template", "release", values=values)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_the_chart_lints(helm: Render, case: str) -> None:
    done = helm("lint", "--strict", values=CASES[case])
    assert done.returncode == 0, done.stdout + done.stderr


def conform(rendered: str) -> subprocess.CompletedProcess[str]:
    """Compare with the schemas of Kubernetes."""
    location = TOOLS / "schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json"
    return subprocess.run(
        [TOOLS / "bin/kubeconform", "-strict", "-summary", "-output", "json", "-schema-location", location, "-"],
        input=rendered, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_kubernetes_knows_every_field(rendered: str) -> None:
    done = conform(rendered)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["summary"]["valid"] == len(objects(rendered))  # it passes what it does not see
    assert conform(rendered.replace("serviceName:", "servicesName:")).returncode != 0


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_work_are_refused(helm: Render, case: str) -> None:
    values, words = REFUSED[case]
    done = helm("template", "release", values=values)
    assert done.returncode != 0
    assert words in done.stderr


def test_every_pod_is_locked_down(rendered: str) -> None:
    for pod in pods(objects(rendered)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_one_pod_keeps_its_data_on_a_claim(rendered: str) -> None:
    spec = objects(rendered)["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/data"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 10  # a batch in hand is finished


def test_health_is_asked_by_grpc(rendered: str) -> None:
    (container,) = objects(rendered)["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": ports["grpc"]}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 300


def test_the_names_lead_from_one_object_to_the_other(rendered: str) -> None:
    found = objects(rendered)
    spec = found["StatefulSet"]["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    selectors = [spec["selector"]["matchLabels"], found["Service"]["spec"]["selector"]]
    if "PodDisruptionBudget" in found:
        selectors.append(found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    if "NetworkPolicy" in found:
        selectors.append(found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= found["Pod"]["metadata"]["labels"].items()  # the test's pod serves nothing
    assert spec["serviceName"] == found["Service"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    account = found["ServiceAccount"]["metadata"]["name"] if "ServiceAccount" in found else "default"
    assert {each["serviceAccountName"] for each in pods(found)} == {account}
    port = next(port["port"] for port in found["Service"]["spec"]["ports"] if port["name"] == "grpc")
    assert found["Pod"]["spec"]["containers"][0]["command"][-1] == f"{found['Service']['metadata']['name']}:{port}"


def test_headwater_reads_what_the_chart_configures(rendered: str, tmp_path: Path) -> None:
    found = objects(rendered)
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (file,) = found["ConfigMap"]["data"]
    assert environment.pop("HEADWATER_CONFIG") == f"{mounts['config']}/{file}"
    config = tmp_path / file
    config.write_text(found["ConfigMap"]["data"][file], encoding="utf-8")
    settings = load(config, environment)
    assert settings.data == Path(mounts["data"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.grpc_address == f"0.0.0.0:{ports['grpc']}"
    assert settings.http_address == f"0.0.0.0:{ports['http']}"


def test_keys_come_from_secrets_by_reference(helm: Render) -> None:
    found = default(helm, **CASES["everything that can be set"])
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    (key,) = [each for each in container["env"] if each["name"] == "MODELS_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "models", "key": "api-key"}}
    assert "Secret" not in found


def test_only_the_namespace_may_reach_it_by_default(helm: Render) -> None:
    policy = default(helm)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": "grpc"}, {"port": "http"}]}]
    assert default(helm)["Service"]["spec"]["type"] == "ClusterIP"


def test_another_configuration_is_another_pod_and_the_same_one_is_not(helm: Render) -> None:
    def pod(config: str) -> Any:
        return default(helm, config=config)["StatefulSet"]["spec"]["template"]

    assert pod("partitions = 8") == pod("partitions = 8")
    assert pod("partitions = 8") != pod("partitions = 4")


@pytest.mark.parametrize("release", ["headwater", "my-headwater", "a" * 53])
def test_names_are_short_enough_for_what_kubernetes_puts_behind_them(helm: Render, release: str) -> None:
    done = helm("template", release)
    for found in objects(done.stdout).values():
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", found["metadata"]["name"])
    assert len(objects(done.stdout)["StatefulSet"]["metadata"]["name"]) <= 52


@pytest.mark.parametrize("case", CASES)
def test_the_notes_say_what_to_do_next_and_who_can_reach_it(helm: Render, case: str, tmp_path: Path) -> None:
    # Helm shows the notes only when it has a cluster: render them as an object's text.
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates/notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes.txt") . | quote }}', encoding="utf-8")
    done = helm("template", "release", "--show-only", "templates/notes.yaml", values=CASES[case], chart=chart)
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["notes"]
    assert "port-forward service/" in notes
    assert "no authentication" in notes
    assert ("WARNING" in notes) == (case != "the defaults")
