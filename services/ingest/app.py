"""Puts the service together: the API, and a watcher for each configured folder and bucket."""

from headwater.common.v1 import operations_pb2
from services.ingest import bucket_store, folder_store
from services.ingest.bucket_source import Buckets, BucketSource
from services.ingest.folder_source import FolderSource
from services.ingest.grpc_api import IngestApi
from services.ingest.ingestion import Ingestion
from services.ingest.schema_registry import SchemaRegistry
from services.ingest.settings import Settings
from services.kernel.service import Platform, Service


def build(platform: Platform) -> Service:
    """Build the service; raises InvalidInputError when its settings are wrong."""
    settings = Settings.from_config(platform.settings.table("ingest"))
    platform.database.migrate("ingest", (*folder_store.SCHEMA, *bucket_store.SCHEMA))
    registry = SchemaRegistry(settings.schema_registry) if settings.schema_registry.url else None
    buckets = [
        BucketSource(
            bucket,
            settings.document_bytes_max,
            settings.rescan_s,
            platform.database,
            platform.log,
            clock=platform.clock,
        )
        for bucket in settings.buckets
    ]
    api = IngestApi(Ingestion(platform.log, platform.clock, settings, Buckets(buckets), registry))
    folders = [
        FolderSource(folder, settings, platform.database, platform.log, platform.clock) for folder in settings.folders
    ]

    sources: list[FolderSource | BucketSource] = [*folders, *buckets]

    async def check() -> list[operations_pb2.Check]:
        return [await source.check() for source in sources]

    return Service(
        name="ingest",
        register=api.register,
        service_names=api.service_names,
        background=[source.watch for source in sources],
        stop=registry.close if registry is not None else None,
        checks=check,
        erases=False,  # it keeps nothing of what it passes on but the paths of files; the log forgets by itself
    )
