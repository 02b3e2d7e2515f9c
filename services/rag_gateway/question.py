"""What a question asks for: its words and their kin, whose data it is about, and what kind of answer it wants. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from services.rag_gateway.fields import Kind
from services.rag_gateway.words import folded, term_of, terms, words

# Words that stand for one another in questions and documents; each line is one group.
_KIN = """
price cost costs fare rate fee charge amount expensive cheap pay
refund refunds reimburse reimbursement money
cancel cancellation cancelled
left available availability remaining free vacant vacancy vacancies
seat seats place places
room rooms vacancy
arrive arrival arrives land lands
depart departure departs leave leaves takeoff
hotel hotels stay staying accommodation lodging
flight flights fly flying plane
luggage baggage bag bags suitcase suitcases
pet pets dog dogs cat cats animal animals
child children kid kids infant infants baby babies
change changes amend rebook modify
tier level membership loyalty
phone telephone mobile
booking bookings reservation reservations trip trips
wifi wireless internet
breakfast meal meals
wheelchair disabled accessible accessibility mobility
birthday birth born
late delay delayed delays
compensation compensate voucher
begin begins start starts
document documents passport papers
allow allowed accept accepts accepted welcome permit permitted
buy book purchase
swim swimming pool pools bath baths
ill illness sick
aurora northern
eat diet dietary food
"""
_OWN = frozenset(["my", "mine", "me", "i", "i'm", "i've", "i'd", "i'll", "our", "ours", "we", "us", "am"])
_ANAPHORA = frozenset("it its that this those these they them there same one ones".split())  # noqa: SIM905
_FOLLOWS = re.compile(r"\s*(?:and|or|but|also|what about|how about|same for|then)\b", re.IGNORECASE)
_LOWEST = frozenset(["cheapest", "lowest", "least", "earliest", "first", "soonest", "smallest", "next", "nearest"])
_HIGHEST = frozenset(["dearest", "highest", "most", "latest", "last", "largest", "biggest", "priciest"])
_MONEY = re.compile(r"\bhow (?:much|expensive)\b|\b(?:price|cost|costs|fare|fee|fees|cheapest|rate)\b", re.IGNORECASE)
_TIME = re.compile(
    r"\b(?:when|what (?:time|date|day)|which (?:date|day)|how (?:long|soon|late|early)|until|deadline|date|time)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\bhow (?:many|big|large|far|heavy)\b|\bnumber of\b", re.IGNORECASE)
_PLACE = re.compile(r"\b(?:where|which (?:city|country|airport|hotel)|address)\b", re.IGNORECASE)
_PAST = re.compile(r"\b(?:last|previous|past|was|were|stayed|flew)\b", re.IGNORECASE)
_POSSESSIVE = re.compile(
    r"(?:^|\b(?:is|are|was|were|what's|show|list|see|tell|about|of|give)) (?:me )?(?:all )?(?:of )?(?:my|our)\b|^my\b"
    r"|\b(?:am|have|did|was) i\b|\bdo i (?:have|stay|fly|leave|check|sit|prefer|eat|live|land|arrive)\b",
    re.IGNORECASE,
)
_LEAVE = re.compile(
    r"\b(?:can|may|could|should|must) (?:i|we|my|our)\b|\bdo (?:i|we) (?:need|get|pay)\b"
    r"|\bam i (?:allowed|owed|entitled)\b",
    re.IGNORECASE,
)
_EVERY = re.compile(r"\b(?:all|list|every|bookings|trips|reservations|history)\b", re.IGNORECASE)
_NAME = re.compile(r"(?<=[\w,] )[^\W\d_a-z][^\W_]{2,}")
_FEW_TERMS = _FEW_WORDS = 2
_EARLIER_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, analysed.

    Attributes:
        weights: its terms, each with how much it matters before rarity: words from the question before count half.
        codes: terms that name one thing, such as `mt101`: an answer about another thing is none.
        names: terms written with a capital within the sentence: names of places, houses, people.
        own: whether it is about the asker's own data.
        wants: the kind of value that it asks for.
        extreme: -1 for the lowest (cheapest, next), 1 for the highest (latest, most), 0 for neither.
        past: whether it is about what has been.
        every: whether it wants all that there are.
        possessive: whether it wants to be told what the asker has, and not what holds for everyone.
        leave: whether it asks for leave or duty (`can I ...`), which rules answer better than the asker's rows.
    """

    weights: Mapping[str, float]
    codes: frozenset[str]
    names: frozenset[str]
    own: bool
    wants: Kind
    extreme: int
    past: bool
    every: bool
    possessive: bool
    leave: bool


