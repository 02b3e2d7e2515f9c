"""Learning from ratings, and what texts are classified as."""

from hypothesis import given, settings, strategies as st

from services.feedback.answers import Key
from services.feedback.learning import Model, area_under_curve, train
from services.feedback.ports import Example, Text
from services.feedback.sentiment import classify, tone

TROUBLE = ["charged twice", "refund missing", "cancelled flight", "lost bag"]
PLEASANT = ["breakfast hours", "tram stop", "free night", "vegan menu"]


def examples(count: int = 120, *, related: bool = True) -> list[Example]:
    found = []
    for index in range(count):
        bad = index % 3 == 0
        words = (TROUBLE if bad or (not related and index % 2) else PLEASANT)[index % 4]
        found.append(Example(f"{index:04d}", f"question about {words} number {index % 7}", (), bad))
    return found


def text(words: str, *, is_rating: bool = False, rating: int | None = None) -> Text:
    return Text(Key("t", "answer:a"), "d", words, is_rating, rating, 0, 0, "", ())


def test_the_same_examples_give_the_same_model_in_whatever_order() -> None:
    one, two = train(examples(), lambda _: 0.0), train(examples()[::-1], lambda _: 0.0)
    assert one is not None
    assert two is not None
    assert one.state() == two.state()
    assert Model.restored(one.state()).state() == one.state()


def test_a_model_tells_trouble_from_the_rest() -> None:
    model = train(examples(), lambda _: 0.0)
    assert model is not None
    assert model.auc > 0.9
    assert model.dissatisfied("you charged me twice", ()) > 0.5 > model.dissatisfied("where is the tram stop", ())


def test_too_few_examples_prove_nothing() -> None:
    assert train(examples(40), lambda _: 0.0) is None
    assert train([e._replace(dissatisfied=False) for e in examples()], lambda _: 0.0) is None


def test_a_model_that_is_no_better_than_the_lexicon_is_not_used() -> None:
    labels = {example.text: example.dissatisfied for example in examples()}
    assert train(examples(), lambda words: -float(labels[words])) is None


def test_a_model_of_nothing_is_not_used() -> None:
    meaningless = [Example(f"{i:04d}", "the same question", (), i % 3 == 0) for i in range(120)]
    assert train(meaningless, lambda _: 0.0) is None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order(sample: list[tuple[int, bool]]) -> None:
    pairs = [(a - b) for a, positive in sample if positive for b, negative in sample if not negative]
    expected = sum((d > 0) + (d == 0) / 2 for d in pairs) / len(pairs) if pairs else 0.5
    scores, labels = [float(score) for score, _ in sample], [label for _, label in sample]
    assert abs(area_under_curve(scores, labels) - expected) < 1e-9


def test_the_tone_of_plain_praise_and_plain_anger() -> None:
    assert tone("Clear and quick, thank you!") > 0.3
    assert tone("Horrible. Useless, frustrating waste of time") < -0.3
    assert tone("bike fee?") == 0


def test_a_rating_says_more_than_its_words() -> None:
    verdict = classify(text("great, just great", is_rating=True, rating=0), None)
    assert (verdict.score > 0, verdict.category) == (True, "dissatisfied")
    assert classify(text("fine", is_rating=True, rating=1_000_000), None).category == "satisfied"
    assert classify(text("fine", is_rating=True, rating=500_000), None).category == "neutral"


def test_a_question_is_judged_by_the_model_where_there_is_one() -> None:
    model = train(examples(), lambda _: 0.0)
    assert model is not None
    verdict = classify(text("question about charged twice"), model)
    assert (verdict.category, verdict.classifier) == ("dissatisfied", f"vader+{model.name}")
    assert classify(text("bike fee?"), None).category == "neutral"


def test_an_endless_text_is_judged_by_its_beginning() -> None:
    assert tone("good " * 100_000) > 0
