"""Why two records are, or are not, the same person. Pure."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.identity_graph.columns import JUNK
from services.identity_graph.matching import has_too_many_values, is_held_by_doubtful_links, resolve
from services.identity_graph.model import Content, Kinds, Link, entries_of, split_link

REFUSALS_TOLD = 5


class Evidence(NamedTuple):
    """A node as far as it matters for an explanation.

    Attributes:
        id: the node.
        content: what its records hold.
        record: one of them.
        rows: how many there are.
        profile: their profile; None where each is its own.
        muted: links that are quarantined.
    """

    id: int
    content: Content
    record: str
    rows: int
    profile: str | None
    muted: tuple[Link, ...]


class Step(NamedTuple):
    """One link of a path: two records and the identifier that both hold."""

    record: str
    link: Link
    next_record: str


class Side(NamedTuple):
    """What is asked about: a node, and one of its records."""

    node: Evidence
    record: str
    profile: str


def path(left: Side, right: Side, nodes: Iterable[Evidence]) -> list[Step]:
    """Return the shortest path of evidence from one record to another of the same profile.

    Args:
        left, right: the ends.
        nodes: all nodes of the profile.
    """
    if left.record == right.record:
        return []
    if left.node.id == right.node.id:
        live = [link for link in left.node.content.links if link not in left.node.muted]
        return [Step(left.record, live[0], right.record)] if live else []
    by_id = {node.id: node for node in nodes}
    holders: dict[Link, list[Evidence]] = defaultdict(list)
    for node in by_id.values():
        for link in node.content.links:
            if link not in node.muted:
                holders[link].append(node)
    came: dict[int, tuple[int, Link]] = {}
    waiting = deque([left.node.id])
    while waiting and right.node.id not in came:
        here = by_id[waiting.popleft()]
        for link in here.content.links:
            for node in holders.get(link, ()):
                if node.id not in came and node.id != left.node.id:
                    came[node.id] = (here.id, link)
                    waiting.append(node.id)
    steps: list[Step] = []
    at, record = right.node.id, right.record
    while at != left.node.id and at in came:
        before, link = came[at]
        before_record = left.record if before == left.node.id else by_id[before].record
        steps.append(Step(before_record, link, record))
        at, record = before, before_record
    return steps[::-1]


def notes(
    left: Side, right: Side, component: Sequence[Evidence], kinds: Kinds, crowds: dict[Link, tuple[int, int]]
) -> list[str]:
    """Return what keeps two records apart, or casts doubt on their being one person.

    Args:
        left, right: the records.
        component: all nodes that links join with either of them, directly or not.
        kinds: the kinds of identifiers.
        crowds: how many different records and rows hold the identifiers that are quarantined.
    """
    told = []
    for link in sorted(set(left.node.muted) & set(right.node.muted)):
        records, rows = crowds.get(link, (0, 0))
        told.append(
            f"both hold {_words(link)}, which is quarantined: {rows} records hold it, {records} of them different, and "
            f"{kinds.records_max[split_link(link)[0]]} may"
        )
    for kind, value in sorted(_junk(left.node.content) & _junk(right.node.content)):
        told.append(f"both hold {kind} {value}, which is known to say nothing about a person")
    told.extend(_refusals(left, right, component, kinds))
    if left.profile == right.profile:
        contents = [node.content for node in component if node.profile == left.profile]
        muted = {link for node in component for link in node.muted}
        if has_too_many_values(contents, muted, kinds):
            told.append("the profile is suspect: it holds more values of a kind than one person is likely to have")
        if is_held_by_doubtful_links(contents, muted, kinds):
            told.append(
                "the profile is suspect: only what several persons may use joins records that can be reached apart"
            )
    elif not told:
        told.append("no identifier that links joins them, directly or by other records")
    return told


def _refusals(left: Side, right: Side, component: Sequence[Evidence], kinds: Kinds) -> list[str]:
    nodes = sorted(component, key=lambda node: node.content.text)
    muted = {link for node in nodes for link in node.muted}
    resolution = resolve([node.content for node in nodes], muted, kinds)
    profiles = {left.profile, right.profile}
    told = []
    for refusal in resolution.refusals:
        sides = nodes[refusal.left], nodes[refusal.right]
        between = {side.profile for side in sides}
        if between == profiles or (len(profiles) == 1 and profiles & between):
            told.append(
                f"{_words(refusal.link)} does not link {sides[0].record} and {sides[1].record}: {refusal.reason}"
            )
    return list(dict.fromkeys(told))[:REFUSALS_TOLD]


def _junk(content: Content) -> set[tuple[str, str]]:
    return {(kind.removeprefix(JUNK), value) for _, kind, value in entries_of(content.text) if kind.startswith(JUNK)}


def _words(link: Link) -> str:
    return " ".join(split_link(link))
