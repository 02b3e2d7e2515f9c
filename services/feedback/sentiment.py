"""The tone of a text, and whether the person is satisfied: in process, with a lexicon and what was learnt from ratings.

The tone is VADER's, a lexicon of English: it is fast and explains itself, but knows no other language, no irony, and
no trouble that is told in plain words ("charged twice"). Its figures for dissatisfaction are AUC .59 to .75. So the
*category* is taken from better witnesses where there are any: the rating itself, then a model of which questions left
people dissatisfied (`learning`), and the tone only where there is neither.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from services.feedback.answers import RATING_UNIT
from services.feedback.learning import Model
from services.feedback.ports import Text

NEUTRAL_MAX = 0.05  # VADER's own bound of what is neutral
SATISFIED, NEUTRAL, DISSATISFIED = "satisfied", "neutral", "dissatisfied"
# From this probability on a person is held to be dissatisfied, up to that one satisfied.
DISSATISFIED_MIN, SATISFIED_MAX = 0.5, 0.25
TEXT_MAX = 10_000  # characters; a longer text is judged by its beginning
NAME = "vader"


class Verdict(NamedTuple):
    """What a text was classified as: tone from -1 to 1, category of satisfaction, and by what."""

    score: float
    category: str
    classifier: str


@functools.cache
def _analyzer() -> Callable[[str], dict[str, float]]:
    # Imported here: the lexicon takes a tenth of a second, and whoever asks for no classification needs none.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    scores: Callable[[str], dict[str, float]] = SentimentIntensityAnalyzer().polarity_scores
    return scores


def tone(text: str) -> float:
    """The tone of an English text, from -1 to 1; 0 for one without a known word."""
    return _analyzer()(text[:TEXT_MAX])["compound"]


def classify(text: Text, model: Model | None) -> Verdict:
    """Classify what a person wrote.

    Args:
        text: what, and what else is known of the answer.
        model: what was learnt from ratings; None while that is not good enough.
    """
    score = tone(text.text)
    if text.rating is not None:
        share = text.rating / RATING_UNIT
        return Verdict(score, _category(1 - share, 0.75), NAME)
    if model is not None and not text.is_rating:
        return Verdict(
            score, _category(model.dissatisfied(text.text, text.signs), DISSATISFIED_MIN), f"{NAME}+{model.name}"
        )
    if abs(score) < NEUTRAL_MAX:
        return Verdict(score, NEUTRAL, NAME)
    return Verdict(score, SATISFIED if score > 0 else DISSATISFIED, NAME)


def _category(dissatisfied: float, at_least: float) -> str:
    if dissatisfied >= at_least:
        return DISSATISFIED
    return SATISFIED if dissatisfied <= SATISFIED_MAX else NEUTRAL
