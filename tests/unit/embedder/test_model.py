"""The model that comes with Headwater: built from its weights, deterministic, and near to what it should be near to."""

import concurrent.futures
from pathlib import Path

import numpy as np
import pytest

from services.embedder import model as model_module
from services.embedder.app import default_model
from services.embedder.model import DIMENSIONS, MiniLm, graph_file


@pytest.fixture(scope="module")
def model() -> MiniLm:
    return default_model()


def test_texts_of_like_meaning_are_near(model: MiniLm) -> None:
    question, answer, other = (
        model.embed(text)
        for text in ("How do I get my money back?", "Refunds are paid within ten days.", "The zebra is striped.")
    )
    assert question @ answer > 0.4 > 0.2 > question @ other


def test_vectors_have_length_one(model: MiniLm) -> None:
    vector = model.embed("a text")
    assert vector.shape == (DIMENSIONS,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_vector_depends_on_its_text_alone_whatever_else_is_embedded_at_the_time(model: MiniLm) -> None:
    texts = [f"text number {n} " * (n % 40 + 1) for n in range(60)]
    alone = [model.embed(text).tobytes() for text in texts]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda text: model.embed(text).tobytes(), reversed(texts)))
    assert together == alone[::-1]


def test_empty_and_very_long_texts_have_vectors(model: MiniLm) -> None:
    assert np.isfinite(model.embed("")).all()
    assert np.isfinite(model.embed("word " * 5000)).all()


def test_tokens_of_a_long_text_are_those_of_its_parts(model: MiniLm, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Unbelievable prices, 24-hour check-in, Grüße. " * 40
    whole = list(model.token_starts(text))
    monkeypatch.setattr(model_module, "_WINDOW", 100)
    assert list(model.token_starts(text)) == whole
    assert whole == sorted(whole)


def test_the_graph_is_built_once_and_a_damaged_one_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path))
    first = graph_file()
    whole, changed = first.read_bytes(), first.stat().st_mtime_ns
    assert graph_file().stat().st_mtime_ns == changed
    first.write_bytes(whole[:-1000])
    assert graph_file().read_bytes() == whole
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".onnx", ".sha256"]
