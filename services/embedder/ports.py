"""What the knowledge base needs from outside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]
else:  # numpy takes a while to import, and not every process that names the type needs it
    Vector = Any


class Embedder(Protocol):
    """An embedding model. Methods may block and are called in threads, several at once.

    Attributes:
        model_id: names the model and everything that its vectors depend on: vectors of two ids never meet.
        dimensions: the length of its vectors.
        tokens_max: how many tokens of a text it takes into account.
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
