"""The documentation is true: every setting and command is in it, its links resolve, its examples load and decode."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
import pytest

from services.cli.main import main
from services.embedder.rows import RowTemplate
from services.embedder.settings import ModelSettings, Provider, Settings as EmbedderSettings
from services.feedback.history import imported
from services.feedback.kpis import DIMENSIONS, KPIS, MEASURES, Kpi
from services.feedback.settings import Settings as FeedbackSettings
from services.identity_graph.settings import KINDS, ColumnRule, EntityRule, KindRule, Settings as IdentitySettings
from services.ingest.decoders.avro import compiled
from services.ingest.decoders.common import Hints
from services.ingest.decoders.detect import FORMATS
from services.ingest.settings import (
    BucketSettings,
    FolderSettings,
    SchemaRegistrySettings,
    Settings as IngestSettings,
    TopicsSettings,
)
from services.kernel.errors import InvalidInputError
from services.kernel.settings import SECTIONS, SERVICES, Settings as KernelSettings, load
from services.profile.settings import EXCLUDED_BY_DEFAULT, FieldRule, Rule, Settings as ProfileSettings
from services.rag_gateway.settings import LlmSettings, Settings as GatewaySettings

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
EVENTS = (ROOT / "docs/events.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

FROM_CONFIG: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "ingest": IngestSettings.from_config,
    "identity_graph": IdentitySettings.from_config,
    "profile": ProfileSettings.from_config,
    "embedder": EmbedderSettings.from_config,
    "rag_gateway": GatewaySettings.from_config,
    "feedback": FeedbackSettings.from_config,
}
AVRO_SCHEMAS = {
    number: (ROOT / f"tests/data/ingest/avro/{name}.json").read_text(encoding="utf-8")
    for number, name in ((7, "key"), (300, "envelope"))
}
ENTITY = '`[identity_graph.entities."SOURCE/ENTITY"]`'
COLUMN = '`[identity_graph.entities."SOURCE/ENTITY".columns.COLUMN]`'

# Heading -> the class that is read from this table.
TABLES: Mapping[str, type[Any]] = {
    "Top level": KernelSettings,
    "`[ingest]`": IngestSettings,
    "`[[ingest.folders]]`": FolderSettings,
    "`[[ingest.buckets]]`": BucketSettings,
    "`[[ingest.topics]]`": TopicsSettings,
    "`[ingest.schema_registry]`": SchemaRegistrySettings,
    "`[identity_graph]`": IdentitySettings,
    "`[identity_graph.kinds.KIND]`": KindRule,
    ENTITY: EntityRule,
    COLUMN: ColumnRule,
    "`[profile]`": ProfileSettings,
    "`[profile.fields.NAME]`": FieldRule,
    "`[embedder]`": EmbedderSettings,
    "`[embedder.model]`": ModelSettings,
    "`[[embedder.tables]]`": RowTemplate,
    "`[rag_gateway]`": GatewaySettings,
    "`[rag_gateway.llm]`": LlmSettings,
    "`[feedback]`": FeedbackSettings,
    "`[[feedback.kpis]]`": Kpi,
}
# What a field is called in the file; None where the file cannot set it.
NAMES: Mapping[tuple[type[Any], str], str | None] = {
    (KernelSettings, "tables"): None,  # the tables themselves
    (ColumnRule, "scope_of_numbers"): None,  # of the built-in rules
    (ColumnRule, "digits_min"): None,
    (FieldRule, "columns"): "from",
}


class Block(NamedTuple):
    """A fenced block: which page, its language, the words after the language, and its text."""

    page: Path
    language: str
    words: tuple[str, ...]
    text: str


def section(page: str, heading: str) -> str:
    """What is below a heading, down to the next one."""
    for part in re.split(r"^#+ ", page, flags=re.MULTILINE):
        title, _, text = part.partition("\n")
        if title == heading:
            return text
    raise AssertionError(f"there is no heading {heading}")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a section's tables by the name in the first column, which stands in backticks."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip("` "): row[1:] for row in cells if row[0].strip().startswith("`")}


def settings_of(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a class as the file names them, each with its default; MISSING where there is none."""
    if is_dataclass(kind):
        defaults = {each.name: _default(each) for each in fields(kind)}
    else:
        defaults = {name: kind._field_defaults.get(name, MISSING) for name in kind._fields}
    for field, default in defaults.items():
        name = NAMES.get((kind, field), field)
        if name is not None:
            yield name, default


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all pages in some languages."""
    found = []
    for page in PAGES:
        for info, text in re.findall(
            r"^```([^\n`]+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            language, *words = info.split()
            if language in languages:
                found.append(Block(page, language, tuple(words), text))
    return found


def examples() -> list[Block]:
    """The blocks that name the format of their records."""
    return [block for block in blocks("json", "jsonl") if block.words]


@pytest.mark.parametrize("heading", TABLES)
def test_every_setting_has_a_row_and_every_row_is_a_setting(heading: str) -> None:
    told = rows(section(CONFIGURATION, heading))
    known = dict(settings_of(TABLES[heading]))
    if heading == "`[identity_graph.kinds.KIND]`":
        told = {name: cells for name, cells in told.items() if name not in KINDS}
    assert told.keys() == known.keys()


@pytest.mark.parametrize("heading", TABLES)
def test_the_defaults_that_are_told_are_those_of_the_program(heading: str) -> None:
    told = rows(section(CONFIGURATION, heading))
    for name, default in settings_of(TABLES[heading]):
        written = told[name][0]
        plain = str(default) if isinstance(default, Path) else default
        if type(plain) in (str, int, float, bool):
            assert tomllib.loads(f"v = {written.strip('`')}")["v"] == plain, f"{heading} {name}"


def test_the_built_in_kinds_are_told_as_they_are() -> None:
    told = rows(section(CONFIGURATION, "`[identity_graph.kinds.KIND]`"))
    told = {name: cells for name, cells in told.items() if name in KINDS}
    assert list(told) == list(KINDS)
    for name, rule in KINDS.items():
        counts = (rule.records_max, rule.rows_max, rule.values_max)
        assert told[name] == [rule.strength.value, rule.format.value, *map(str, counts)], name


def test_the_choices_of_settings_are_told() -> None:
    choices = [
        *(rule.value for rule in Rule), *EXCLUDED_BY_DEFAULT, *MEASURES, *DIMENSIONS, *(kpi.name for kpi in KPIS),
        *(provider.value for provider in Provider),
    ]  # fmt: skip
    assert [name for name in choices if f"`{name}`" not in CONFIGURATION] == []


def test_every_section_of_the_file_is_told() -> None:
    assert FROM_CONFIG.keys() == set(SERVICES)
    assert [name for name in SECTIONS if f"## `[{name}]`" not in CONFIGURATION] == []


def test_every_format_is_told() -> None:
    assert rows(section(EVENTS, "Formats")).keys() == {*FORMATS, "conversations"}


def commands(group: click.Group, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def test_every_command_is_told() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in commands(main, "headwater") if not re.search(rf"\b{name}\b", told)]
    assert missing == []


def test_every_command_that_is_told_is_there() -> None:
    known = set(commands(main, "headwater"))
    told = [line for block in blocks("sh") for line in block.text.splitlines() if re.match(r"\s*headwater [a-z]", line)]
    assert told
    for line in told:
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
        assert {" ".join(words[:2]), " ".join(words[:3])} & known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{target}: there is no {path}"
        if anchor:
            assert anchor in anchors(aim.read_text(encoding="utf-8")), f"{target}: there is no such heading"


def anchors(text: str) -> set[str]:
    """The names of a page's headings in links."""
    return {
        re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-").lower()
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.page.name)
def test_every_example_of_the_configuration_loads(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text(block.text, encoding="utf-8")
    settings = load(config, {})
    for name, from_config in FROM_CONFIG.items():
        from_config(settings.table(name))


def test_every_override_by_the_environment_that_is_told_is_read(tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.touch()
    told = [word for block in blocks("sh") for word in shlex.split(block.text) if word.startswith("HEADWATER_")]
    assert told
    for variable in told:
        name, _, value = variable.partition("=")
        settings = load(config, {name: value})
        assert settings != load(config, {}), variable
        for section_, from_config in FROM_CONFIG.items():
            from_config(settings.table(section_))


def test_every_variable_is_told() -> None:
    told = section(CONFIGURATION, "Environment")
    names = [name.upper() for name in rows(section(CONFIGURATION, "Top level"))]
    assert [name for name in (*names, "CONFIG", "CACHE") if f"`HEADWATER_{name}`" not in told] == []


def test_the_error_that_is_told_is_the_one_that_is_given() -> None:
    (told,) = [line.removeprefix("Error: ") for line in CONFIGURATION.splitlines() if line.startswith("Error: ")]
    with pytest.raises(InvalidInputError) as caught:
        GatewaySettings.from_config({"top_k": 0})
    assert str(caught.value) == told


@pytest.mark.parametrize("block", examples(), ids=lambda block: " ".join(block.words))
def test_every_example_of_events_decodes(block: Block) -> None:
    format_, source = block.words[0], block.words[-1].partition("source=")[2]
    records = block.text.splitlines() if block.language == "jsonl" else [block.text]
    assert records
    hints = Hints(source=source, schemas={number: compiled(text) for number, text in AVRO_SCHEMAS.items()})
    for record in records:
        if format_ == "conversations":
            imported("", record)
            continue
        tombstone = orjson.loads(record).get("payload", ...) is None
        events = FORMATS[format_](record.encode(), hints)
        assert bool(events) != tombstone, record
        # What is shown is recognised without being told its format.
        assert FORMATS["auto"](record.encode(), hints) == events


def test_there_is_an_example_of_every_format() -> None:
    assert {block.words[0] for block in examples()} == {*FORMATS, "conversations"} - {"auto"}
