"""The Helm chart: what it renders is valid for Kubernetes, is locked down, and is what Headwater reads.

Skipped where there is no Helm; `make helm` builds it and runs these tests. test_helm_release.py installs the chart.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedder.opensearch_client import OpenSearchSettings
from services.embedder.pgvector_client import PostgresSettings
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.kernel.grpc_server import LIVENESS
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.mongodb import MongoSettings
from services.kernel.settings import SERVICES, Settings, load
from tests.engines import free_ports
from tests.engines.helm import CASES, CHART, ENDPOINTS, HELM, ROOT, TOOLS, Object, objects, pods, render, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HELM.is_file(), reason="there is no Helm: `make helm` builds it and runs these tests"),
]

NAMES = [name.replace("_", "-") for name in SERVICES]
CLUSTERS = [name for name, values in CASES.items() if values.get("mode") != "embedded"]
READERS: Mapping[str, Any] = {
    "kafka": KafkaSettings,
    "neo4j": Neo4jSettings,
    "mongodb": MongoSettings,
    "opensearch": OpenSearchSettings,
    "postgresql": PostgresSettings,
}
DIGEST = f"sha256:{'0' * 64}"
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "no Kafka": ({"kafka": {"bootstrapServers": ""}}, "kafka.bootstrapServers is missing"),
    "no graph": ({"neo4j": {"uri": ""}}, "neo4j.uri is missing, which identity-graph needs"),
    "no documents": ({"mongodb": {"uri": ""}}, "mongodb.uri is missing"),
    "no place for chunks": ({"opensearch": {"url": ""}}, "either opensearch.url or postgresql.uri"),
    "two places for chunks": ({"postgresql": {"uri": "postgresql://p:5432/h"}}, "either opensearch.url or"),
    "an address without its port": ({"kafka": {"bootstrapServers": "kafka"}}, "bootstrapServers"),
    "a password in an address": ({"mongodb": {"uri": "mongodb://me:s3cret@mongodb:27017"}}, "uri"),
    "a key of no Secret": ({"neo4j": {"secretKeys": {"password": "p"}}}, "neo4j.existingSecret says of none"),
    "a secret that is no setting": ({"neo4j": {"secretKeys": {"pasword": "p"}}}, "pasword"),
    "an engine's table in the file": ({"config": "[ kafka ]\nprefix = 'a'"}, "config has the table [ kafka]"),
    "peers in a service's file": ({"services": {"profile": {"config": "[peers]"}}}, "config has the table [peers]"),
    "folders watched by two": ({"config": "[[ingest.folders]]\npath = '/a'"}, "services.ingest.singleton: true"),
    "buckets watched by two": ({"services": {"ingest": {"config": "[[ingest.buckets]]"}}}, "one pod alone can do"),
    "a scaled singleton": ({"services": {"feedback": {"replicas": 2}}}, "feedback is a singleton"),
    "an autoscaled singleton": ({"services": {"feedback": {"autoscaling": {"enabled": True}}}}, "is a singleton"),
    "a volume for many": ({"services": {"ingest": {"storage": {"size": "1Gi"}}}}, "ingest has a volume"),
    "a claim for many": ({"services": {"ingest": {"storage": {"existingClaim": "c"}}}}, "ingest has a volume"),
    "a shared volume": ({"services": {"feedback": {"storage": {"accessMode": "ReadWriteMany"}}}}, "accessMode"),
    "a range upside down": ({"defaults": {"autoscaling": {"minReplicas": 9}}}, "more than maxReplicas"),
    "no lower bound": ({"defaults": {"autoscaling": {"minReplicas": 0}}}, "minReplicas"),
    "a size that is none": ({"defaults": {"storage": {"size": "big"}}}, "size"),
    "unbounded scratch": ({"defaults": {"scratchSize": ""}}, "scratchSize"),
    "a misspelt setting": ({"networkPolicies": {}}, "networkPolicies"),
    "a misspelt setting of an engine": ({"kafka": {"bootstrapServer": "a:1"}}, "bootstrapServer"),
    "a misspelt setting of a service": ({"services": {"profile": {"replica": 1}}}, "replica"),
    "a service that is none": ({"services": {"profiles": {}}}, "profiles"),
    "an engine that is none": ({"services": {"profile": {"engines": ["redis"]}}}, "engines"),
    "a mode that is none": ({"mode": "single"}, "mode"),
    "a key in plain": ({"defaults": {"secretEnv": [{"name": "KEY", "value": "s3cret"}]}}, "secret"),
    "an image without a name": ({"image": {"repository": ""}}, "repository"),
    "a digest that is none": ({"defaults": {"image": {"digest": "sha256:0"}}}, "digest"),
    "two embedded processes": ({"mode": "embedded", "embedded": {"replicas": 2}}, "headwater is a singleton"),
    "an embedded process for many": ({"mode": "embedded", "embedded": {"singleton": False}}, "has one writer"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cluster(values: Mapping[str, Any] | None = None) -> list[Object]:
    """What a cluster's values lead to."""
    return render({**ENDPOINTS, **(values or {})})


