"""The answers of an OpenAI-compatible `/embeddings`: read, checked, and classed where they are no vectors. Pure."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.embedder.ports import Vector
from services.embedder.rate_limits import wait_s
from services.kernel.errors import HeadwaterError
from services.kernel.jobs import EnrichmentError, RateLimited, TransientError

TOO_MANY, UNAVAILABLE, SERVER_ERROR = 429, 503, 500
_OF_THE_TEXTS = frozenset({400, 413, 422})
_SAID_MAX = 300  # characters of an error that are kept
_TINY = 1e-12  # a vector that is shorter has no direction


class TextsRefusedError(HeadwaterError):
    """The endpoint does not take these texts as they are, together or one of them."""


class DoubtfulError(TransientError):
    """The endpoint failed, as it does when it is unwell, and also over a text that it cannot cope with."""


def vectors_of(body: bytes, count: int, dimensions: int) -> list[Vector | None]:
    """Return the vectors in the order of the texts, each of length 1; None for one with no direction.

    Args:
        body: the answer.
        count: how many texts were sent.
        dimensions: the length that a vector must have; 0 takes what comes, when all are of one length.

    Raises:
        DoubtfulError: it is no such answer, or not for these texts.
        TransientError: the vectors are of another length: of another model, or of other settings.
    """
    import numpy as np

    found = [_numbers(entry) for entry in _entries(_document(body), count)]
    lengths = {len(numbers) for numbers in found}
    if len(lengths) != 1 or (dimensions and lengths != {dimensions}):
        told = ", ".join(map(str, sorted(lengths)))
        raise TransientError(
            f"the endpoint's vectors have {told} dimensions, not {dimensions or 'all the same'}: "
            "check embedder.model.model and embedder.model.dimensions"
        )
    matrix = np.stack(found).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(matrix, axis=1)
    return [
        (row / norm).astype(np.float32) if np.isfinite(norm) and norm > _TINY else None
        for row, norm in zip(matrix, norms, strict=True)
    ]


def refusal(
    url: str, status: int, headers: Mapping[str, str], body: bytes, *, now: float, patience_s: float
) -> EnrichmentError | TextsRefusedError:
    """Return what an answer that is no success means.

    Args:
        url: where it is from.
        status, headers, body: the answer.
        now: unix seconds.
        patience_s: how long to stay away when the endpoint is busy and does not say for how long.
    """
    words = f"{url} refused with {status}: {_said(body)}{_cure(status)}"
    wait = wait_s(headers, now)
    if status == TOO_MANY or (status == UNAVAILABLE and "retry-after" in headers):
        return RateLimited(words, wait if wait is not None else patience_s)
    if status in _OF_THE_TEXTS:
        return TextsRefusedError(words)
    # A wrong key or name is no text's fault: no document is given up for it, and the circuit opens.
    return DoubtfulError(words) if status == SERVER_ERROR else TransientError(words)


def _document(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)  # takes the NaN that some servers write
        except ValueError:
            raise DoubtfulError(f"the endpoint sent something that is not JSON: {body[:80]!r}") from None


def _entries(document: Any, count: int) -> Sequence[Any]:
    """The entries of the answer in the order of the texts."""
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DoubtfulError("the endpoint's answer has no list `data` of embeddings")
    if len(entries) != count:
        raise DoubtfulError(f"the endpoint sent {len(entries)} vectors for {count} texts")
    places = [entry.get("index", place) for place, entry in enumerate(entries)]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
        raise DoubtfulError("the endpoint's vectors do not say which texts they are of")
    ordered: list[Any] = [None] * count
    for place, entry in zip(places, entries, strict=True):
        ordered[place] = entry.get("embedding")
    return ordered


def _numbers(entry: Any) -> Vector:
    import numpy as np

    try:
        if isinstance(entry, str):
            return np.frombuffer(base64.b64decode(entry, validate=True), "<f4")
        numbers = np.asarray(entry, np.float32)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise DoubtfulError("the endpoint's vectors hold something that is no number") from None
    if numbers.ndim != 1 or not len(numbers):
        raise DoubtfulError("the endpoint's vectors are no lists of numbers")
    return numbers


def _said(body: bytes) -> str:
    """The words of an error: its message, where it has one."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    words = message if isinstance(message, str) else body.decode(errors="replace")
    return " ".join(words.split())[:_SAID_MAX]


def _cure(status: int) -> str:
    if status in (401, 403):
        return " (check the key that embedder.model.api_key_env names)"
    if status == 404:
        return " (check embedder.model.base_url and model)"
    return ""
