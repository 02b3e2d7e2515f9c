"""The order of work of one batch: read, decide, read what the decisions name, work out who is who.

Which components a batch needs follows from what its changes do to their records; so these are decided first, and only
what really moves is read. All decisions are the pure functions of `decider`, `clustering` and `matching`.
"""

from collections.abc import Collection, Iterable

from services.identity_graph import overgrowth
from services.identity_graph.clustering import Outcome, move_rows, recluster, recount
from services.identity_graph.model import OVERGROWN, Content, Kinds, Link, tenant_of
from services.identity_graph.ports import GraphReader
from services.identity_graph.reading import fill, read_crowds, take, take_rows
from services.identity_graph.working_set import LINK_SEPARATOR, Row, StoredNode, WorkingSet


async def begin(graph: GraphReader, kinds: Kinds, keys: Collection[str], partition: int | None) -> WorkingSet:
    """Return the working set with the records of a batch, before anything is decided.

    Args:
        graph: the graph.
        kinds: the kinds of identifiers.
        keys: the records.
        partition: the one of `changes` that the batch is of; None when it is not of that topic.
    """
    state = WorkingSet(kinds, await graph.enter(partition))
    if partition is not None:
        state.truncated = await graph.truncations(partition)
    state.erased = await graph.erased(keys)
    take_rows(state, await graph.rows(keys))
    return state


async def work_out(graph: GraphReader, state: WorkingSet) -> Outcome:
    """Read the components that the decided rows change, and work out who is who in them."""
    watched = await _read_components(graph, state)
    move_rows(state)
    counts = recount(state)
    released = {link for link, crowd in counts.items() if not state.kinds.is_crowded(link, *crowd)}
    if released:
        watched |= await _read_released(graph, state, released)
    await overgrowth.settle(graph, state, watched, released)
    await fill(graph, [node for node in state.nodes.values() if node.lost_its_first])
    outcome = recluster(state, counts)
    await fill(graph, [n for n in outcome.nodes if n.rows and n.before.rows and n.standing != n.before.standing])
    state.generation = await graph.generation()
    return outcome


async def _read_components(graph: GraphReader, state: WorkingSet) -> set[Link]:
    """Read the components that rows leave, and those that they come to; return new links to overgrown ones."""
    changed = [row for row in state.rows.values() if row.touched and _concerns_graph(row)]
    if not changed:
        return set()
    contents = state.contents
    for row in changed:
        if row.moves and row.text is not None and (place := (tenant_of(row.key), row.text)) not in contents:
            contents[place] = state.kinds.content(*place)
    links = {link for content in contents.values() for link in content.links}
    await _claim_links(graph, state, changed, links)
    left_ids = {row.stored.node_id for row in changed if row.stored is not None and row.stored.node_id is not None}
    state.crowds = await graph.crowds(links)
    linking = links - state.crowds.keys() if state.crowds else links
    while True:
        left = await graph.nodes(left_ids)
        found = await graph.components_of(linking)
        components = {node.component for node in left} | set(found.values())
        was_free = await graph.claim({component for component in components if component is not None})
        stored = await graph.nodes_of({component for component in components if component})
        if not was_free or (OVERGROWN not in components and _are_all_there(left, found, stored)):
            break  # else others have joined or cut components before they were claimed
    take(state, [node for node in left if not node.component])
    take(state, stored)
    overgrown = {link for link, component in found.items() if component == OVERGROWN}
    alone = [place for place, content in contents.items() if not _leads_to_nodes(content, linking, overgrown)]
    if alone:
        take(state, await graph.lone_nodes(alone))
    await read_crowds(graph, state)
    return overgrown


def _are_all_there(left: Iterable[StoredNode], links: Iterable[Link], stored: Collection[StoredNode]) -> bool:
    """Tell whether nodes that were found in components, and the holders of links, are among the stored nodes."""
    ids = {node.id for node in stored}
    held = {link for node in stored for link in node.links.split(LINK_SEPARATOR)}
    return held.issuperset(links) and all(node.id in ids for node in left if node.component)


async def _claim_links(graph: GraphReader, state: WorkingSet, changed: Collection[Row], links: set[Link]) -> None:
    """Claim what rows hold now, and what they held before."""
    held = dict(state.contents)
    for row in changed:
        if row.stored is not None and row.stored.text is not None:
            place = (tenant_of(row.key), row.stored.text)
            if place not in held:
                held[place] = state.kinds.content(*place)
    bare = [place for place, content in held.items() if not content.links]
    await graph.claim_links(links.union(*(content.links for content in held.values())), bare)


def _leads_to_nodes(content: Content, linking: set[Link], overgrown: set[Link]) -> bool:
    """Tell whether a node of a content, if there is one, is among the nodes of the components of its links."""
    links = linking.intersection(content.links)
    return bool(links) and links.isdisjoint(overgrown)


def _concerns_graph(row: Row) -> bool:
    return row.moves or (row.text is not None and row.sighted)


async def _read_released(graph: GraphReader, state: WorkingSet, released: set[Link]) -> set[Link]:
    """Read what links that are released join; return those of them that overgrown components hold."""
    while True:
        stored = await graph.holders(released)
        components = {node.component for node in stored if node.component is not None}
        if not await graph.claim(components, {node.id for node in stored if node.component is None}):
            break
    take(state, [node for node in stored if node.component is None])
    known = {node.before.component for node in state.nodes.values()}
    take(state, await graph.nodes_of({node.component for node in stored if node.component} - known))
    await read_crowds(graph, state)
    return {
        link for node in stored if node.component == OVERGROWN for link in node.links.split(LINK_SEPARATOR)
    } & released
