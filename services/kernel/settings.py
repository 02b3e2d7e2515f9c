"""The configuration: one TOML file; environment variables go before it, options of the command before both.

`HEADWATER_DATA`, `HEADWATER_PARTITIONS` and so on replace what every process needs; `HEADWATER__SECTION__KEY=value`
replaces one key of a service's table, `HEADWATER__SECTION__KEY__INNER` one of a table within it, with the value written
as in TOML (a bare word is text). Each service reads its own table with a `Section`: all refuse in the same words.
"""

import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from services.kernel.errors import InvalidInputError

SERVICES = ("ingest", "identity_graph", "profile", "embedder", "rag_gateway", "feedback")
ENGINES = ("kafka", "neo4j", "mongodb", "opensearch", "postgresql")
SECTIONS = (*SERVICES, *ENGINES, "peers")
PREFIX = "HEADWATER"
DEFAULT_CONFIG = "headwater.toml"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
PARTITIONS_MAX = 1024
DOCUMENT_BYTES = 16 << 20
"""The longest document, unless settings say otherwise: the same for whoever takes it and whoever reads it."""
DOCUMENT_BYTES_MAX = 30 << 20
"""The longest document that any setting can allow: what fits into one request (service.MESSAGE_BYTES_MAX)."""
WHOLE_MAX = (1 << 31) - 1
SECONDS_MAX = 1e9
_TEXTS = ("data", "grpc_address", "http_address", "log_level")  # taken as they stand, whatever they look like
_SECRET = re.compile(r"password|secret|(?:key|token)$")  # what an error must not repeat
_BARE = re.compile(r"[A-Za-z0-9_-]+")


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


