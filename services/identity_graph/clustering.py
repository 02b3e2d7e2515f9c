"""From the rows that moved to the persons that follow: quarantine, components, clusters, profiles. Pure.

Once a batch, everything is worked out anew for the components that the batch touched, and for nothing else. What the
graph holds afterwards is what it would hold had it been worked out from nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.identity_graph.matching import Resolution, has_too_many_values, resolve
from services.identity_graph.model import Crowd, Kinds, Link, Node, Standing, WorkingSet, birth_id

Holders = Mapping[Link, Sequence[Node]]


class Component(NamedTuple):
    """Nodes that links join, directly or not, and who is who among them.

    Attributes:
        nodes: the nodes, in the order of their contents' texts where there was anything to decide.
        resolution: the clusters of the nodes; None where they are one person without any doubt.
    """

    nodes: list[Node]
    resolution: Resolution | None


class Outcome(NamedTuple):
    """What a batch leads to in the graph.

    Attributes:
        nodes: the nodes that were worked out anew, those without rows left too.
        components: the components that they are in now.
        holders: who holds each link, as far as it is not quarantined.
        quarantined, released: identifiers that do not link any more, and that do again.
        crowds: the new numbers of quarantined identifiers; None for those that are released.
    """

    nodes: list[Node]
    components: list[Component]
    holders: Holders
    quarantined: tuple[Link, ...]
    released: tuple[Link, ...]
    crowds: dict[Link, Crowd | None]


NOTHING = Outcome([], [], {}, (), (), {})


def recluster(state: WorkingSet) -> Outcome:
    """Work out who is who, and set it in the nodes of the working set."""
    if not any(row.touched and row.node is not row.node_before for row in state.rows.values()) and not any(
        node.first != node.first_before for node in state.nodes.values()
    ):
        return NOTHING
    nodes = list(state.nodes.values())
    holders = _holders(nodes)
    quarantined, released, crowds = _quarantine(state, nodes, holders)
    muted = (state.crowds.keys() | set(quarantined)) - set(released)
    components = _components(nodes, holders, muted, state.kinds)
    _set_components(state, components)
    for link in muted:
        holders.pop(link, None)
    return Outcome(nodes, components, holders, quarantined, released, crowds)


def _holders(nodes: Iterable[Node]) -> dict[Link, list[Node]]:
    holders: dict[Link, list[Node]] = {}
    for node in nodes:
        if node.rows:
            for link in node.content.links:
                if link in holders:
                    holders[link].append(node)
                else:
                    holders[link] = [node]
    return holders


def _quarantine(
    state: WorkingSet, nodes: Sequence[Node], holders: Holders
) -> tuple[tuple[Link, ...], tuple[Link, ...], dict[Link, Crowd | None]]:
    """Find the identifiers that too many hold now, and those that few enough hold again."""
    kinds, crowds = state.kinds, state.crowds
    changed: dict[Link, Crowd | None] = {}
    quarantined = []
    heavy = {link for node in nodes if node.rows > kinds.records_always_fine for link in node.content.links}
    for link, held in holders.items():
        if link in crowds or (len(held) <= kinds.records_always_fine and link not in heavy):
            continue
        crowd = Crowd(len(held), sum(node.rows for node in held))
        if kinds.is_crowded(link, *crowd):
            quarantined.append(link)
            changed[link] = crowd
    released = []
    for link, crowd in _recounted(nodes, crowds).items():
        if kinds.is_crowded(link, *crowd):
            changed[link] = crowd
        else:
            if link not in state.complete:
                raise RuntimeError(f"{link!r} is to be released, and its holders were not loaded")
            released.append(link)
            changed[link] = None
    return tuple(sorted(quarantined)), tuple(sorted(released)), changed


def _recounted(nodes: Iterable[Node], crowds: Mapping[Link, Crowd]) -> dict[Link, Crowd]:
    """Return the new numbers of quarantined identifiers whose holders changed."""
    counts: dict[Link, Crowd] = {}
    if crowds:
        for node in nodes:
            rows = node.rows - node.rows_before
            if rows:
                for link in node.content.links:
                    if link in crowds:
                        known = counts.get(link, crowds[link])
                        records = bool(node.rows) - bool(node.rows_before)
                        counts[link] = Crowd(known.records + records, known.rows + rows)
    return counts


def _components(nodes: Iterable[Node], holders: Holders, muted: Iterable[Link], kinds: Kinds) -> list[Component]:
    """Gather the nodes that links join, and resolve each set; nodes that nothing links are set apart at once."""
    done: set[Link] = set(muted)
    quiet = done and frozenset(done)
    placed: set[int] = set()
    components = []
    for start in nodes:
        if not start.rows or start.id in placed:
            continue
        found, links, waiting = [], 0, [start]
        placed.add(start.id)
        while waiting:
            node = waiting.pop()
            found.append(node)
            for link in node.content.links:
                if link in done:
                    continue
                done.add(link)
                links += 1
                for other in holders[link]:
                    if other.id not in placed:
                        placed.add(other.id)
                        waiting.append(other)
        if links == 0:
            own = tuple(link for link in start.content.links if link in quiet) if quiet else ()
            start.component, start.standing = None, Standing(None, suspect=False, muted=own)
            continue
        components.append(_resolved(found, links, quiet or frozenset(), kinds))
    return components


def _resolved(nodes: list[Node], links: int, muted: frozenset[Link], kinds: Kinds) -> Component:
    """Set the standing of the nodes of one component."""
    if len(nodes) <= kinds.max_cluster and not any(node.content.unique for node in nodes):
        suspect = links > kinds.values_always_fine and has_too_many_values([n.content for n in nodes], muted, kinds)
        _set_standing(nodes, suspect=suspect, muted=muted)
        return Component(nodes, None)
    nodes.sort(key=lambda node: node.content.text)
    resolution = resolve([node.content for node in nodes], muted, kinds)
    for number, cluster in enumerate(resolution.clusters):
        _set_standing([nodes[i] for i in cluster], suspect=number in resolution.suspect, muted=muted)
    return Component(nodes, resolution)


def _set_standing(nodes: Sequence[Node], *, suspect: bool, muted: frozenset[Link]) -> None:
    profile = birth_id(min(node.first for node in nodes)[1])
    for node in nodes:
        own = tuple(link for link in node.content.links if link in muted) if muted else ()
        node.standing = Standing(profile, suspect, own)


def _set_components(state: WorkingSet, components: Iterable[Component]) -> None:
    """Name the components; most keep the name that most of their nodes have in the store already."""
    taken: set[int] = set()
    for component in components:
        counts: dict[int, int] = defaultdict(int)
        for node in component.nodes:
            if node.component_before is not None and node.component_before not in taken:
                counts[node.component_before] += 1
        if counts:
            name = max(counts, key=lambda known: (counts[known], -known))
        else:
            name, state.next_id = state.next_id, state.next_id + 1
        taken.add(name)
        for node in component.nodes:
            node.component = name
