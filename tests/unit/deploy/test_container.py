"""What is deployed fits the package: versions, addresses, and the files that the image is built from."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from services.kernel.settings import load

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
CHART = ROOT / "deploy/helm/headwater"


def instructions(name: str) -> list[str]:
    """What follows each instruction of a name in the Dockerfile."""
    return re.findall(rf"^{name} +(.+)$", DOCKERFILE, re.MULTILINE)


def image_environment() -> dict[str, str]:
    (words,) = instructions("ENV")
    return dict(word.split("=", 1) for word in words.split())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_chart_installs_the_package_s_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = read(CHART / "Chart.yaml")
    assert chart["appVersion"] == version


def test_the_image_s_environment_is_read_as_settings() -> None:
    settings = load(Path("/dev/null"), image_environment())
    assert settings.data == Path("/data")
    assert settings.grpc_address.startswith("0.0.0.0:")
    assert settings.http_address.startswith("0.0.0.0:")
    assert settings.log_json
    ports = {address.rpartition(":")[2] for address in (settings.grpc_address, settings.http_address)}
    assert set(instructions("EXPOSE")[0].split()) == ports


def test_nothing_in_the_image_calls_home() -> None:
    assert image_environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_image_runs_as_a_user_who_is_not_root_and_is_given_by_number() -> None:
    chart = (CHART / "templates/_helpers.tpl").read_text(encoding="utf-8")
    (user,) = instructions("USER")
    uid, gid = user.split(":")
    assert int(uid) > 0
    assert f"runAsUser: {uid}\nrunAsGroup: {gid}\nfsGroup: {gid}\n" in chart


def test_every_file_that_the_image_is_built_from_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = [name for words in instructions("COPY") if "--from" not in words for name in words.split()[:-1]]
    assert sorted(copied) == sorted(kept)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_no_data_and_no_environment_gets_into_the_image() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"  # everything is left out but what is named
    assert not any(
        fnmatch(name, line[1:]) for name in (".env", "data", ".git", ".venv") for line in lines if "!" in line
    )


def test_compose_publishes_on_loopback_only() -> None:
    compose = read(ROOT / "deploy/compose/compose.yaml")
    (service,) = compose["services"].values()
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"] * 2
    assert {port.rpartition(":")[2] for port in service["ports"]} == set(instructions("EXPOSE")[0].split())
    assert "data:/data" in service["volumes"]
    context = (ROOT / "deploy/compose" / service["build"]["context"]).resolve()
    assert (context / "Dockerfile").is_file()
