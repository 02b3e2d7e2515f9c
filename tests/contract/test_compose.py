"""The Compose files: they configure what Headwater reads, and start what tests run on."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.embedder.opensearch_client import OpenSearchSettings
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.ingest.settings import Settings as IngestSettings
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.settings import ENGINES, SERVICES, Settings, load

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.cluster.yaml").read_text())["services"]
SINGLE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())["services"]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/headwater/values.yaml").read_text())
NAMES = [name.replace("_", "-") for name in SERVICES]
OTHERS = sorted(CLUSTER.keys() - set(NAMES) - {"topics"})


def settings_of(name: str, tmp_path: Path) -> Settings:
    """What the process reads."""
    file = tmp_path / "empty.toml"
    file.touch()
    return load(file, {key: str(value) for key, value in CLUSTER[name]["environment"].items()})


def test_one_process_needs_nothing_else() -> None:
    (only,) = SINGLE.values()
    assert "args" not in only["build"]
    assert "depends_on" not in only


@pytest.mark.parametrize("name", NAMES)
def test_each_service_is_there_and_finds_the_others(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, tmp_path)
    assert settings.table("peers") == {each: f"dns:///{each.replace('_', '-')}:7070" for each in SERVICES}
    assert CLUSTER[name]["build"]["args"] == {"SERVICE": name}
    assert re.search(rf"\b{name}\b[^\n]*\)", (ROOT / "Dockerfile").read_text()), "the Dockerfile does not know it"
    assert CLUSTER[name]["image"].endswith(f"-{name}")


@pytest.mark.parametrize("name", NAMES)
def test_each_service_has_the_engines_that_the_chart_gives_it_and_waits_for_them(name: str, tmp_path: Path) -> None:
    engines = settings_of(name, tmp_path).tables.keys() & set(ENGINES)
    assert engines == set(VALUES["services"][name]["engines"]) - {"postgresql"}
    waits = {each: wait["condition"] for each, wait in CLUSTER[name]["depends_on"].items()}
    assert waits == {
        "topics": "service_completed_successfully",
        **dict.fromkeys(engines - {"kafka"}, "service_healthy"),
    }
    assert CLUSTER["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}


def test_the_settings_are_what_their_readers_take(tmp_path: Path) -> None:
    kafka = KafkaSettings.from_config(settings_of("topics", tmp_path).table("kafka"))
    assert (kafka.bootstrap_servers, kafka.replication) == ("kafka:9092", 1)
    assert Neo4jSettings.from_config(settings_of("identity-graph", tmp_path).table("neo4j")).uri == "neo4j://neo4j:7687"
    search = OpenSearchSettings.from_config(settings_of("embedder", tmp_path).table("opensearch"))
    assert (search.url, search.replicas) == ("http://opensearch:9200", 0)
    ingest = IngestSettings.from_config(settings_of("ingest", tmp_path).table("ingest"))
    (topics,) = ingest.topics
    assert f"pattern = '{topics.pattern}'" in (ROOT / "docs/debezium.md").read_text()


def test_the_engines_are_those_that_tests_run_on() -> None:
    scripts = "\n".join(path.read_text() for path in (ROOT / "tests/engines").glob("*.sh"))
    versions = dict(re.findall(r"\b(KAFKA|DEBEZIUM|NEO4J|OPENSEARCH)=([\w.]+)", scripts))
    assert CLUSTER["kafka"]["image"] == f"apache/kafka:{versions['KAFKA']}"
    assert CLUSTER["connect"]["image"] == f"quay.io/debezium/connect:{versions['DEBEZIUM']}"
    assert CLUSTER["neo4j"]["image"] == f"neo4j:{versions['NEO4J']}-community"
    assert CLUSTER["opensearch"]["image"] == f"opensearchproject/opensearch:{versions['OPENSEARCH']}"


@pytest.mark.parametrize("name", OTHERS)
def test_an_engine_is_pinned_keeps_its_data_and_says_when_it_is_ready(name: str) -> None:
    engine = CLUSTER[name]
    assert re.search(r":\d+\.\d+(\.\d+)?([.-]\w+)?$", engine["image"])
    assert engine["healthcheck"]["test"][0] == "CMD"
    assert "volumes" in engine or name == "connect"  # which keeps what it knows in Kafka


def test_nothing_is_published_but_on_loopback() -> None:
    published = {name: service["ports"] for name, service in {**SINGLE, **CLUSTER}.items() if "ports" in service}
    assert published.keys() == {"headwater", "ingest", "rag-gateway", "connect"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


@pytest.mark.parametrize("name", [*NAMES, "topics"])
def test_a_process_is_locked_down(name: str) -> None:
    assert CLUSTER[name]["read_only"] is True
    assert CLUSTER[name]["cap_drop"] == ["ALL"]
    assert CLUSTER[name]["security_opt"] == ["no-new-privileges:true"]
