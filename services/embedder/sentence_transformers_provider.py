"""Any model of the library sentence-transformers, in this process, on PyTorch: an extra, for it weighs gigabytes."""

import importlib.util
import threading
from array import array
from collections.abc import Sequence
from typing import Any

from services.embedder.ports import Vector
from services.embedder.settings import ModelSettings
from services.kernel.errors import UnavailableError
from services.kernel.jobs import PermanentError

EXTRA = "headwater[sentence-transformers]"
TOKENS_MAX = 256  # unless the settings say otherwise: only the loaded model could tell
_MARKS = 2  # at the ends of a text
_TINY = 1e-12


class SentenceTransformersModel:
    """A model, loaded when it is first used; see `ports.Model`. One text at a time: a vector has no batch mates."""

    def __init__(self, settings: ModelSettings) -> None:
        """Wire the model.

        Args:
            settings: its name, or the folder that it is in, its dimensions and its longest text.

        Raises:
            UnavailableError: the library is not installed.
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UnavailableError(
                f"embedder.model.provider = \"sentence-transformers\" needs an extra: pip install '{EXTRA}'"
            )
        self._name = settings.model
        self.model_id = f"sentence-transformers/{settings.model}/{settings.dimensions or 'native'}"
        self.dimensions = settings.dimensions
        self.tokens_max = (settings.tokens_max or TOKENS_MAX) - _MARKS
        self._loading = threading.Lock()
        self._model: Any = None

    def embed(self, text: str) -> Vector:
        """Return the vector of a text, of length 1, float32."""
        import numpy as np

        vector = self._loaded().encode(text, convert_to_numpy=True, show_progress_bar=False).astype(np.float64)
        norm = np.linalg.norm(vector)
        if not np.isfinite(norm) or norm < _TINY:
            raise PermanentError(f"{self._name}: the vector of a text is zero, or not finite: change the text")
        unit: Vector = (vector / norm).astype(np.float32)
        return unit

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, as the model's own tokenizer cuts it."""
        tokenizer = self._loaded().tokenizer
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return array("I", (start for start, _ in encoding["offset_mapping"]))

    def load(self) -> None:
        """Load the model now rather than at the first text."""
        self._loaded()

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                self._model = self._opened()
            return self._model

    def _opened(self) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            # Matryoshka models give as many dimensions as are asked for; others are checked against what was asked.
            model = SentenceTransformer(self._name, truncate_dim=self.dimensions or None)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"embedder.model.model: {self._name!r} cannot be loaded: {error}") from error
        if not model.tokenizer.is_fast:
            raise UnavailableError(f"{self._name} has no tokenizer that tells where tokens begin: take another model")
        takes = model.max_seq_length
        if takes is not None and takes - _MARKS < self.tokens_max:
            raise UnavailableError(
                f"{self._name} takes {takes} tokens, fewer than chunks have: set embedder.model.tokens_max = {takes}"
            )
        return model
