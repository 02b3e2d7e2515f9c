"""Explanations: the shortest path of evidence, and what keeps apart or casts doubt."""

from services.identity_graph.columns import merged
from services.identity_graph.explain import Evidence, Side, notes, path
from services.identity_graph.model import Kinds, text_of
from services.identity_graph.settings import Settings

KINDS = Kinds(Settings())


def node(number: int, *identifiers: str, profile: str | None = "p", muted: tuple[str, ...] = ()) -> Evidence:
    pairs = [tuple(text.split(":")) for text in identifiers]
    content = KINDS.content("t", text_of(merged([(f"c{kind}", kind, value) for kind, value in pairs])))
    links = tuple(link for link in content.links if link.rpartition("\x1f")[2] in muted)
    return Evidence(number, content, f"r{number}", 1, profile, links)


def side(evidence: Evidence, record: str = "") -> Side:
    return Side(evidence, record or evidence.record, evidence.profile or f"own-{evidence.id}")


def told(left: Evidence, right: Evidence, *others: Evidence, crowds: dict[str, tuple[int, int]] | None = None) -> str:
    nodes = {n.id: n for n in (left, right, *others)}.values()
    return " | ".join(notes(side(left), side(right), list(nodes), KINDS, crowds or {}))


def test_the_path_is_the_shortest() -> None:
    a, b, c = node(1, "email:a"), node(2, "email:a", "phone:1"), node(3, "phone:1", "account:x")
    d, detour = node(4, "account:x"), node(5, "email:a", "device:d")
    steps = path(side(a), side(d), [a, b, c, d, detour])
    assert [(s.record, s.link.rpartition("\x1f")[2], s.next_record) for s in steps] == [
        ("r1", "a", "r2"), ("r2", "1", "r3"), ("r3", "x", "r4"),
    ]  # fmt: skip


def test_rows_that_hold_the_same_are_one_step_apart_and_a_record_is_none_from_itself() -> None:
    a = node(1, "email:a")
    (step,) = path(side(a, "row-1"), side(a, "row-2"), [a])
    assert (step.record, step.next_record) == ("row-1", "row-2")
    assert path(side(a), side(a), [a]) == []


def test_a_quarantined_link_is_no_path() -> None:
    a, b = node(1, "device:kiosk", "email:a", muted=("kiosk",)), node(2, "device:kiosk", "email:a", muted=("kiosk",))
    (step,) = path(side(a), side(b), [a, b])
    assert step.link.endswith("\x1fa")


def test_notes_name_what_is_shared_and_does_not_count() -> None:
    a = node(1, "device:kiosk", "~email:test@x", profile=None, muted=("kiosk",))
    b = node(2, "device:kiosk", "~email:test@x", "phone:1", muted=("kiosk",))
    words = told(a, b, crowds={"t\x1fdevice\x1fkiosk": (12, 40)})
    assert "device kiosk, which is quarantined: 40 records hold it, 12 of them different, and 10 may" in words
    assert "email test@x, which is known to say nothing" in words


def test_notes_name_conflicts_and_doubts() -> None:
    a, b = node(1, "email:f", "national:1", profile="p"), node(2, "email:f", "national:2", profile="q")
    assert "email f does not link r1 and r2: different values of national" in told(a, b)
    ada, bob = node(1, "device:d", "email:ada"), node(2, "device:d", "email:bob")
    assert "several persons may use" in told(ada, bob)
    many = [node(n, "account:x", f"email:{n}") for n in range(8)]
    assert "more values of a kind" in told(many[0], many[1], *many)


def test_without_anything_in_common_that_is_said() -> None:
    assert "no identifier" in told(node(1, "email:a", profile="p"), node(2, "email:b", profile="q"))