def analyse(question: str, earlier: str = "") -> Asked:
    """Analyse a question.

    Args:
        question: as it was asked.
        earlier: the question before it, where this one leans on that (see `leans_on`); else empty.
    """
    plain = [folded(word) for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", question.replace("\u2019", "'"))]
    weights = dict.fromkeys(terms(earlier), _EARLIER_WEIGHT) | dict.fromkeys(terms(question), 1.0)
    wants = _wants(question)
    extreme = -1 if _LOWEST & set(plain) else 1 if _HIGHEST & set(plain) else 0
    for word in (_LOWEST | _HIGHEST) & set(plain):
        weights.pop(term_of(word), None)
    if "email" in weights:
        weights.pop("address", None)  # `e-mail address` is one thing
    if wants is Kind.MONEY and not any(related(term, "price") for term in weights):
        weights[term_of("price")] = 0.7
    return Asked(
        weights=weights,
        codes=frozenset(word.term for word in words(question) if is_code(word.term)),
        names=frozenset(term_of(name) for name in _NAME.findall(question)),
        own=bool(_OWN & set(plain)) or (bool(earlier) and analyse(earlier).own),
        wants=wants,
        extreme=extreme,
        past=_PAST.search(question) is not None and "next" not in plain,
        every=_EVERY.search(question) is not None,
        possessive=_POSSESSIVE.search(question) is not None,
        leave=_LEAVE.search(question) is not None,
    )


def leans_on(question: str, earlier: str) -> str:
    """The earlier question when this one cannot be understood without it (`and for flights?`); else empty."""
    if not earlier:
        return ""
    plain = [folded(word) for word in re.findall(r"[^\W_]+", question)]
    # `What does it cost?` speaks of something said before; `... MT103, and what does it cost?` of MT103.
    refers = bool(_ANAPHORA & set(plain)) and len(terms(question)) <= _FEW_TERMS
    return earlier if _FOLLOWS.match(question) or refers or len(plain) <= _FEW_WORDS else ""


def standalone(question: str, earlier: str) -> str:
    """The question as it is looked up: with the earlier question's words where it leans on that."""
    leaning = leans_on(question, earlier)
    return f"{question} ({leaning})" if leaning else question


def is_code(term: str) -> bool:
    """Whether a term names one thing: letters and digits together, but not a date or a time."""
    return any(c.isdigit() for c in term) and any(c.isalpha() for c in term) and ":" not in term


def related(one: str, other: str) -> bool:
    """Whether two terms may stand for one another."""
    return one == other or bool(_groups(one) & _groups(term_of(other)))


@lru_cache(maxsize=10_000)
def kin(term: str) -> frozenset[str]:
    """All terms that may stand for a term, itself included."""
    groups = _groups(term)
    return frozenset([term]).union(*(members for number, members in enumerate(_kin_terms()) if number in groups))


@lru_cache(maxsize=1)
def _kin_terms() -> tuple[frozenset[str], ...]:
    return tuple(frozenset(term_of(word) for word in line.split()) for line in _KIN.strip().splitlines())


def _groups(term: str) -> frozenset[int]:
    return frozenset(number for number, members in enumerate(_kin_terms()) if term in members)


def _wants(question: str) -> Kind:
    for pattern, kind in ((_MONEY, Kind.MONEY), (_NUMBER, Kind.NUMBER), (_PLACE, Kind.PLACE), (_TIME, Kind.TIME)):
        if pattern.search(question):
            return kind
    return Kind.OTHER