def one(found: list[Object], kind: str, component: str) -> Object:
    """The object of a kind that belongs to a service."""
    (each,) = [each for each in found if each["kind"] == kind and component_of(each) == component]
    return each


def component_of(found: Object) -> str:
    return str(found["metadata"]["labels"]["app.kubernetes.io/component"])


def container(deployment: Object) -> Object:
    (each,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(each)


def deployments(found: list[Object]) -> dict[str, Object]:
    return {component_of(each): each for each in found if each["kind"] == "Deployment"}


def settings_of(found: list[Object], component: str, folder: Path) -> Settings:
    """What the process of a service reads, with `of-SECRET-KEY` for what is secret."""
    environment = {
        each["name"]: each.get("value") or "of-{name}-{key}".format(**each["valueFrom"]["secretKeyRef"])
        for each in container(one(found, "Deployment", component))["env"]
    }
    (mount,) = [m for m in container(one(found, "Deployment", component))["volumeMounts"] if m["name"] == "config"]
    assert environment.pop("HEADWATER_CONFIG") == mount["mountPath"]
    file = folder / "headwater.toml"
    file.write_text(one(found, "ConfigMap", component)["data"][mount["subPath"]], encoding="utf-8")
    return load(file, environment)


def test_the_chart_lints(case: str) -> None:
    done = run("lint", "--strict", values=CASES[case])
    assert done.returncode == 0, done.stdout + done.stderr


def conform(rendered: str) -> subprocess.CompletedProcess[str]:
    """Compare with the schemas of Kubernetes."""
    location = TOOLS / "schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json"
    options = ["-skip", "PodMonitor", "-strict", "-summary", "-output", "json", "-schema-location", str(location)]
    return subprocess.run(
        [TOOLS / "bin/kubeconform", *options, "-"],
        input=rendered, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_kubernetes_knows_every_field(case: str) -> None:
    rendered = run("template", "release", "--namespace", "context", values=CASES[case]).stdout
    done = conform(rendered)
    assert done.returncode == 0, done.stdout
    known = [each for each in objects(rendered) if each["kind"] != "PodMonitor"]  # which the Prometheus Operator brings
    assert json.loads(done.stdout)["summary"]["valid"] == len(known)  # it passes what it does not see
    assert conform(rendered.replace("clusterIP:", "clusterIp:")).returncode != 0


@pytest.mark.parametrize("refused", REFUSED)
def test_values_that_cannot_work_are_refused(refused: str) -> None:
    values, words = REFUSED[refused]
    done = run("template", "release", values=ENDPOINTS, also=values)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_cluster_is_every_service_and_each_has_what_it_takes() -> None:
    found = render(CASES["everything that can be set"])
    kinds = {"ConfigMap", "ServiceAccount", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}
    for name in NAMES:
        assert kinds <= {each["kind"] for each in found if component_of(each) == name}
    assert sorted(deployments(found)) == sorted(NAMES)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))


def test_every_pod_is_locked_down(case: str) -> None:
    for pod in pods(render(CASES[case])):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in each["resources"]["limits"]


