r"""The settings of ingest: the table [ingest] of the configuration.

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

[[ingest.buckets]]               # buckets of S3, or of a store with the same API, whose objects are documents
name = "policies"
endpoint = "http://127.0.0.1:9000"  # by default Amazon's
access_key = "…"                 # by default what AWS_ACCESS_KEY_ID and its like say
secret_key = "…"

[[ingest.topics]]                # topics of Kafka into which replicators write
pattern = '(__debezium-heartbeat\.)?crm(\..*)?'  # what a topic's whole name matches; or names = ["…"]
bootstrap_servers = "127.0.0.1:9092"  # by default the cluster of [kafka]; beside it the security settings of [kafka]
format = "auto"
source = ""                      # by default what the events call it
tenant = ""

[ingest.schema_registry]         # where the schemas of Avro records are
url = "http://127.0.0.1:8081"
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from services.ingest.decoders.detect import FORMATS
from services.ingest.s3_signing import Credentials
from services.kernel.errors import InvalidInputError
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.log import DEFAULT_TENANT, SEPARATOR
from services.kernel.settings import DOCUMENT_BYTES, DOCUMENT_BYTES_MAX, Section

RESCAN_S_MIN = 0.1
TOPIC_FORMATS = tuple(name for name in FORMATS if name != "kcat")  # that is for records outside of Kafka
_BACKWARDS = re.compile(r"\\[1-9]|\(\?[P(]")
_CREDENTIALS = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")


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
class BucketSettings:
    """A watched bucket.

    Attributes:
        name: the bucket.
        endpoint: the store's URL; empty is Amazon's of the region.
        region: the store's region.
        access_key, secret_key, session_token: who reads it; without an access key the environment says,
            as for other programs (`AWS_ACCESS_KEY_ID`, …), and without that one requests go unsigned.
        prefix: how the keys begin of objects that count.
        source: the source's name; empty takes the bucket's.
        tenant: whose documents they are; empty means the default tenant.
        access: labels of which a reader needs one; none means everyone.
        include: patterns (`*` and `?`) of the last part of a key or of the whole; an object must match one.
        exclude: patterns of objects to leave out.
    """

    name: str
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    prefix: str = ""
    source: str = ""
    tenant: str = ""
    access: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def credentials(self, environment: Mapping[str, str] = os.environ) -> Credentials:
        """Who reads the bucket."""
        if self.access_key:
            return Credentials(self.access_key, self.secret_key, self.session_token)
        return Credentials(*(environment.get(f"AWS_{name}", "") for name in _CREDENTIALS))


@dataclass(frozen=True, slots=True)
class TopicsSettings:
    """Topics of Kafka that others write.

    Attributes:
        names: the topics.
        pattern: a regular expression that the whole name of a topic matches, also of one that appears later.
        format: the format of the values; `auto` recognises it.
        source: the source's name; empty takes the one in the events.
        tenant: whose changes they are; empty means the default tenant.
        bootstrap_servers: the cluster, host:port, several separated by commas; empty is that of [kafka].
        security_protocol, ssl_cafile, ssl_certfile, ssl_keyfile, ssl_password: as in [kafka].
        sasl_mechanism, sasl_username, sasl_password: as in [kafka].
    """

    names: tuple[str, ...] = ()
    pattern: str = ""
    format: str = "auto"
    source: str = ""
    tenant: str = ""
    bootstrap_servers: str = ""
    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_password: str = field(default="", repr=False)
    sasl_mechanism: str = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)

    def takes(self, topic: str) -> bool:
        """Whether a topic is one of these."""
        return topic in self.names or (self.pattern != "" and re.fullmatch(self.pattern, topic) is not None)

    def cluster(self) -> KafkaSettings | None:
        """The cluster; None for that of [kafka]."""
        if not self.bootstrap_servers:
            return None
        return KafkaSettings(**{name: getattr(self, name) for name in _CONNECTION})


_CONNECTION = tuple(each.name for each in fields(KafkaSettings) if each.name not in ("prefix", "replication"))


@dataclass(frozen=True, slots=True)
class SchemaRegistrySettings:
    """A schema registry with Confluent's HTTP API.

    Attributes:
        url: its address; empty where there is none.
        username, password: who asks; empty for nobody.
    """

    url: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        record_bytes_max: the longest record that is decoded, in bytes; a longer one goes to dead_letters.
        document_bytes_max: the longest document that is taken, in bytes.
        rescan_s: how often watched folders are compared with what is known of them, in seconds.
        keys: key columns by `source/entity` or `entity`, for events that come without their key.
        folders: watched folders.
        buckets: watched buckets.
        topics: topics of Kafka that others write; where several take a topic, the first does.
        schema_registry: where the schemas of Avro records are.
    """

    record_bytes_max: int = 4 << 20
    document_bytes_max: int = DOCUMENT_BYTES
    rescan_s: float = 60.0
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folders: tuple[FolderSettings, ...] = ()
    buckets: tuple[BucketSettings, ...] = ()
    topics: tuple[TopicsSettings, ...] = ()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [ingest]; raises InvalidInputError that names the setting which is wrong."""
        read = Section("ingest", table, cls())
        keys = read.section("keys")
        return cls(
            record_bytes_max=read.whole("record_bytes_max"),
            document_bytes_max=read.whole("document_bytes_max", 1, DOCUMENT_BYTES_MAX),
            rescan_s=read.number("rescan_s", RESCAN_S_MIN),
            keys={entity: keys.texts(entity, least=1) for entity in keys.values},
            folders=_folders(read),
            buckets=_buckets(read),
            topics=tuple(map(_topics, read.sections("topics", TopicsSettings()))),
            schema_registry=_schema_registry(read.section("schema_registry", SchemaRegistrySettings())),
        )


def _folders(read: Section) -> tuple[FolderSettings, ...]:
    folders = tuple(map(_folder, read.sections("folders", FolderSettings(Path()))))
    _check_apart("folders", [(folder.tenant, folder.source) for folder in folders])
    return folders


def _check_apart(kind: str, names: Sequence[tuple[str, str]]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError(f"[[ingest.{kind}]]: two {kind} have the source {name[1]!r}: name them apart")


def _buckets(read: Section) -> tuple[BucketSettings, ...]:
    buckets = tuple(map(_bucket, read.sections("buckets", BucketSettings(""))))
    _check_apart("buckets", [(bucket.tenant, bucket.source) for bucket in buckets])
    return buckets


def _bucket(read: Section) -> BucketSettings:
    name = read.text("name", required=True)
    return BucketSettings(
        name=name,
        endpoint=_url(read, "endpoint"),
        region=read.text("region"),
        access_key=read.text("access_key"),
        secret_key=read.text("secret_key"),
        session_token=read.text("session_token"),
        prefix=read.text("prefix"),
        source=read.text("source") or name,
        tenant=read.text("tenant") or DEFAULT_TENANT,
        access=read.texts("access"),
        include=read.texts("include", least=1),
        exclude=read.texts("exclude"),
    )


def _topics(read: Section) -> TopicsSettings:
    names, pattern = read.texts("names"), read.text("pattern")
    if not names and not pattern:
        raise read.refusal("pattern", "is missing: name the topics by it, or by names")
    try:
        re.compile(rf"(?:{pattern})\Z")
    except re.error as error:
        raise read.refusal("pattern", f"is not a regular expression ({error})") from error
    if _BACKWARDS.search(pattern):  # patterns are joined to one, where groups have other numbers
        raise read.refusal("pattern", "must not name groups, nor refer back to them")
    tenant = read.text("tenant")
    if SEPARATOR in tenant:
        raise read.refusal("tenant", "must not hold the character U+001F")
    given = {name: read.values[name] for name in _CONNECTION if name in read.values}
    if given.get("bootstrap_servers", "") == "" and len(given) > len(given.keys() & {"bootstrap_servers"}):
        raise read.refusal("bootstrap_servers", "is missing, and only with it the other settings of a cluster count")
    connection: dict[str, Any] = {}
    if given.get("bootstrap_servers", "") != "":
        try:
            cluster = KafkaSettings.from_config(given)
        except InvalidInputError as error:
            raise InvalidInputError(str(error).replace("[kafka]", read.where)) from error
        connection = {name: getattr(cluster, name) for name in _CONNECTION}
    return TopicsSettings(
        names=names,
        pattern=pattern,
        format=read.choice("format", TOPIC_FORMATS),
        source=read.text("source"),
        tenant=tenant or DEFAULT_TENANT,
        **connection,
    )


def _schema_registry(read: Section) -> SchemaRegistrySettings:
    return SchemaRegistrySettings(url=_url(read, "url"), username=read.text("username"), password=read.text("password"))


def _url(read: Section, name: str) -> str:
    url = read.text(name)
    if url and not url.startswith(("http://", "https://")):
        raise read.refusal(name, f"must be a URL, such as http://127.0.0.1:8081, not {url!r:.60}")
    return url


def _folder(read: Section) -> FolderSettings:
    path = Path(read.text("path", required=True)).expanduser().absolute()
    return FolderSettings(
        path=path,
        source=read.text("source") or path.name,
        tenant=read.text("tenant") or DEFAULT_TENANT,
        access=read.texts("access"),
        include=read.texts("include", least=1),
        exclude=read.texts("exclude"),
    )
