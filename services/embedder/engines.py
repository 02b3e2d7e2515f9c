"""Which engine holds the chunks, by what is configured; an adapter's packages are loaded only when it is."""

from collections.abc import Callable, Mapping
from typing import Any

from services.embedder.index import ChunkIndex
from services.kernel.errors import InvalidInputError


def remote_index(table: Callable[[str], Mapping[str, Any]], *, model_id: str, dimensions: int) -> ChunkIndex | None:
    """Return the index outside the local database; None when none is configured.

    Args:
        table: returns a table of the configuration by its name.
        model_id: the embedding model.
        dimensions: the length of its vectors; 0 while only the first one can tell.

    Raises:
        InvalidInputError: the settings are wrong, or are of two engines.
    """
    opensearch, postgresql = table("opensearch"), table("postgresql")
    if opensearch and postgresql:
        raise InvalidInputError("[opensearch] and [postgresql] are both configured: chunks are in one, leave one out")
    if opensearch:
        from services.embedder.opensearch_client import OpenSearchSettings
        from services.embedder.opensearch_index import OpenSearchIndex

        return OpenSearchIndex(OpenSearchSettings.from_config(opensearch), model_id=model_id, dimensions=dimensions)
    if postgresql:
        from services.embedder.pgvector_client import PostgresSettings
        from services.embedder.pgvector_index import PgvectorIndex

        return PgvectorIndex(PostgresSettings.from_config(postgresql), model_id=model_id, dimensions=dimensions)
    return None