def test_a_process_may_write_where_it_must(case: str) -> None:
    for deployment in deployments(render(CASES[case])).values():
        spec = deployment["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(deployment)["volumeMounts"]}
        assert mounts["/data"].keys() & {"emptyDir", "persistentVolumeClaim"}
        assert "emptyDir" in mounts["/tmp"]
        assert spec["terminationGracePeriodSeconds"] > 10  # a batch in hand is finished


def test_a_singleton_is_never_there_twice_and_the_others_are_never_away(case: str) -> None:
    found = render(CASES[case])
    for name, deployment in deployments(found).items():
        spec = deployment["spec"]
        scaled = any(each["kind"] == "HorizontalPodAutoscaler" and component_of(each) == name for each in found)
        if spec["strategy"]["type"] == "Recreate":
            assert spec["replicas"] == 1
            assert not scaled
        else:
            assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
            assert ("replicas" in spec) != scaled  # an upgrade would undo what the autoscaler has decided
            assert not any("persistentVolumeClaim" in volume for volume in spec["template"]["spec"]["volumes"])
    if "feedback" in deployments(found):  # what it keeps is in its own database
        assert deployments(found)["feedback"]["spec"]["strategy"] == {"type": "Recreate"}


def test_a_store_that_is_away_stops_calls_but_restarts_nothing(case: str) -> None:
    for deployment in deployments(render(CASES[case])).values():
        each = container(deployment)
        ports = {port["name"]: port["containerPort"] for port in each["ports"]}
        assert each["readinessProbe"]["grpc"] == {"port": ports["grpc"]}
        for probe in ("startupProbe", "livenessProbe"):
            assert each[probe]["grpc"] == {"port": ports["grpc"], "service": LIVENESS}
        assert each["startupProbe"]["periodSeconds"] * each["startupProbe"]["failureThreshold"] >= 300


def test_a_process_whose_engines_are_away_lives_and_is_not_ready(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_ports(1)}"
    found = cluster({"kafka": {"bootstrapServers": "127.0.0.1:1"}})
    file = tmp_path / "headwater.toml"
    file.write_text(one(found, "ConfigMap", "profile")["data"]["headwater.toml"], encoding="utf-8")
    environment = {"HEADWATER_CONFIG": str(file), "HEADWATER_DATA": str(tmp_path), "HEADWATER_GRPC_ADDRESS": at}
    command = container(one(found, "Deployment", "profile"))["command"][1:]
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(at) as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            alive = ask(health_pb2.HealthCheckRequest(service=LIVENESS), wait_for_ready=True, timeout=60)
            ready = ask(health_pb2.HealthCheckRequest(), timeout=60)
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        process.terminate()
        process.wait(60)


def test_the_names_lead_from_one_object_to_the_other(case: str) -> None:
    found = render(CASES[case])
    accounts = {each["metadata"]["name"] for each in found if each["kind"] == "ServiceAccount"} | {"default", "reader"}
    for name, deployment in deployments(found).items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        selectors = [deployment["spec"]["selector"]["matchLabels"]]
        for each in found:
            if component_of(each) != name:
                continue
            match each["kind"]:
                case "Service":
                    selectors.append(each["spec"]["selector"])
                    ports = {port["name"] for port in container(deployment)["ports"]}
                    assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
                case "PodDisruptionBudget":
                    selectors.append(each["spec"]["selector"]["matchLabels"])
                case "NetworkPolicy":
                    selectors.append(each["spec"]["podSelector"]["matchLabels"])
                case "HorizontalPodAutoscaler":
                    assert each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        selectors += [
            spread["labelSelector"]["matchLabels"]
            for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ]
        for selector in selectors:
            assert selector.items() <= labels.items()
            for other in pods(found, labels=True):
                assert not selector.items() <= other.items() or other == labels
        volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
        assert volumes["config"]["configMap"]["name"] == one(found, "ConfigMap", name)["metadata"]["name"]
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] in accounts


