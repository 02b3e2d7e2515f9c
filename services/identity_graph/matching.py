"""Which of the records that links join are the same person: a function of what they hold now. Pure.

Links are made one after the other in a canonical order, strongest kind first. One that would bring together two values
of a kind of which a person has one, or make a profile too large, is refused: both sides stay apart, and are suspect.
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from typing import NamedTuple

from services.identity_graph.model import Content, Kinds, Link, split_link


class Refusal(NamedTuple):
    """A link that was not made.

    Attributes:
        link: the identifier that both sides hold.
        left, right: the sides, as indices of contents that hold it.
        reason: why, for a person.
    """

    link: Link
    left: int
    right: int
    reason: str


class Resolution(NamedTuple):
    """The outcome for one component.

    Attributes:
        clusters: the persons, each the indices of their contents in ascending order.
        suspect: the indices of clusters that are suspected of holding more than one person.
        refusals: the links that were not made.
    """

    clusters: list[list[int]]
    suspect: frozenset[int]
    refusals: list[Refusal]


class _Clusters:
    """A union-find forest whose trees know their size and their values of unique kinds."""

    def __init__(self, contents: Sequence[Content], kinds: Kinds) -> None:
        self._parent = list(range(len(contents)))
        self._size = [1] * len(contents)
        self._unique = [_by_kind(content.unique) for content in contents]
        self._cluster_records_max = kinds.cluster_records_max

    def find(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    def objection(self, left: int, right: int) -> str:
        """Return why two trees must stay apart; empty when they need not."""
        theirs = self._unique[right]
        for kind, values in self._unique[left].items():
            others = theirs.get(kind)
            # A record may itself hold two values; then it is what holds one of them that is the same person.
            if others and not (values <= others or others <= values):
                return f"different values of {kind}"
        if self._size[left] + self._size[right] > self._cluster_records_max:
            return f"a profile has at most {self._cluster_records_max} different records"
        return ""

    def join(self, left: int, right: int) -> None:
        if self._size[left] < self._size[right]:
            left, right = right, left
        self._parent[right] = left
        self._size[left] += self._size[right]
        for kind, values in self._unique[right].items():
            self._unique[left][kind] = self._unique[left].get(kind, frozenset()) | values


def _by_kind(links: Sequence[Link]) -> dict[str, frozenset[str]]:
    values: dict[str, set[str]] = defaultdict(set)
    for kind, value in map(split_link, links):
        values[kind].add(value)
    return {kind: frozenset(found) for kind, found in values.items()}


def resolve(contents: Sequence[Content], muted: Container[Link], kinds: Kinds) -> Resolution:
    """Return who is who among the contents of one component.

    Args:
        contents: all different, in the order of their texts; the outcome does not depend on anything else.
        muted: links that are quarantined.
        kinds: the kinds of identifiers.
    """
    holders: dict[Link, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        for link in content.links:
            if link not in muted:
                holders[link].append(index)
    clusters = _Clusters(contents, kinds)
    refusals: list[Refusal] = []
    for link in sorted((link for link, held in holders.items() if len(held) > 1), key=kinds.order):
        refusals.extend(_join_holders(clusters, link, holders[link]))
    by_root: dict[int, list[int]] = defaultdict(list)
    for index in range(len(contents)):
        by_root[clusters.find(index)].append(index)
    found = list(by_root.values())
    doubtful = {clusters.find(side) for refusal in refusals for side in (refusal.left, refusal.right)}
    suspect = frozenset(
        number
        for number, members in enumerate(found)
        if clusters.find(members[0]) in doubtful or is_doubtful([contents[i] for i in members], muted, kinds)
    )
    return Resolution(found, suspect, refusals)


def _join_holders(clusters: _Clusters, link: Link, holders: Sequence[int]) -> list[Refusal]:
    """Bring the holders of a link together as far as nothing speaks against it."""
    heads: list[int] = []  # one holder of each cluster that stays apart from the others
    refusals = []
    for holder in holders:
        refused = []
        for head in heads:
            left, right = clusters.find(head), clusters.find(holder)
            if left == right:
                break
            if not (objection := clusters.objection(left, right)):
                clusters.join(left, right)
                break
            refused.append(Refusal(link, head, holder, objection))
        else:
            heads.append(holder)
            refusals.extend(refused)
    return refusals


def is_doubtful(contents: Sequence[Content], muted: Container[Link], kinds: Kinds) -> bool:
    """Tell whether what the records of one profile hold makes it doubtful that they are one person."""
    return has_too_many_values(contents, muted, kinds) or is_held_by_doubtful_links(contents, muted, kinds)


def has_too_many_values(contents: Sequence[Content], muted: Container[Link], kinds: Kinds) -> bool:
    """Tell whether the records of one profile hold more values of a kind than one person is likely to have."""
    counts: dict[str, int] = defaultdict(int)
    for link in {link for content in contents for link in content.links if link not in muted}:
        kind, _ = split_link(link)
        counts[kind] += 1
        if counts[kind] > kinds.values_max[kind]:
            return True
    return False


def is_held_by_doubtful_links(contents: Sequence[Content], muted: Container[Link], kinds: Kinds) -> bool:
    """Tell whether, without the links that cast doubt, a profile falls into parts that can be reached one by one."""
    if not any(content.doubtful for content in contents):
        return False
    clusters = _Clusters(contents, kinds)
    first: dict[Link, int] = {}
    for index, content in enumerate(contents):
        for link in content.links:
            if link not in content.doubtful and link not in muted:
                left, right = clusters.find(first.setdefault(link, index)), clusters.find(index)
                if left != right:
                    clusters.join(left, right)
    parts: dict[str, set[int]] = defaultdict(set)
    for index, content in enumerate(contents):
        for link in content.links:
            if link not in muted and (kind := split_link(link)[0]) in kinds.reachable:
                parts[kind].add(clusters.find(index))
    return any(len(roots) > 1 for roots in parts.values())
