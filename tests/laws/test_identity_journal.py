"""The journal: every decision has an entry that says what, who, why and when; what did not happen is not told."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.settings import Settings
from tests.laws.identity_world import Event, Type, World

Kind = events_pb2.DecisionKind


class Story:
    """A world in which rows are put and deleted, and what the journal says of the last batch."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.world = World(folder, Settings.from_config(settings))
        self._number = 0

    def put(self, *rows: tuple[int, dict[str, Any] | None]) -> list[events_pb2.IdentityDecided]:
        events = []
        for key, row in rows:
            self._number += 1
            kind = Type.OPERATION_DELETE if row is None else Type.OPERATION_UPDATE
            events.append(Event(self._number, kind, "rows", key, {"id": key, **(row or {})}, (), self._number * 1000))
        told = len(self.world.decided)
        asyncio.run(self.world.deliver_together(events))
        return self.world.decided[told:]

    def profile(self, key: int) -> str:
        return self.world.told()[f"crm/rows/{key}"].profile


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path, kinds={"device": {"records_max": 2}})
    yield made
    made.world.close()


def facts(decided: events_pb2.IdentityDecided) -> tuple[str, str, list[str], list[str], list[str]]:
    return (
        Kind.Name(decided.kind).removeprefix("DECISION_KIND_").lower(), decided.profile_id,
        sorted(decided.other_profile_ids), sorted(r.rpartition("/")[2] for r in decided.records),
        [f"{i.kind}:{i.value}" for i in decided.evidence],
    )  # fmt: skip


def test_a_person_who_appears_alone_is_no_decision(story: Story) -> None:
    assert story.put((1, {"email": "a@x.io"})) == []
    assert story.put((1, {"email": "a@x.io", "name": "Ada"})) == []
    assert story.put((1, None)) == []


def test_a_record_that_joins_is_linked(story: Story) -> None:
    story.put((1, {"email": "a@x.io"}))
    (decided,) = story.put((2, {"email": "a@x.io", "phone": "4155550101"}))
    assert facts(decided) == ("linked", story.profile(1), [], ["2"], ["email:a@x.io"])
    assert "crm/rows/2 shares email a@x.io" in decided.reason
    assert decided.occurred_at.ToMilliseconds() == 2000


def test_records_that_appear_together_are_linked_to_the_first(story: Story) -> None:
    (decided,) = story.put((1, {"email": "a@x.io"}), (2, {"email": "a@x.io"}), (3, {"email": "a@x.io"}))
    assert facts(decided) == ("linked", story.profile(1), [], ["2", "3"], ["email:a@x.io"])


def test_two_profiles_become_one_and_come_apart(story: Story) -> None:
    story.put((1, {"email": "a@x.io"}))
    story.put((2, {"phone": "4155550101"}))
    first, second = story.profile(1), story.profile(2)
    merged, linked = story.put((3, {"email": "a@x.io", "phone": "4155550101"}))
    assert facts(merged)[:3] == ("merged", first, [second])
    assert facts(merged)[4] == ["email:a@x.io", "phone:+14155550101"]
    assert facts(linked) == ("linked", first, [], ["3"], ["email:a@x.io", "phone:+14155550101"])
    (split,) = story.put((3, None))
    assert facts(split) == ("split", first, [second], ["2", "3"], ["email:a@x.io", "phone:+14155550101"])
    assert (story.profile(1), story.profile(2)) == (first, second)


def test_a_profile_that_loses_its_oldest_record_gets_another_id(story: Story) -> None:
    story.put((1, {"email": "a@x.io"}))
    story.put((2, {"email": "a@x.io"}))
    old = story.profile(1)
    (split,) = story.put((1, None))
    assert facts(split)[:3] == ("split", story.profile(2), [old])


def test_an_identifier_is_quarantined_and_released(story: Story) -> None:
    story.put((1, {"device_id": "d", "email": "a@x.io"}), (2, {"device_id": "d", "email": "b@x.io"}))
    joint = story.profile(1)
    quarantined, *others = story.put((3, {"device_id": "d", "email": "c@x.io"}))
    assert facts(quarantined)[0] == "quarantined"
    assert facts(quarantined)[3:] == (["1", "2", "3"], ["device:d"])
    assert "3 records" in quarantined.reason
    assert [facts(other)[0] for other in others] == ["split"]
    assert "does not link any more" in others[0].reason
    assert story.profile(2) != joint
    released, merged = story.put((3, None))
    assert (facts(released)[0], facts(merged)[0]) == ("released", "merged")
    assert story.profile(2) == joint


def test_a_refused_link_is_told_once(story: Story) -> None:
    story.put((1, {"email": "a@x.io", "ssn": "078-05-1120"}))
    (refused,) = story.put((2, {"email": "a@x.io", "ssn": "219-09-9999"}))
    assert facts(refused)[0] == "refused"
    assert {refused.profile_id, *refused.other_profile_ids} == {story.profile(1), story.profile(2)}
    assert "different values of national" in refused.reason
    assert [facts(other)[0] for other in story.put((3, {"email": "a@x.io"}))] == ["linked"]


def test_a_component_that_grows_beyond_its_bound_is_told(tmp_path: Path) -> None:
    story = Story(tmp_path, component_records_max=3)
    story.put(*((n, {"email": f"{n}@x.io", "work_email": f"{n + 1}@x.io"}) for n in range(1, 4)))
    assert len({story.profile(n) for n in (1, 2, 3)}) == 1
    told = [facts(decided)[0] for decided in story.put((4, {"email": "4@x.io"}))]
    assert told == ["split", "refused"]
    assert len({story.profile(n) for n in (1, 2, 3, 4)}) == 4
    told = [facts(decided)[0] for decided in story.put((4, None))]
    assert told == ["merged"]
    assert len({story.profile(n) for n in (1, 2, 3)}) == 1
    story.world.close()