def test_headwater_reads_what_the_chart_configures(case: str, tmp_path: Path) -> None:
    found = render(CASES[case])
    for name, deployment in deployments(found).items():
        settings = settings_of(found, name, tmp_path)
        assert settings.data == Path("/data")
        ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
        assert settings.grpc_address == f"0.0.0.0:{ports['grpc']}"
        assert settings.http_address == f"0.0.0.0:{ports['http']}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_each_service_finds_all_others_at_names_that_are_all_their_pods(name: str, tmp_path: Path) -> None:
    found = render(CASES[name])
    headless = {each["metadata"]["name"] for each in found if each["kind"] == "Service" and is_headless(each)}
    for component in deployments(found):
        peers = settings_of(found, component, tmp_path).table("peers")
        assert sorted(peers) == sorted(each.replace("-", "_") for each in deployments(found))
        for address in peers.values():
            service, namespace = re.fullmatch(r"dns:///([^.]+)\.([^.]+)\.svc:7070", address).groups()  # type: ignore[union-attr]
            assert service in headless
            assert namespace == "context"


def is_headless(service: Object) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def test_each_service_knows_the_engines_that_it_uses_and_no_other(tmp_path: Path) -> None:
    found = render(CASES["everything that can be set"])
    uses = {
        "ingest": {"kafka"},
        "identity-graph": {"kafka", "neo4j"},
        "profile": {"kafka", "mongodb"},
        "embedder": {"kafka", "mongodb", "opensearch"},
        "rag-gateway": {"kafka", "mongodb"},
        "feedback": {"kafka"},
    }
    for name, engines in uses.items():
        tables = settings_of(found, name, tmp_path).tables
        assert tables.keys() & {"kafka", "neo4j", "mongodb", "opensearch", "postgresql"} == engines
    kafka = KafkaSettings.from_config(settings_of(found, "profile", tmp_path).table("kafka"))
    assert kafka == KafkaSettings(
        bootstrap_servers="kafka-0.kafka:9094,kafka-1.kafka:9095",
        prefix="2024",  # a text, though it looks like a number
        replication=2,
        security_protocol="SASL_SSL",
        ssl_cafile="/etc/headwater/kafka/ca.crt",
        sasl_username="headwater",
        sasl_password="of-kafka-credentials-password",
    )
    assert Neo4jSettings.from_config(settings_of(found, "identity-graph", tmp_path).table("neo4j")) == Neo4jSettings(
        uri="neo4j+s://graph.example:7687",
        username="of-neo4j-credentials-user",
        password="of-neo4j-credentials-word",
        connections_max=40,
        connect_timeout_s=2.5,
    )
    search = OpenSearchSettings.from_config(settings_of(found, "embedder", tmp_path).table("opensearch"))
    assert (search.ca, search.replicas) == ("/etc/headwater/opensearch/ca.crt", 2)
    chunks = settings_of(render(CASES["nothing that can be left out"]), "embedder", tmp_path).table("postgresql")
    assert PostgresSettings.from_config(chunks) == PostgresSettings(
        uri="postgresql://headwater@postgres:5432/headwater", password="of-chunks-password", connections=4
    )
    assert settings_of(found, "profile", tmp_path).table("mongodb")["uri"] == "of-mongodb-credentials-uri"


@pytest.mark.parametrize("engine", READERS)
def test_the_chart_knows_every_setting_of_an_engine_and_no_other(engine: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"][engine]["properties"]
    own = {"existingSecret", "secretKeys", "filesSecret", "ports"}
    names = (schema.keys() - own) | schema["secretKeys"]["properties"].keys()
    assert {re.sub("[A-Z]", r"_\g<0>", name).lower() for name in names} == {
        each.name for each in fields(READERS[engine])
    }


def test_every_value_is_told() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    told = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}
    own = {f"….{name}" for name in ("existingSecret", "secretKeys", "filesSecret", "ports")}
    assert told >= values.keys() | values["defaults"].keys() | values["services"]["ingest"].keys() | own


