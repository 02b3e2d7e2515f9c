"""The configuration: one TOML file, overridden by environment variables.

`HEADWATER_DATA`, `HEADWATER_CONFIG`, `HEADWATER_GRPC_ADDRESS` and `HEADWATER_HTTP_ADDRESS` name what every process
needs; `HEADWATER__SECTION__KEY=value` overrides one key of a service's table, with the value written as in TOML
(a bare word is text).
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from services.kernel.errors import InvalidInputError

SECTIONS = ("ingest", "identity_graph", "profile", "embedder", "rag_gateway", "feedback")
PREFIX = "HEADWATER"
DEFAULT_CONFIG = "headwater.toml"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an installation.

    Attributes:
        data: the folder of the embedded installation's database.
        grpc_address: where gRPC is served, host:port; port 0 takes a free one.
        http_address: where the page and the HTTP APIs are served, host:port.
        partitions: partitions of each new topic.
        log_level: DEBUG, INFO, WARNING or ERROR.
        log_json: whether log lines are JSON.
        tables: the services' own tables, by name.
    """

    data: Path = Path("data")
    grpc_address: str = "127.0.0.1:7070"
    http_address: str = "127.0.0.1:8080"
    partitions: int = 4
    log_level: str = "INFO"
    log_json: bool = False
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def table(self, section: str) -> Mapping[str, Any]:
        """Return a service's table; empty when it is not configured."""
        return self.tables.get(section, {})


def load(config: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        config: the file; by default the one that HEADWATER_CONFIG names, or headwater.toml where it is there.
        environment: by default the process's.

    Raises:
        InvalidInputError: the file is missing or malformed, or names something that is not a setting.
    """
    env = os.environ if environment is None else environment
    path = config or (Path(env[f"{PREFIX}_CONFIG"]) if f"{PREFIX}_CONFIG" in env else None)
    document = _read(path or Path(DEFAULT_CONFIG), required=path is not None)
    tables = {name: dict(document.pop(name)) for name in SECTIONS if name in document}
    for name, value in env.items():
        parts = name.split("__")
        if parts[0] == PREFIX and len(parts) == 3 and parts[1].lower() in SECTIONS:
            tables.setdefault(parts[1].lower(), {})[parts[2].lower()] = _literal(value)
    top = {key: env[f"{PREFIX}_{key.upper()}"] for key in ("data", "grpc_address", "http_address", "log_level")
           if f"{PREFIX}_{key.upper()}" in env}  # fmt: skip
    return from_table(Settings, {**document, **top, "tables": tables}, "headwater.toml")


def from_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a settings dataclass from a table; raises InvalidInputError naming keys that it does not have."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # every settings class is a dataclass
    if unknown := sorted(set(table) - set(known)):
        raise InvalidInputError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    values = dict(table)
    for name, value in values.items():
        expected = known[name].type
        if expected is Path and isinstance(value, str):
            values[name] = Path(value)
        elif expected is float and type(value) is int:
            values[name] = float(value)
        elif isinstance(expected, type) and expected in (str, int, float, bool) and type(value) is not expected:
            raise InvalidInputError(f"{where}: {name} must be {expected.__name__}, not {value!r}")
    return kind(**values)


def address(text: str, where: str) -> tuple[str, int]:
    """Split host:port; raises InvalidInputError when it is none."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError(f"{where}: {text!r} is not host:port, for example 127.0.0.1:7070")
    return host, int(port)


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise InvalidInputError(f"{path}: there is no such configuration file") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _literal(value: str) -> Any:
    try:
        return tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value
