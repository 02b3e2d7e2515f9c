"""Learning from ratings which questions leave people dissatisfied: a logistic regression on words, in plain Python.

The same examples give the same model, bit for bit: they are sorted, nothing is drawn at random, and sums run in a
fixed order. A model is only used when it has proved itself on examples that it was not trained on: `train` returns
none that is not clearly better than the lexicon.
"""

import hashlib
import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from services.feedback.ports import Example

FEATURES = 1 << 15
WORDS_MAX = 200
EPOCHS = 8
RATE = 0.3  # of AdaGrad
DECAY = 1e-4
FOLDS = 3
EXAMPLES_MIN, CLASS_MIN = 60, 15  # fewer rated turns, or fewer of one kind, prove nothing
AUC_MIN, AUC_AHEAD = 0.62, 0.02  # at least this good, and so much better than the baseline
_WORD = re.compile(r"\w+")

Features = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model.

    Attributes:
        name: `learnt-` and a digest of the weights.
        weights: feature to weight; features that are not named have none.
        rarities: feature to the logarithm of how rare it is in questions.
        bias: the weight of everybody.
        auc: how well it told the dissatisfied from the satisfied among examples that it had not seen.
        examples: how many it was trained on.
    """

    name: str
    weights: Mapping[int, float]
    rarities: Mapping[int, float]
    bias: float
    auc: float
    examples: int

    def dissatisfied(self, text: str, signs: Sequence[str]) -> float:
        """The probability that a person who asks this, and gets an answer with these signs, is dissatisfied."""
        features = _weighted(_counts(text, signs), self.rarities)
        return _sigmoid(self.bias + sum(self.weights.get(index, 0.0) * value for index, value in features))

    def state(self) -> bytes:
        """What `restored` makes the same model from."""
        return orjson.dumps(
            [
                self.name,
                list(self.weights.items()),
                list(self.rarities.items()),
                self.bias,
                self.auc,
                self.examples,
            ]
        )

    @classmethod
    def restored(cls, state: bytes) -> "Model":
        """The model of a state."""
        name, weights, rarities, bias, auc, examples = orjson.loads(state)
        return cls(name, dict(weights), dict(rarities), bias, auc, examples)


def train(examples: Sequence[Example], baseline: Callable[[str], float]) -> Model | None:
    """Train a model, if it is worth it.

    Args:
        examples: rated turns.
        baseline: gives a text's tone, lower for the dissatisfied: what the model must beat.

    Returns:
        The model; None while there are too few examples, or while it is not clearly better than the baseline on
        examples that were held out.
    """
    examples = sorted(set(examples))
    dissatisfied = sum(example.dissatisfied for example in examples)
    if len(examples) < EXAMPLES_MIN or min(dissatisfied, len(examples) - dissatisfied) < CLASS_MIN:
        return None
    labels = [example.dissatisfied for example in examples]
    held_out: dict[int, float] = {}
    for fold in range(FOLDS):
        model = _fit([e for e in examples if _fold(e) != fold], 0.0)
        held_out.update(
            (index, model.dissatisfied(example.text, example.signs))
            for index, example in enumerate(examples)
            if _fold(example) == fold
        )
    auc = area_under_curve([held_out[index] for index in range(len(examples))], labels)
    lexicon = area_under_curve([-baseline(example.text) for example in examples], labels)
    if auc < max(AUC_MIN, lexicon + AUC_AHEAD):
        return None
    return _fit(examples, auc)


def area_under_curve(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that one of the dissatisfied has a higher score than one of the others; a half where all are equal."""
    ranked = sorted(zip(scores, labels, strict=True))
    positives, negatives = sum(labels), len(labels) - sum(labels)
    if not positives or not negatives:
        return 0.5
    total, begin = 0.0, 0
    while begin < len(ranked):
        end = begin
        while end < len(ranked) and ranked[end][0] == ranked[begin][0]:
            end += 1
        total += sum(label for _, label in ranked[begin:end]) * (begin + end + 1) / 2  # the mean rank of equal ones
        begin = end
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def _fold(example: Example) -> int:
    return zlib.crc32(example.digest.encode()) % FOLDS


def _counts(text: str, signs: Sequence[str]) -> Counter[int]:
    words = [word.casefold() for word in _WORD.findall(text)[:WORDS_MAX]]
    terms = [*words, *map(" ".join, itertools.pairwise(words)), *(f"\x00{sign}" for sign in signs)]
    return Counter(zlib.crc32(term.encode()) % FEATURES for term in terms)


def _weighted(counts: Counter[int], rarities: Mapping[int, float]) -> Features:
    """TF-IDF, with length 1; words never seen in training are left out."""
    raw = [(index, (1 + math.log(n)) * rarities[index]) for index, n in counts.items() if index in rarities]
    norm = math.sqrt(sum(value * value for _, value in raw)) or 1.0
    return [(index, value / norm) for index, value in sorted(raw)]


def _fit(examples: Sequence[Example], auc: float) -> Model:
    counts = [_counts(example.text, example.signs) for example in examples]
    documents = Counter(index for count in counts for index in count)
    rarities = {index: math.log((1 + len(examples)) / (1 + n)) + 1 for index, n in sorted(documents.items()) if n > 1}
    rows = [(_weighted(count, rarities), float(e.dissatisfied)) for count, e in zip(counts, examples, strict=True)]
    weights, bias = _descend(rows)
    state = orjson.dumps([sorted(weights.items()), bias])
    return Model(f"learnt-{hashlib.sha256(state).hexdigest()[:8]}", weights, rarities, bias, auc, len(examples))


def _descend(rows: Sequence[tuple[Features, float]]) -> tuple[dict[int, float], float]:
    """Logistic regression by AdaGrad, one example after the other, always in the same order."""
    weights: dict[int, float] = {}
    squares: dict[int, float] = {}
    bias, bias_square = 0.0, 1e-8
    for _ in range(EPOCHS):
        for features, label in rows:
            error = _sigmoid(bias + sum(weights.get(index, 0.0) * value for index, value in features)) - label
            bias_square += error * error
            bias -= RATE * error / math.sqrt(bias_square)
            for index, value in features:
                slope = error * value + DECAY * weights.get(index, 0.0)
                squares[index] = squares.get(index, 1e-8) + slope * slope
                weights[index] = weights.get(index, 0.0) - RATE * slope / math.sqrt(squares[index])
    return weights, bias


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))
