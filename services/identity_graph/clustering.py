"""From the rows that moved to the persons that follow: quarantine, components, clusters, profiles. Pure.

Once a batch, everything is worked out anew for the components that the batch touched, and for nothing else. What the
graph holds afterwards is what it would hold had it been worked out from nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.identity_graph.matching import Resolution, is_doubtful, resolve
from services.identity_graph.model import OVERGROWN, Crowd, Kinds, Link, Standing, birth_id, buried, tenant_of
from services.identity_graph.working_set import Node, Row, WorkingSet

Holders = Mapping[Link, Sequence[Node]]


class Component(NamedTuple):
    """Nodes that links join, directly or not, and who is who among them.

    Attributes:
        nodes: the nodes, in the order of their contents' texts where there was anything to decide.
        resolution: the clusters of the nodes; None where they are one person without any doubt.
        overgrown: whether it is too large, so that its nodes stand alone.
    """

    nodes: list[Node]
    resolution: Resolution | None
    overgrown: bool = False


class Outcome(NamedTuple):
    """What a batch leads to in the graph.

    Attributes:
        nodes: the nodes that were worked out anew, those without rows left too.
        components: the components that they are in now; nodes that nothing links are in none.
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


def move_rows(state: WorkingSet) -> None:
    """Take the rows that hold something else than before to the nodes of what they hold now.

    The nodes that they leave, and the nodes that there are of what they hold now, are in the working set.
    """
    for row in state.rows.values():
        if not row.touched:
            continue
        moves = row.moves
        if row.stored is not None and row.stored.node_id is not None and (moves or row.sighted):
            row.node = row.node_before = state.nodes[row.stored.node_id]
        if moves:
            _move(state, row)
        elif row.node is not None:
            row.node.sight(row.key, row.first_seen, row.cause_ms)


def _move(state: WorkingSet, row: Row) -> None:
    left = row.node_before
    if left is not None:
        left.remove(row.key, row.cause_ms)
    if row.text is None:
        row.node, row.buried = None, tuple(map(buried, left.content.links)) if left else ()
    else:
        row.node, row.buried = state.node_of(tenant_of(row.key), row.text), ()
        row.node.add(row.key, row.first_seen, row.cause_ms)


def recount(state: WorkingSet) -> dict[Link, Crowd]:
    """Return the new numbers of quarantined identifiers whose holders changed."""
    counts: dict[Link, Crowd] = {}
    if not state.crowds:
        return counts
    for node in state.nodes.values():
        rows = node.rows - node.before.rows
        if rows:
            records = bool(node.rows) - bool(node.before.rows)
            for link in node.content.links:
                if link in state.crowds:
                    known = counts.get(link, state.crowds[link])
                    counts[link] = Crowd(known.records + records, known.rows + rows)
    return counts


def recluster(state: WorkingSet, counts: Mapping[Link, Crowd]) -> Outcome:
    """Work out who is who, and set it in the nodes of the working set.

    Args:
        state: rows are in their new nodes; components are whole, and all holders of a quarantined identifier are
            there when few enough hold it now.
        counts: what `recount` returned.
    """
    nodes = list(state.nodes.values())
    if not nodes:
        return NOTHING
    holders = _holders(nodes)
    quarantined = {**_newly_crowded(state, nodes, holders), **state.crowded}
    released = tuple(sorted(link for link, crowd in counts.items() if not state.kinds.is_crowded(link, *crowd)))
    muted = frozenset((state.crowds.keys() | quarantined.keys()) - set(released))
    components = _components(state, nodes, holders, muted)
    _set_components(state, components)
    crowds: dict[Link, Crowd | None] = {**counts, **quarantined, **dict.fromkeys(released)}
    for link in muted:
        holders.pop(link, None)
    return Outcome(nodes, components, holders, tuple(sorted(quarantined)), released, crowds)


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


