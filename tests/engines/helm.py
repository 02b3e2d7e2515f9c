"""Helm as tests use it, and the values that the chart is tried with."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/headwater"
TOOLS = Path(
    subprocess.run(
        ["bash", ROOT / "tests/engines/helm.sh", "where"], check=True, capture_output=True, text=True
    ).stdout.strip()
)
HELM = TOOLS / "bin/helm"
ENDPOINTS: Mapping[str, Any] = {
    "kafka": {"bootstrapServers": "kafka:9092"},
    "neo4j": {"uri": "neo4j://neo4j:7687"},
    "mongodb": {"uri": "mongodb://mongodb:27017/?replicaSet=rs0"},
    "opensearch": {"url": "http://opensearch:9200"},
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "a cluster": ENDPOINTS,
    "everything that can be set": {
        "image": {"repository": "registry.example/headwater", "tag": "1.2.3", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "fullnameOverride": "context",
        "config": 'partitions = 8\n\n[rag_gateway.llm]\nbase_url = "https://models.example/v1"\nmodel = "m"\n'
        'api_key_env = "MODELS_KEY"\n',
        "kafka": {
            "bootstrapServers": "kafka-0.kafka:9094,kafka-1.kafka:9095",
            "prefix": "2024",
            "replication": 2,
            "securityProtocol": "SASL_SSL",
            "sslCafile": "/etc/headwater/kafka/ca.crt",
            "saslUsername": "headwater",
            "existingSecret": "kafka-credentials",
            "secretKeys": {"saslPassword": "password"},
            "filesSecret": "kafka-ca",
        },
        "neo4j": {
            "uri": "neo4j+s://graph.example:7687",
            "connectionsMax": 40,
            "connectTimeoutS": 2.5,
            "existingSecret": "neo4j-credentials",
            "secretKeys": {"username": "user", "password": "word"},
        },
        "mongodb": {"existingSecret": "mongodb-credentials", "secretKeys": {"uri": "uri"}, "ports": [27018]},
        "opensearch": {
            "url": "https://search.example:9200",
            "ca": "/etc/headwater/opensearch/ca.crt",
            "replicas": 2,
            "existingSecret": "search-credentials",
            "secretKeys": {"username": "user", "password": "password"},
            "filesSecret": "search-ca",
        },
        "networkPolicy": {"engines": [{"namespaceSelector": {"matchLabels": {"engines": "yes"}}}]},
        "metrics": {
            "annotations": True,
            "podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
            "from": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        },
        "topics": {"deadlineSeconds": 60, "resources": {"limits": {"memory": "512Mi"}}},
        "defaults": {
            "replicas": 3,
            "startupSeconds": 600,
            "terminationGracePeriodSeconds": 90,
            "scratchSize": "10Gi",
            "podAnnotations": {"example.com/team": "context"},
            "podLabels": {"example.com/team": "context"},
            "nodeSelector": {"disktype": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podDisruptionBudget": {"maxUnavailable": 2},
        },
        "services": {
            "ingest": {
                "singleton": True,
                "replicas": 1,
                "config": '[[ingest.folders]]\npath = "/policies"\n',
                "storage": {"size": "1Ti", "className": "fast", "accessMode": "ReadWriteOncePod"},
                "extraVolumes": [{"name": "policies", "persistentVolumeClaim": {"claimName": "policies"}}],
                "extraVolumeMounts": [{"name": "policies", "mountPath": "/policies", "readOnly": True}],
                "serviceAccount": {"name": "reader", "annotations": {"a": "b"}},
                "front": {"type": "LoadBalancer", "grpcPort": 443, "httpPort": 80, "annotations": {"a": "b"}},
                "networkPolicy": {
                    "from": [{"namespaceSelector": {"matchLabels": {"team": "context"}}}],
                    "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
                },
            },
            "rag-gateway": {
                "env": [{"name": "HEADWATER__RAG_GATEWAY__TOP_K", "value": "12"}],
                "secretEnv": [{"name": "MODELS_KEY", "secret": "models", "key": "api-key"}],
            },
            "profile": {
                "autoscaling": {
                    "enabled": True,
                    "minReplicas": 3,
                    "maxReplicas": 8,
                    "cpuPercent": 60,
                    "metrics": [
                        {
                            "type": "External",
                            "external": {
                                "metric": {
                                    "name": "headwater_lag_records",
                                    "selector": {"matchLabels": {"group": "profile-fold"}},
                                },
                                "target": {"type": "AverageValue", "averageValue": "1000"},
                            },
                        }
                    ],
                },
            },
            "feedback": {"storage": {"existingClaim": "lake"}},
        },
    },
    "nothing that can be left out": {
        "kafka": {"bootstrapServers": "kafka:9092"},
        "neo4j": {"uri": "bolt://neo4j:7687"},
        "mongodb": {"uri": "mongodb://mongodb:27017"},
        "postgresql": {
            "uri": "postgresql://headwater@postgres:5432/headwater",
            "connections": 4,
            "existingSecret": "chunks",
            "secretKeys": {"password": "password"},
        },
        "networkPolicy": {"enabled": False},
        "defaults": {"serviceAccount": {"create": False}, "podDisruptionBudget": {"enabled": False}},
        "services": {"feedback": {"enabled": False}},
    },
    "one process": {"mode": "embedded"},
    "one process on a claim of its own": {
        "mode": "embedded",
        "config": "[rag_gateway]\ntop_k = 3",
        "embedded": {
            "storage": {"existingClaim": "data-headwater-0"},
            "networkPolicy": {"egress": [{"ports": [{"port": 443}]}]},
        },
    },
}
Object = dict[str, Any]


def run(
    *command: str,
    values: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
    chart: Path | None = CHART,
    kubeconfig: Path | None = None,
    timeout_s: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command of Helm, without what a user has configured; `also` is merged into `values`."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, each in enumerate((values, also)):
            if each is not None:
                file = Path(folder) / f"{number}.yaml"
                file.write_text(json.dumps(each), encoding="utf-8")
                files += ["--values", str(file)]
        homes = ("HOME", "KUBECONFIG", "HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME")
        environment = {name: f"{folder}/{name}" for name in homes} | {"PATH": os.environ["PATH"]}
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        return subprocess.run(
            [str(HELM), *command, *([str(chart)] if chart is not None else []), *files],
            capture_output=True, text=True, check=False, timeout=timeout_s, env=environment,
        )  # fmt: skip


def render(values: Mapping[str, Any]) -> list[Object]:
    """The objects that the release `release` in the namespace `context` is made of."""
    done = run("template", "release", "--namespace", "context", values=values)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def objects(text: str) -> list[Object]:
    """The objects in what Helm has rendered."""
    return [document for document in yaml.safe_load_all(text) if document]


def pods(found: list[Object], *, labels: bool = False) -> list[Object]:
    """The specifications of all pods, or their labels: the services', the job's, and that of `helm test`."""
    templates = [each["spec"]["template"] for each in found if each["kind"] in {"Deployment", "Job"}]
    every = [*templates, *(each for each in found if each["kind"] == "Pod")]
    return [each["metadata"]["labels"] if labels else each["spec"] for each in every]
