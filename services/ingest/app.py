"""Puts the service together: the API, and a watcher for each configured folder."""

from headwater.common.v1 import operations_pb2
from services.ingest.folder_source import FolderSource
from services.ingest.folder_store import SCHEMA
from services.ingest.grpc_api import IngestApi
from services.ingest.ingestion import Ingestion
from services.ingest.settings import from_config
from services.kernel.service import Platform, Service


def build(platform: Platform) -> Service:
    """Build the service; raises InvalidInputError when its settings are wrong."""
    settings = from_config(platform.settings.table("ingest"))
    platform.database.migrate("ingest", SCHEMA)
    api = IngestApi(Ingestion(platform.log, platform.clock, settings))
    folders = [
        FolderSource(folder, settings, platform.database, platform.log, platform.clock) for folder in settings.folders
    ]

    async def check() -> list[operations_pb2.Check]:
        return [await folder.check() for folder in folders]

    return Service(
        name="ingest",
        register=api.register,
        service_names=api.service_names,
        background=[folder.watch for folder in folders],
        checks=check,
        erases=False,  # it keeps nothing of what it passes on but the paths of files; the log forgets by itself
    )
