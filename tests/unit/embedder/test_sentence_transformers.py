"""sentence-transformers as a provider: refused without its extra; with it, the vectors of the ONNX graph in float32."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.embedder import model_graph
from services.embedder.app import default_model, embedder_of
from services.embedder.model import TOKENS_MAX, weights_folder
from services.embedder.sentence_transformers_provider import SentenceTransformersModel
from services.embedder.settings import ModelSettings
from services.kernel.errors import UnavailableError

SETTINGS = ModelSettings(provider="sentence-transformers", model=str(weights_folder()))
TEXTS = [
    "How long can I cancel for nothing?",
    "You may cancel any booking free of charge within 24 hours.",
    "Grüße aus München: 24-hour check-in, unbelievable prices!",
    "旅行保険について",
    "word " * 200,
    "a",
]


def test_without_the_extra_it_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"pip install 'headwater\[sentence-transformers\]'"):
        embedder_of(SETTINGS)


class InFull(model_graph._Graph):
    """The same graph with the weights as they are, float32."""

    def _quantised(self, name: str, weights: Any) -> Any:
        return (self._constant(f"{name}.weights", weights),)

    def _dense(self, x: str, name: str) -> str:
        return self._node("MatMul", [x, *self._quantised(name, self._tensor(f"{name}.weight").T)], f"{name}.out")

    def _attention(self, x: str, name: str) -> str:
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        weights = np.concatenate([self._tensor(f"{part}.weight").T for part in parts], axis=1)
        bias = np.concatenate([self._tensor(f"{part}.bias") for part in parts])
        inputs = [x, self._constant(f"{name}.weights", weights), self._constant(f"{name}.bias", bias)]
        return self._node("Attention", inputs, f"{name}.out", domain="com.microsoft", num_heads=self._heads)

    def _embeddings(self, tokens_max: int) -> str:
        word = self._node("Gather", [self._vector("embeddings.word_embeddings.weight"), "input_ids"], "word")
        places = self._tensor("embeddings.position_embeddings.weight")[:tokens_max]
        places += self._tensor("embeddings.token_type_embeddings.weight")[0]
        zero = self._constant("zero", np.array([0], np.int64))
        length = self._node("Shape", ["input_ids"], "length", start=1, end=2)
        place = self._node("Slice", [self._constant("places", places), zero, length, zero], "place")
        total = self._node("Add", [word, place], "embeddings.sum")
        gamma, beta = self._norm("embeddings.LayerNorm")
        return self._node("LayerNormalization", [total, gamma, beta], "embeddings.out", axis=-1, epsilon=self._epsilon)


@pytest.mark.torch
@pytest.mark.timeout(600)
# PyTorch and what comes with it warn of their own affairs.
@pytest.mark.filterwarnings("default")
def test_its_vectors_are_those_of_the_graph_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(model_graph, "_Graph", InFull)
    model_graph.build(weights_folder(), tmp_path / "full.onnx", TOKENS_MAX)
    session = onnxruntime.InferenceSession(tmp_path / "full.onnx", providers=["CPUExecutionProvider"])
    ours, theirs = default_model(), SentenceTransformersModel(SETTINGS)
    assert theirs.tokens_max == ours.tokens_max
    for text in TEXTS:
        ids = ours._tokenizer.encode(text).ids
        reference = session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]
        vector = theirs.embed(text)
        assert vector.dtype == np.float32
        assert float(vector @ reference) > 0.9999, text
        assert list(theirs.token_starts(text)) == list(ours.token_starts(text))


@pytest.mark.torch
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
def test_a_model_that_takes_less_than_a_chunk_and_one_that_is_not_there_are_refused() -> None:
    from dataclasses import replace

    with pytest.raises(UnavailableError, match="tokens_max = 256"):
        SentenceTransformersModel(replace(SETTINGS, tokens_max=512)).load()
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        SentenceTransformersModel(replace(SETTINGS, model="/no/such/folder")).load()
