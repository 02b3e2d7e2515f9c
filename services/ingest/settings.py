"""The settings of ingest: the table [ingest] of the configuration.

[ingest]
record_bytes_max = 4194304       # a longer record goes to dead_letters
document_bytes_max = 16777216    # a longer document is refused; a longer file of a folder is left out
rescan_s = 60.0                  # how often watched folders are compared with what is known of them

[ingest.keys]                    # key columns of events that come without their key; by default `id`
"crm/customers" = ["customer_no"]

[[ingest.folders]]               # folders whose files are documents
path = "policies"
source = "policies"              # by default the folder's name
tenant = ""
access = ["staff"]               # labels of which a reader needs one; none means everyone
include = ["*.md", "*.pdf"]      # patterns of names or paths; by default everything
exclude = ["drafts/*"]           # beside hidden files and the temporary files of editors and browsers
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT
from services.kernel.settings import from_table

_SECTION = "[ingest]"


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A watched folder.

    Attributes:
        path: the folder.
        source: the source's name; empty takes the folder's name.
        tenant: whose documents they are; empty means the default tenant.
        access: labels of which a reader needs one; none means everyone.
        include: patterns (`*` and `?`) of a file's name or of its path within the folder; a file must match one.
        exclude: patterns of files to leave out.
    """

    path: Path
    source: str = ""
    tenant: str = ""
    access: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        record_bytes_max: the longest record that is decoded, in bytes; a longer one goes to dead_letters.
        document_bytes_max: the longest document that is taken, in bytes.
        rescan_s: how often watched folders are compared with what is known of them, in seconds.
        keys: key columns by `source/entity` or `entity`, for events that come without their key.
        folders: watched folders.
    """

    record_bytes_max: int = 4 << 20
    document_bytes_max: int = 16 << 20
    rescan_s: float = 60.0
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folders: tuple[FolderSettings, ...] = ()


def from_config(table: Mapping[str, Any]) -> Settings:
    """Validate the table [ingest]; raises InvalidInputError naming the key that is wrong."""
    values = dict(table)
    if "keys" in values:
        values["keys"] = _keys(values["keys"])
    if "folders" in values:
        values["folders"] = _folders(values["folders"])
    settings = from_table(Settings, values, _SECTION)
    for name in ("record_bytes_max", "document_bytes_max", "rescan_s"):
        if getattr(settings, name) <= 0:
            raise InvalidInputError(f"{_SECTION}: {name} must be above 0, not {getattr(settings, name)}")
    return settings


def _keys(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f'{_SECTION}: keys must be a table, such as keys."crm/customers" = ["id"]')
    return {entity: _texts(columns, f"keys.{entity}", required=True) for entity, columns in value.items()}


def _folders(value: Any) -> tuple[FolderSettings, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(entry, Mapping) for entry in value):
        raise InvalidInputError(f"{_SECTION}: folders must be tables: [[ingest.folders]]")
    folders = tuple(_folder(entry, f"[[ingest.folders]] number {number}") for number, entry in enumerate(value, 1))
    names = [(folder.tenant, folder.source) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError(f"[[ingest.folders]]: two folders have the source {name[1]!r}: name them apart")
    return folders


def _folder(entry: Mapping[str, Any], where: str) -> FolderSettings:
    if not isinstance(entry.get("path"), str | Path) or not str(entry["path"]):
        raise InvalidInputError(f'{where}: give its path = "…"')
    values = dict(entry)
    for name in ("access", "include", "exclude"):
        if name in values:
            values[name] = _texts(values[name], f"{where}: {name}", required=name == "include")
    folder = from_table(FolderSettings, values, where)
    path = folder.path.expanduser().absolute()
    return replace(folder, path=path, source=folder.source or path.name, tenant=folder.tenant or DEFAULT_TENANT)


def _texts(value: Any, where: str, *, required: bool) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise InvalidInputError(f'{where} must be a list of texts, such as ["id"]')
    if required and not value:
        raise InvalidInputError(f"{where} must not be empty")
    return tuple(value)
