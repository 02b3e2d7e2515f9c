"""The order of work of one batch: read, decide, read what the decisions name, work out who is who.

Which components a batch needs follows from what its changes do to their records; so these are decided first, and only
what really moves is read. All decisions are the pure functions of `decider`, `clustering` and `matching`.
"""

from collections.abc import Collection

from services.identity_graph import overgrowth
from services.identity_graph.clustering import Outcome, move_rows, recluster, recount
from services.identity_graph.model import OVERGROWN, Content, Kinds, Link, tenant_of
from services.identity_graph.ports import GraphReader
from services.identity_graph.reading import fill, read_crowds, take, take_rows
from services.identity_graph.working_set import LINK_SEPARATOR, Row, WorkingSet


async def begin(graph: GraphReader, kinds: Kinds, keys: Collection[str], partition: int) -> WorkingSet:
    """Return the working set with the records of a batch, before anything is decided."""
    generation, next_id = await graph.counters()
    state = WorkingSet(kinds, generation, next_id)
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
    state.crowds = await graph.crowds(links)
    linking = links - state.crowds.keys() if state.crowds else links
    left = await graph.nodes(
        {row.stored.node_id for row in changed if row.stored is not None and row.stored.node_id is not None}
    )
    found = await graph.components_of(linking)
    components = {node.component for node in left} | set(found.values())
    take(state, [node for node in left if not node.component])
    take(state, await graph.nodes_of({component for component in components if component}))
    overgrown = {link for link, component in found.items() if component == OVERGROWN}
    alone = [place for place, content in contents.items() if not _leads_to_nodes(content, linking, overgrown)]
    if alone:
        take(state, await graph.lone_nodes(alone))
    await read_crowds(graph, state)
    return overgrown


def _leads_to_nodes(content: Content, linking: set[Link], overgrown: set[Link]) -> bool:
    """Tell whether a node of a content, if there is one, is among the nodes of the components of its links."""
    links = linking.intersection(content.links)
    return bool(links) and links.isdisjoint(overgrown)


def _concerns_graph(row: Row) -> bool:
    return row.moves or (row.text is not None and row.sighted)


async def _read_released(graph: GraphReader, state: WorkingSet, released: set[Link]) -> set[Link]:
    """Read what links that are released join; return those of them that overgrown components hold."""
    stored = await graph.holders(released)
    take(state, [node for node in stored if node.component is None])
    known = {node.before.component for node in state.nodes.values()}
    take(state, await graph.nodes_of({node.component for node in stored if node.component} - known))
    await read_crowds(graph, state)
    return {
        link for node in stored if node.component == OVERGROWN for link in node.links.split(LINK_SEPARATOR)
    } & released
