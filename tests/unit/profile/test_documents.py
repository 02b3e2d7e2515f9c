"""Touched profiles become new versions only where their documents differ."""

from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.log import Record, key_of
from services.kernel.processor import Outcome
from services.profile.documents import Documents, Published, Stored, decide, digest
from services.profile.projection import Folded

KEY = key_of("default", "p1").decode()


def content(*, suspect: bool) -> bytes:
    return events_pb2.Profile(profile_id="p1", suspect=suspect).SerializeToString()


OLD, NEW = content(suspect=False), content(suspect=True)


def touch(offset: int = 0) -> Record:
    return Record(topics.TOUCHED, 0, offset, KEY.encode(), b"", "headwater.profile.v1.ProfileTouched", "e", 17)


def test_a_new_document_is_published_as_its_first_version() -> None:
    state = Documents(folded={KEY: Folded(NEW, "[]")}, touched_end=4)
    [message] = decide(state, touch()).outputs
    published = events_pb2.Profile.FromString(message.value or b"")
    assert (published.version, published.suspect, message.timestamp_ms) == (1, True, 17)
    assert state.written[KEY] == Stored(1, NEW, "[]", 4)


def test_a_changed_document_gets_the_next_version() -> None:
    state = Documents({KEY: Stored(3, OLD, "[]", 0)}, {KEY: Folded(NEW, "[]")})
    assert events_pb2.Profile.FromString(decide(state, touch()).outputs[0].value or b"").version == 4


def test_an_equal_document_is_not_published_again() -> None:
    state = Documents({KEY: Stored(3, OLD, "[]", 0)}, {KEY: Folded(OLD, "[]")})
    assert decide(state, touch()).outcome is Outcome.SUPERSEDED
    assert not state.written


def test_several_touches_of_a_batch_make_one_version() -> None:
    state = Documents(folded={KEY: Folded(NEW, "[]")})
    assert [decide(state, touch(n)).outcome for n in range(3)] == [
        Outcome.APPLIED,
        Outcome.SUPERSEDED,
        Outcome.SUPERSEDED,
    ]


def test_a_touch_from_before_the_last_fold_has_been_taken_into_account() -> None:
    state = Documents({KEY: Stored(3, OLD, "[]", 10)}, {KEY: Folded(NEW, "[]")})
    assert decide(state, touch(9)).outcome is Outcome.SUPERSEDED
    assert decide(state, touch(10)).outcome is Outcome.APPLIED


def test_a_profile_without_rows_is_published_as_gone() -> None:
    state = Documents({KEY: Stored(3, OLD, "[]", 0)})
    [message] = decide(state, touch()).outputs
    assert (message.topic, message.value) == (topics.PROFILES, None)
    assert state.gone == {KEY}


def test_a_profile_that_never_was_is_not_published_as_gone() -> None:
    assert decide(Documents(), touch()).outputs == ()


def test_in_a_rebuild_equal_content_gets_its_version_back_and_other_content_a_higher_one() -> None:
    published = {KEY: Published(7, digest(NEW))}
    before = Documents(folded={KEY: Folded(OLD, "[]")}, published=published)
    decide(before, touch())
    assert before.written[KEY].version == 8
    after = Documents(before.written, {KEY: Folded(NEW, "[]")}, published)
    decide(after, touch())
    assert after.written[KEY].version == 7
