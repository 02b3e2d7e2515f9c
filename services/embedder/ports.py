"""What the knowledge base needs from outside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from services.kernel.jobs import Lane

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]
else:  # numpy takes a while to import, and not every process that names the type needs it
    Vector = Any


class Embedder(Protocol):
    """An embedding model, wherever it runs.

    Attributes:
        model_id: names the model and everything that its vectors depend on: vectors of two ids never meet.
        dimensions: the length of its vectors; 0 while only the model's first answer can tell.
        tokens_max: how many tokens of a text it takes into account.
        texts_at_once: how many texts of a document it is best given together. Their vectors become lasting
            together, so it is also the most that a crash takes away.
        documents_at_once: how many documents are worked on at a time to keep it busy.
        live_documents: of these, how many backfill leaves to what changes just now.
    """

    model_id: str
    dimensions: int
    tokens_max: int
    texts_at_once: int
    documents_at_once: int
    live_documents: int

    async def embed(self, texts: Sequence[str], lane: Lane, *, alone: bool = False) -> Sequence[Vector]:
        """Return the vectors of texts of one document, each of length 1: `(dimensions,) float32`.

        A result depends on its text alone.

        Args:
            texts: at most `texts_at_once`.
            lane: live texts go ahead of those of the backfill.
            alone: nothing of other documents may share a call with these: the document has failed before.

        Raises:
            EnrichmentError: it cannot, by its kind; none of the texts has a vector then.
        """

    async def embed_query(self, text: str) -> Vector:
        """Return the vector of a query at once, ahead of everything else, or raise a HeadwaterError."""

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters, without the marks at its ends; may block."""

    async def warm_up(self) -> None:
        """Load what takes long to load."""

    async def close(self) -> None:
        """Let go of threads and connections."""


class Model(Protocol):
    """An embedding model that runs in this process. Methods block and are called in threads, several at once.

    Attributes:
        model_id, dimensions, tokens_max: as of an `Embedder`.
    """

    model_id: str
    dimensions: int
    tokens_max: int

    def embed(self, text: str) -> Vector:
        """Return the vector of a text, of length 1: `(dimensions,) float32`.

        The result depends on the text alone. Raises an `EnrichmentError` when it cannot, by its kind.
        """

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters, without the marks at its ends."""

    def load(self) -> None:
        """Load the model now rather than at the first text."""