def test_keys_come_from_secrets_by_reference() -> None:
    found = render(CASES["everything that can be set"])
    key = {each["name"]: each for each in container(one(found, "Deployment", "rag-gateway"))["env"]}["MODELS_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "models", "key": "api-key"}}
    assert not any(each["kind"] == "Secret" for each in found)


def test_the_topics_are_made_before_the_services_with_what_is_there_before_them(tmp_path: Path) -> None:
    for name in CLUSTERS:
        found = render(CASES[name])
        (job,) = [each for each in found if each["kind"] == "Job"]
        own = [each for each in found if component_of(each) == "topics"]
        assert {each["metadata"]["annotations"]["helm.sh/hook"] for each in own} == {"pre-install,pre-upgrade"}
        weights = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in own}
        assert weights.pop("Job") > max(weights.values())
        spec = job["spec"]["template"]["spec"]
        assert spec["containers"][0]["command"] == ["python", "-m", "services.kernel.create_topics"]
        assert job["spec"].keys() >= {"backoffLimit", "activeDeadlineSeconds"}
        assert spec.get("serviceAccountName", "default") == "default"
        (config,) = [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
        assert config == one(found, "ConfigMap", "topics")["metadata"]["name"]
        file = tmp_path / "headwater.toml"
        file.write_text(one(found, "ConfigMap", "topics")["data"]["headwater.toml"], encoding="utf-8")
        settings = load(file, {})
        assert settings.table("kafka")["bootstrap_servers"]
        assert settings.partitions == (8 if "partitions = 8" in str(CASES[name].get("config")) else 4)
    assert not any(each["kind"] == "Job" for each in render(CASES["one process"]))


def test_the_release_s_test_asks_every_service(case: str) -> None:
    found = render(CASES[case])
    (pod,) = [each for each in found if each["kind"] == "Pod"]
    services = {each["metadata"]["name"] for each in found if each["kind"] == "Service" and is_headless(each)}
    assert {each["command"][-1] for each in pod["spec"]["containers"]} == {f"{name}:7070" for name in services}


def test_a_process_runs_its_own_service_from_its_own_image() -> None:
    found = cluster({"services": {"profile": {"image": {"digest": DIGEST}}, "embedder": {"image": {"tag": "2"}}}})
    images = {name: container(each)["image"] for name, each in deployments(found).items()}
    assert images["rag-gateway"] == "headwater-rag-gateway:0.1.0"
    assert images["profile"] == f"headwater-profile@{DIGEST}"
    assert images["embedder"] == "headwater-embedder:2"
    for name, each in deployments(found).items():
        assert container(each)["command"] == ["python", "-m", f"services.{name.replace('-', '_')}"]
        assert (ROOT / f"services/{name.replace('-', '_')}/__main__.py").is_file()
    (only,) = deployments(render(CASES["one process"])).values()
    assert (container(only)["image"], container(only)["command"]) == ("headwater:0.1.0", ["headwater", "up"])
    same = cluster({"defaults": {"image": {"repository": "all"}}})
    assert {container(each)["image"] for each in deployments(same).values()} == {"all:0.1.0"}


def test_a_service_s_own_word_goes_before_the_default() -> None:
    found = cluster(
        {
            "defaults": {"autoscaling": {"enabled": True}, "podDisruptionBudget": {"enabled": True}},
            "services": {
                "profile": {
                    "autoscaling": {"enabled": False},
                    "podDisruptionBudget": {"enabled": False},
                    "replicas": 0,
                },
                "embedder": {"resources": {"limits": {"memory": "8Gi"}}, "autoscaling": {"enabled": False}},
                "feedback": {"enabled": False},
            },
        }
    )
    assert one(found, "Deployment", "profile")["spec"]["replicas"] == 0
    scaled = {component_of(each) for each in found if each["kind"] == "HorizontalPodAutoscaler"}
    assert scaled == {"ingest", "identity-graph", "rag-gateway"}
    assert "profile" not in {component_of(each) for each in found if each["kind"] == "PodDisruptionBudget"}
    assert container(one(found, "Deployment", "embedder"))["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"memory": "8Gi"},
    }
    assert "feedback" not in deployments(found)


def test_scaling_down_is_slow() -> None:
    found = cluster({"services": {"profile": {"autoscaling": {"enabled": True}}}})
    behaviour = one(found, "HorizontalPodAutoscaler", "profile")["spec"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert [policy["value"] for policy in behaviour["scaleDown"]["policies"]] == [1]


def test_only_the_release_may_reach_it_and_it_reaches_no_more_than_it_needs() -> None:
    found = cluster()
    own = {"app.kubernetes.io/name": "headwater", "app.kubernetes.io/instance": "release"}
    within = {"podSelector": {"matchLabels": own}}
    ports = {"ingest": [9092], "identity-graph": [9092, 7687], "embedder": [9092, 27017, 9200]}
    for name, engines in ports.items():
        policy = one(found, "NetworkPolicy", name)["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["ingress"] == [{"from": [within], "ports": [{"port": "grpc"}, {"port": "http"}]}]
        assert policy["egress"] == [
            {"to": [within], "ports": [{"port": 7070, "protocol": "TCP"}]},
            {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            {"ports": [{"port": port, "protocol": "TCP"} for port in engines]},
        ]
    topics = one(found, "NetworkPolicy", "topics")["spec"]
    assert "ingress" not in topics
    assert [port["port"] for rule in topics["egress"] for port in rule["ports"]] == [53, 53, 9092]
    assert {each["spec"]["type"] for each in found if each["kind"] == "Service" and not is_headless(each)} == {
        "ClusterIP"
    }


def test_metrics_of_every_pod_are_gathered_by_whoever_is_let_in() -> None:
    found = render(CASES["everything that can be set"])
    (monitor,) = [each for each in found if each["kind"] == "PodMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "http", "path": "/metrics", "interval": "1m"}
    outside = {"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}
    for name, deployment in deployments(found).items():
        template = deployment["spec"]["template"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        (port,) = [each["containerPort"] for each in container(deployment)["ports"] if each["name"] == "http"]
        told = {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}
        assert told.items() <= template["metadata"]["annotations"].items()
        ingress = one(found, "NetworkPolicy", name)["spec"]["ingress"]
        assert {"from": [outside], "ports": [{"port": "http"}]} in ingress
    quiet = cluster()
    assert not any(each["kind"] == "PodMonitor" for each in quiet)
    assert "prometheus.io" not in str(quiet)


def test_the_way_to_the_engines_can_be_narrowed() -> None:
    found = render(CASES["everything that can be set"])
    rules = one(found, "NetworkPolicy", "profile")["spec"]["egress"]
    assert [port["port"] for port in rules[2]["ports"]] == [9094, 9095, 27018]
    assert rules[2]["to"] == [{"namespaceSelector": {"matchLabels": {"engines": "yes"}}}]


def test_another_configuration_is_another_pod_and_the_same_one_is_not() -> None:
    def pods_with(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: each["spec"]["template"] for name, each in deployments(cluster(values)).items()}

    as_is, again = pods_with({"config": "partitions = 8"}), pods_with({"config": "partitions = 8"})
    other = pods_with({"config": "partitions = 4"})
    own = pods_with({"config": "partitions = 8", "services": {"profile": {"config": "[profile]\nrecords_max = 9"}}})
    assert as_is == again
    assert {name for name in NAMES if as_is[name] != other[name]} == set(NAMES)
    assert {name for name in NAMES if as_is[name] != own[name]} == {"profile"}


@pytest.mark.parametrize("release", ["headwater", "my-headwater", "a" * 53])
def test_names_are_short_enough_for_what_kubernetes_puts_behind_them(release: str) -> None:
    for values in (ENDPOINTS, {"mode": "embedded"}):
        found = objects(run("template", release, values=values).stdout)
        names = [(each["kind"], each["metadata"]["name"]) for each in found]
        assert len(names) == len(set(names))
        for kind, name in names:
            assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name)
            assert kind != "Deployment" or len(name) <= 52  # a pod's name has two hashes more


def test_the_notes_say_what_to_do_next_and_who_can_reach_it(case: str, tmp_path: Path) -> None:
    # Helm shows the notes only when it has a cluster: render them as an object's text.
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates/notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes.txt") . | quote }}', encoding="utf-8")
    done = run("template", "release", "--show-only", "templates/notes.yaml", values=CASES[case], chart=chart)
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["notes"]
    assert "port-forward service/" in notes
    assert "no authentication" in notes
    assert ("WARNING" in notes) == (case in {"everything that can be set", "nothing that can be left out"})
