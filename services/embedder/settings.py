"""The settings of the embedder: the table [embedder] of the configuration.

[embedder]
document_bytes_max = 16777216    # a larger document is parked with that reason
chunk_tokens = 160               # neighbouring paragraphs are put together up to this, in the model's tokens
vector_weight = 0.8              # the share of meaning in a hit's score; the rest is words
attempts_max = 8                 # a document that fails more often is parked
memory_bytes_max = 67108864      # of documents that are worked on at the same time

[embedder.model]                 # without this table, the model that comes with Headwater
provider = "openai"              # any endpoint that speaks OpenAI's /embeddings
base_url = "http://127.0.0.1:11434/v1"
model = "nomic-embed-text"
dimensions = 768

[[embedder.tables]]              # rows that become documents
source = "inventory"
entity = "hotels"
title = "{name}"
text = "{name} in {city}. {description}"    # columns that are named here or in the title are embedded
live = ["price_per_night", "rooms_left"]    # columns that are shown as they are now and cost no embedding
metadata = ["city"]                         # columns that become metadata
access = ["audience"]                       # columns that hold access labels: a text, or a list of texts
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from services.embedder.rows import SETTINGS, RowTemplate, parse
from services.kernel.errors import InvalidInputError
from services.kernel.settings import DOCUMENT_BYTES, DOCUMENT_BYTES_MAX, Section

MEMORY_BYTES_MAX = 64 << 30
DIMENSIONS_MAX = 65_536
TOKENS_MIN, TOKENS_MAX = 64, 1_000_000  # below the least, title and headings would leave no room for the text
BATCH_TEXTS_MAX = 2048
BATCH_TOKENS_MAX = 10_000_000
REQUESTS_MAX = 64
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 0.001, 3600


class Provider(Enum):
    """Where the embedding model runs."""

    ONNX = "onnx"
    OPENAI = "openai"
    SENTENCE_TRANSFORMERS = "sentence-transformers"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The embedding model: the table [embedder.model].

    Attributes:
        provider: where it runs.
        base_url: of an endpoint, up to and including the version, for example http://127.0.0.1:11434/v1.
        model: the model's name, as the endpoint or sentence-transformers knows it.
        api_key_env: the environment variable that holds the key; empty when none is needed. The key itself is never
            in the configuration.
        dimensions: the length of vectors to ask for, and the only one that is taken; 0 takes the model's own.
        tokens_max: how many tokens of a text the model takes; 0 means as many as the one that comes with Headwater.
        batch_texts_max: how many texts go into one request.
        batch_tokens_max: how many tokens go into one request.
        timeout_s: the longest that a request may take, in seconds.
        query_timeout_s: the same for the request of a query, which is answered by words alone after that.
        requests_max: how many requests of documents are in flight at a time.
    """

    provider: str = Provider.ONNX.value
    base_url: str = ""
    model: str = ""
    api_key_env: str = ""
    dimensions: int = 0
    tokens_max: int = 0
    batch_texts_max: int = 32
    batch_tokens_max: int = 16_384
    timeout_s: float = 30.0
    query_timeout_s: float = 1.5
    requests_max: int = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        model: the embedding model.
        document_bytes_max: the largest document that is read, in bytes.
        chunk_tokens: how large chunks are made of neighbouring paragraphs, in the model's tokens.
        vector_weight: the share of the vectors in the fused score, 0 to 1.
        attempts_max: a document is parked after so many failed attempts.
        memory_bytes_max: of documents in work at the same time, in bytes; a larger one is worked on alone.
        tables: how rows become documents, by source and entity.
    """

    model: ModelSettings = ModelSettings()
    document_bytes_max: int = DOCUMENT_BYTES
    chunk_tokens: int = 160
    vector_weight: float = 0.8
    attempts_max: int = 8
    memory_bytes_max: int = 64 << 20
    tables: Mapping[tuple[str, str], RowTemplate] = field(default_factory=dict)

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [embedder]; raises InvalidInputError that names the setting which is wrong."""
        read = Section("embedder", table, cls())
        tables: dict[tuple[str, str], RowTemplate] = {}
        for each in read.sections("tables", names=SETTINGS):
            template = parse(each)
            if (template.source, template.entity) in tables:
                where = f"{template.source}/{template.entity}"
                raise InvalidInputError(f"{each.where} {where} is there already: join the two")
            tables[template.source, template.entity] = template
        return cls(
            model=_model(read.section("model", ModelSettings())),
            document_bytes_max=read.whole("document_bytes_max", 1, DOCUMENT_BYTES_MAX),
            chunk_tokens=read.whole("chunk_tokens", 16, 200),
            vector_weight=read.number("vector_weight", 0, 1),
            attempts_max=read.whole("attempts_max", 1, 1000),
            memory_bytes_max=read.whole("memory_bytes_max", 1, MEMORY_BYTES_MAX),
            tables=tables,
        )


def _model(read: Section) -> ModelSettings:
    settings = ModelSettings(
        provider=read.choice("provider", Provider),
        base_url=read.text("base_url"),
        model=read.text("model"),
        api_key_env=read.text("api_key_env"),
        dimensions=read.whole("dimensions", 0, DIMENSIONS_MAX),
        tokens_max=read.whole("tokens_max", 0, TOKENS_MAX),
        batch_texts_max=read.whole("batch_texts_max", 1, BATCH_TEXTS_MAX),
        batch_tokens_max=read.whole("batch_tokens_max", 1, BATCH_TOKENS_MAX),
        timeout_s=read.number("timeout_s", TIMEOUT_S_MIN, TIMEOUT_S_MAX),
        query_timeout_s=read.number("query_timeout_s", TIMEOUT_S_MIN, TIMEOUT_S_MAX),
        requests_max=read.whole("requests_max", 1, REQUESTS_MAX),
    )
    if 0 < settings.tokens_max < TOKENS_MIN:
        raise read.refusal("tokens_max", f"must be 0 or at least {TOKENS_MIN}, not {settings.tokens_max}")
    provider = Provider(settings.provider)
    if provider is Provider.ONNX:
        if needless := sorted(set(read.values) - {"provider"}):
            raise read.refusal(needless[0], f'is of no use with provider = "{provider.value}": leave it out')
        return settings
    if not settings.model:
        raise read.refusal("model", f'is missing: provider = "{provider.value}" needs the model\'s name')
    if provider is Provider.OPENAI and not settings.base_url.startswith(("http://", "https://")):
        raise read.refusal("base_url", f"must begin with http:// or https://, not be {settings.base_url!r}")
    return settings
