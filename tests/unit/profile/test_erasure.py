"""What an erasure tells the world."""

import pytest

from headwater.common.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Record, key_of
from services.profile.erasure import Erased, Erasures, decide

REQUEST = events_pb2.ErasureRequested(erasure_id="e1", profile_ids=["p1"], records=["crm/customers/1"])
RECORD = Record(
    topics.ERASURES, 0, 5, b"e1", REQUEST.SerializeToString(), "headwater.common.v1.ErasureRequested", "", 9
)


def test_profiles_are_published_as_gone_touched_and_the_erasure_acknowledged() -> None:
    key = key_of("default", "p1")
    erased = Erased(REQUEST, (key.decode(),), {"rows": 1, "documents": 1}, {"rows": 0, "documents": 0}, 1234)
    gone, touched, done = decide(Erasures({5: erased}), RECORD).outputs
    assert (gone.topic, gone.key, gone.value) == (topics.PROFILES, key, None)
    assert (touched.topic, touched.key) == (topics.TOUCHED, key)
    answer = events_pb2.ErasureDone.FromString(done.value or b"")
    assert (done.topic, done.key) == (topics.ERASURES_DONE, b"e1")
    assert (answer.erasure_id, answer.service) == ("e1", "profile")
    assert (dict(answer.removed), dict(answer.remaining)) == ({"rows": 1, "documents": 1}, {"rows": 0, "documents": 0})
    assert answer.done_at.ToMilliseconds() == 1234


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="erasures/0/5"):
        decide(Erasures(), RECORD)