def _newly_crowded(state: WorkingSet, nodes: Sequence[Node], holders: Holders) -> dict[Link, Crowd]:
    """Return the identifiers that too many hold now, and how many do."""
    kinds, few = state.kinds, state.kinds.records_always_fine
    found = {}
    heavy = {link for node in nodes if node.rows > few for link in node.content.links}
    for link, held in holders.items():
        if (len(held) > few or link in heavy) and link not in state.crowds:
            crowd = Crowd(len(held), sum(node.rows for node in held))
            if kinds.is_crowded(link, *crowd):
                found[link] = crowd
    return found


def _components(state: WorkingSet, nodes: Iterable[Node], holders: Holders, muted: frozenset[Link]) -> list[Component]:
    """Gather the nodes that links join, and resolve each set; nodes that nothing links are set apart at once."""
    gathered = {node.id: [node] for node in nodes if node.rows}
    for link, held in holders.items():
        if len(held) > 1 and link not in muted:
            _gather(gathered, held)
    components = []
    for node_id, found in gathered.items():
        if found[0].id != node_id:
            continue  # it was met before, with the first of its component
        links = found[0].content.links
        if len(found) == 1 and muted.issuperset(links):
            found[0].component, found[0].standing = None, Standing(None, suspect=False, muted=links)
        elif _is_overgrown(state, found):
            for node in found:
                node.component, node.standing = OVERGROWN, Standing(None, suspect=True, muted=node.content.links)
            components.append(Component(found, None, overgrown=True))
        else:
            components.append(_resolved(found, muted, state.kinds))
    return components


def _is_overgrown(state: WorkingSet, nodes: Sequence[Node]) -> bool:
    if len(nodes) > state.kinds.component_records_max:
        return True
    if not state.outside and not state.still_overgrown:
        return False
    return any(node.id in state.still_overgrown or not state.outside.isdisjoint(node.content.links) for node in nodes)


def _gather(gathered: dict[int, list[Node]], held: Sequence[Node]) -> None:
    """Join the sets of some nodes; the smaller goes into the larger, so that no node moves often."""
    into = gathered[held[0].id]
    for node in held:
        other = gathered[node.id]
        if other is not into:
            if len(other) > len(into):
                into, other = other, into
            into.extend(other)
            for moved in other:
                gathered[moved.id] = into


def _resolved(nodes: list[Node], muted: frozenset[Link], kinds: Kinds) -> Component:
    """Set the standing of the nodes of one component."""
    links, is_plain = 0, len(nodes) <= kinds.cluster_records_max
    for node in nodes:
        links += len(node.content.links)
        if node.content.unique or node.content.doubtful:
            is_plain = False
    if is_plain:  # nothing can be refused: they are one person
        suspect = links > kinds.values_always_fine and is_doubtful([n.content for n in nodes], muted, kinds)
        _set_standing(nodes, suspect=suspect, muted=muted)
        return Component(nodes, None)
    nodes.sort(key=lambda node: node.content.text)
    resolution = resolve([node.content for node in nodes], muted, kinds)
    for number, cluster in enumerate(resolution.clusters):
        _set_standing([nodes[i] for i in cluster], suspect=number in resolution.suspect, muted=muted)
    return Component(nodes, resolution)


def _set_standing(nodes: Sequence[Node], *, suspect: bool, muted: frozenset[Link]) -> None:
    first = nodes[0].first
    for node in nodes:
        first = min(first, node.first)
    standing = Standing(birth_id(first[1]), suspect, ())
    for node in nodes:
        node.standing = standing
        if muted and (own := tuple(link for link in node.content.links if link in muted)):
            node.standing = standing._replace(muted=own)


def _set_components(state: WorkingSet, components: Iterable[Component]) -> None:
    """Name the components; most keep the name that most of their nodes have in the store already."""
    taken: set[int] = set()
    named = [component for component in components if not component.overgrown]
    for component in sorted(named, key=lambda component: -len(component.nodes)):
        counts: dict[int, int] = defaultdict(int)
        for node in component.nodes:
            if node.before.component and node.before.component not in taken:
                counts[node.before.component] += 1
        if counts:
            name = max(counts, key=lambda known: (counts[known], -known))
        else:
            name, state.next_id = state.next_id, state.next_id + 1
        taken.add(name)
        for node in component.nodes:
            node.component = name
