"""Puts the service together: the API, a watcher for each configured folder and bucket, a reader of raw topics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headwater.common.v1 import operations_pb2
from services.ingest import bucket_store, folder_store, topic_store
from services.ingest.bucket_source import Buckets, BucketSource
from services.ingest.folder_source import FolderSource
from services.ingest.grpc_api import IngestApi
from services.ingest.ingestion import Ingestion
from services.ingest.schema_registry import SchemaRegistry
from services.ingest.settings import Settings, TopicsSettings
from services.ingest.topic_records import RecordDecoder, Selection
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.service import Platform, Service

if TYPE_CHECKING:
    from services.ingest.topic_group import TopicGroup
    from services.ingest.topic_reader import TopicReader


def build(platform: Platform) -> Service:
    """Build the service; raises InvalidInputError when its settings are wrong."""
    settings = Settings.from_config(platform.settings.table("ingest"))
    platform.database.migrate("ingest", (*folder_store.SCHEMA, *bucket_store.SCHEMA))
    platform.database.migrate("ingest_topics", topic_store.SCHEMA)
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
    watched = Buckets(buckets)
    api = IngestApi(Ingestion(platform.log, platform.clock, settings, watched, registry))
    folders = [
        FolderSource(folder, settings, platform.database, platform.log, platform.clock) for folder in settings.folders
    ]

    def partitions() -> int:
        return platform.log.partitions(topics.CHANGES)

    decoder = RecordDecoder(settings, watched, registry, partitions, platform.clock)
    readers = _readers(platform, settings.topics, decoder)
    sources: list[FolderSource | BucketSource | TopicReader | TopicGroup] = [*folders, *buckets, *readers]

    async def check() -> list[operations_pb2.Check]:
        return [await source.check() for source in sources]

    return Service(
        name="ingest",
        register=api.register,
        service_names=api.service_names,
        background=[
            *(folder.watch for folder in folders),
            *(bucket.watch for bucket in buckets),
            *(reader.read for reader in readers),
        ],
        stop=registry.close if registry is not None else None,
        checks=check,
        erases=False,  # it keeps nothing of what it passes on but the paths of files; the log forgets by itself
    )


def _readers(
    platform: Platform, entries: Sequence[TopicsSettings], decoder: RecordDecoder
) -> "list[TopicReader | TopicGroup]":
    """A reader for each cluster that raw topics are in."""
    if not entries:
        return []
    try:
        import aiokafka  # noqa: F401 - asks at the start, not with the first record
    except ImportError:
        raise InvalidInputError("[[ingest.topics]] needs a client of Kafka: pip install 'headwater[kafka]'") from None
    table = platform.settings.table("kafka")
    own = KafkaSettings.from_config(table) if table else None
    clusters: dict[KafkaSettings | None, list[TopicsSettings]] = {}
    for entry in entries:
        cluster = entry.cluster()
        if own is None and cluster is None:
            raise InvalidInputError("[[ingest.topics]] bootstrap_servers is missing, and [kafka] is not configured")
        if own is not None and cluster is not None and cluster.bootstrap_servers == own.bootstrap_servers:
            cluster = None
        clusters.setdefault(cluster, []).append(entry)
    return [_reader(platform, cluster, own, some, decoder) for cluster, some in clusters.items()]


def _reader(
    platform: Platform,
    cluster: KafkaSettings | None,
    own: KafkaSettings | None,
    entries: Sequence[TopicsSettings],
    decoder: RecordDecoder,
) -> "TopicReader | TopicGroup":
    if own is None:
        from services.ingest.topic_reader import TopicReader

        assert cluster is not None  # noqa: S101 - as _readers has checked
        return TopicReader(Selection(entries), cluster, decoder, platform.database, platform.log)
    from services.ingest.topic_group import TopicGroup
    from services.kernel.kafka_log import KafkaLog

    assert isinstance(platform.log, KafkaLog)  # noqa: S101 - [kafka] is configured
    written = [own.prefix + spec.name for spec in topics.TOPICS] if cluster is None else []
    return TopicGroup(Selection(entries, written), cluster, decoder, platform.log)