class Section:
    """A table of the configuration that is being read; what is wrong is named with its place and the cure.

    Each method reads one setting. One that is not there has the value of `defaults`; a text or
    a list without a default is empty.

    Args:
        path: the table's name, `rag_gateway.llm`.
        values: the table as it was parsed.
        defaults: a dataclass or named tuple with the names and the values of the settings; None when any name goes.
        names: the names of the settings, where they are not those of `defaults`.
        where: begins each error; by default `[path]`.
        places: what stands for `where` and the name, for settings that come from elsewhere.

    Raises:
        InvalidInputError: the table is none, or holds a setting that is not known.
    """

    def __init__(
        self,
        path: str,
        values: Any,
        defaults: Any = None,
        *,
        names: Collection[str] = (),
        where: str = "",
        places: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path, self.where = path, where or f"[{path}]"
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"{self.where} must be a table, not {_shown(values)}")
        self.values: Mapping[str, Any] = values
        self._defaults, self._places = defaults, places
        known = names or _names_of(defaults)
        if known and (unknown := sorted(set(values) - set(known))):
            raise self.refusal(unknown[0], f"is not a setting; known are {', '.join(known)}")

    def refusal(self, name: str, words: str) -> InvalidInputError:
        """The error that says in `words` what is wrong with a setting."""
        return InvalidInputError(f"{self.place(name)} {words}")

    def place(self, name: str) -> str:
        """Where a setting is written, for an error."""
        return self._places.get(name) or f"{self.where} {name}"

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._value(name)
        if type(value) is not bool:
            raise self._must(name, "be true or false")
        return value

    def whole(self, name: str, low: int = 1, high: int = WHOLE_MAX) -> int:
        """A whole number in a range, ends included."""
        value = self._value(name)
        if type(value) is not int or not low <= value <= high:
            ends_here = high != WHOLE_MAX or (type(value) is int and value > high)
            raise self._must(name, f"be a whole number from {low}" + (f" to {high}" if ends_here else ""))
        return value

    def number(self, name: str, low: float = 0.0, high: float = SECONDS_MAX) -> float:
        """A number in a range, ends included; it is finite where the range is."""
        value = self._value(name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._must(name, f"be a number from {low:.10g} to {high:.10g}")
        return float(value)

    def text(self, name: str, *, required: bool = False) -> str:
        """A text; one that is required has no default and is not empty."""
        value = self.values.get(name, "") if required else self._value(name, "")
        if type(value) is not str:
            raise self._must(name, "be a text")
        if required and not value:
            raise self.refusal(name, 'is missing: give it as a text, "…"')
        return value

    def url(self, name: str) -> str:
        """A URL of HTTP, or an empty text."""
        value = self.text(name)
        if value and not value.startswith(("http://", "https://")):
            raise self.refusal(name, f"must begin with http:// or https://, not be {_shown(value)}")
        return value

    def choice(self, name: str, choices: Iterable[str | Enum]) -> str:
        """One of some texts, or of the values of an Enum."""
        value = self._value(name)
        texts = [_text_of(choice) for choice in choices]
        if _text_of(value) not in texts:
            raise self._must(name, f"be one of {', '.join(texts)}")
        return str(_text_of(value))

    def texts(self, name: str, least: int = 0) -> tuple[str, ...]:
        """A list of texts, none of them empty, and at least so many."""
        value = self._value(name, ())
        if not isinstance(value, list | tuple | frozenset) or not all(type(item) is str and item for item in value):
            raise self._must(name, "be a list of texts")
        if len(value) < least:
            raise self.refusal(name, 'must not be empty: give a list of texts, ["…"]')
        return tuple(value)

    def section(self, name: str, defaults: Any = None, *, names: Collection[str] = ()) -> "Section":
        """A table within this one; empty when it is not there."""
        quoted = name if _BARE.fullmatch(name) else f'"{name}"'
        return Section(f"{self.path}.{quoted}", self.values.get(name, {}), defaults, names=names)

    def sections(self, name: str, defaults: Any = None, *, names: Collection[str] = ()) -> list["Section"]:
        """Tables that are listed under one name; none when it is not there."""
        path, values = f"{self.path}.{name}", self.values.get(name, [])
        if not isinstance(values, list | tuple) or not all(isinstance(value, Mapping) for value in values):
            raise self._must(name, f"be tables, each headed [[{path}]]")
        return [
            Section(path, value, defaults, names=names, where=f"[[{path}]] number {number}:")
            for number, value in enumerate(values, 1)
        ]

    def _value(self, name: str, empty: Any = None) -> Any:
        return self.values[name] if name in self.values else getattr(self._defaults, name, empty)

    def _must(self, name: str, words: str) -> InvalidInputError:
        found = "a value of another kind" if _SECRET.search(name) else _shown(self._value(name))
        return self.refusal(name, f"must {words}, not {found}")


def load(
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """Read the settings.

    Args:
        config: the file; by default the one that HEADWATER_CONFIG names, or headwater.toml where it is there.
        environment: by default the process's. An empty variable is as good as none.
        options: settings of the top level that a person gave to the command; None is not given.

    Raises:
        InvalidInputError: the file is missing or malformed, or something in it or beside it is not a setting.
    """
    every = os.environ if environment is None else environment
    env = {name: value for name, value in every.items() if name.startswith(f"{PREFIX}_") and value.strip()}
    named = config or (Path(env[f"{PREFIX}_CONFIG"]).expanduser() if f"{PREFIX}_CONFIG" in env else None)
    path = named or Path(DEFAULT_CONFIG)
    document = _read(path, required=named is not None)
    tables = {
        name: dict(Section(name, document.pop(name), where=f"{path}: [{name}]").values)
        for name in SECTIONS
        if name in document
    }
    _override(tables, env)
    return _settings(document, f"{path}:", env, options, tables)


def address(text: str, where: str) -> tuple[str, int]:
    """Split host:port; raises InvalidInputError when it is none."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidInputError(f"{where}: {text!r} is not host:port, for example 127.0.0.1:7070")
    return host, int(port)


def _settings(
    document: Mapping[str, Any],
    where: str,
    env: Mapping[str, str],
    options: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
) -> Settings:
    values, places = dict(document), {}
    names = [name for name in _names_of(Settings) if name != "tables"]
    for name in names:
        variable = f"{PREFIX}_{name.upper()}"
        if options.get(name) is not None:
            values[name], places[name] = options[name], f"--{name.replace('_', '-')}"
        elif variable in env:
            values[name] = env[variable] if name in _TEXTS else _literal(env[variable])
            places[name] = variable
    for name in ("data", "log_level"):  # a Path of an option; names of levels in any case
        if isinstance(values.get(name), str | Path):
            values[name] = str(values[name]) if name == "data" else values[name].upper()
    known = [*names, *(f"[{name}]" for name in SECTIONS)]
    read = Section("", values, Settings(), names=known, where=where, places=places)
    settings = Settings(
        data=Path(read.text("data", required=True)).expanduser() if "data" in values else Settings().data,
        grpc_address=read.text("grpc_address"),
        http_address=read.text("http_address"),
        partitions=read.whole("partitions", 1, PARTITIONS_MAX),
        log_level=read.choice("log_level", LOG_LEVELS),
        log_json=read.flag("log_json"),
        tables=tables,
    )
    for name in ("grpc_address", "http_address"):
        address(getattr(settings, name), read.place(name))
    return settings


def _override(tables: dict[str, dict[str, Any]], env: Mapping[str, str]) -> None:
    """Put the variables of single settings in; a table's own goes before those of its keys."""
    for name in sorted((name for name in env if name.startswith(f"{PREFIX}__")), key=lambda name: name.count("__")):
        section, *keys = name.lower().split("__")[1:]
        if not keys or not all((section, *keys)):
            raise InvalidInputError(
                f"{name} names no setting: write {PREFIX}__SECTION__KEY, for example {PREFIX}__RAG_GATEWAY__TOP_K"
            )
        if section not in SECTIONS:
            raise InvalidInputError(f"{name}: there is no table [{section}]; there are {', '.join(SECTIONS)}")
        table = tables.setdefault(section, {})
        for depth, key in enumerate(keys[:-1], 1):
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise InvalidInputError(f"{name}: {'.'.join((section, *keys[:depth]))} is not a table but a value")
        # A password of digits only is a text all the same.
        table[keys[-1]] = env[name] if _SECRET.search(keys[-1]) else _literal(env[name])


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise InvalidInputError(f"{path}: there is no such configuration file") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _literal(text: str) -> Any:
    try:
        document = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["v"] if len(document) == 1 else text  # more than one line is no value


def _names_of(kind: Any) -> tuple[str, ...]:
    """The names of the settings that a dataclass or a named tuple, or an instance of one, holds."""
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else getattr(kind, "_fields", ())


def _text_of(choice: Any) -> Any:
    return choice.value if isinstance(choice, Enum) else choice


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
