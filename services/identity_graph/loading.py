"""The order of work of one batch: read, decide, read what the decisions name, work out who is who.

Which components a batch needs follows from what its changes do to their records; so these are decided first, and only
what really moves is read. All decisions are the pure functions of `decider`, `clustering` and `matching`.
"""

from collections.abc import Collection, Iterable, Sequence

import orjson

from services.identity_graph.clustering import Outcome, move_rows, recluster, recount
from services.identity_graph.model import (
    LINK_SEPARATOR,
    NOWHERE,
    Before,
    Kinds,
    Node,
    Row,
    Standing,
    StoredNode,
    StoredRow,
    WorkingSet,
    tenant_of,
)
from services.identity_graph.ports import GraphReader


async def begin(graph: GraphReader, kinds: Kinds, keys: Collection[str], partition: int) -> WorkingSet:
    """Return the working set with the records of a batch, before anything is decided."""
    generation, next_id = await graph.counters()
    state = WorkingSet(kinds, generation, next_id)
    state.truncated = await graph.truncations(partition)
    state.erased = await graph.erased(keys)
    take_rows(state, await graph.rows(keys))
    return state


def take_rows(state: WorkingSet, stored: Iterable[StoredRow]) -> None:
    """Take stored records into the working set; those that are there already stay as they are."""
    for row in stored:
        if row.key not in state.rows:
            carried = orjson.loads(row.carried) if row.carried else None
            buried = tuple(orjson.loads(row.buried)) if row.buried else ()
            state.rows[row.key] = Row(
                row.key, row, row.partition, row.offset, row.position, row.first_seen, row.text, carried, buried
            )


async def work_out(graph: GraphReader, state: WorkingSet) -> Outcome:
    """Read the components that the decided rows change, and work out who is who in them."""
    await _read_components(graph, state)
    move_rows(state)
    counts = recount(state)
    released = [link for link, crowd in counts.items() if not state.kinds.is_crowded(link, *crowd)]
    if released:
        await _take_whole_components(graph, state, await graph.holders(released))
    await _fill(graph, [node for node in state.nodes.values() if node.lost_its_first])
    outcome = recluster(state, counts)
    await _fill(graph, [n for n in outcome.nodes if n.rows and n.before.rows and n.standing != n.before.standing])
    return outcome


async def _read_components(graph: GraphReader, state: WorkingSet) -> None:
    """Read the components that rows leave, and those that they come to."""
    changed = [row for row in state.rows.values() if row.touched and _concerns_graph(row)]
    if not changed:
        return
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
    components = {node.component for node in left if node.component is not None}
    components.update(await graph.components_of(linking))
    await _take(graph, state, [node for node in left if node.component is None])
    await _take(graph, state, await graph.nodes_of(components))
    lone = [place for place, content in contents.items() if not linking.intersection(content.links)]
    if lone:
        await _take(graph, state, await graph.lone_nodes(lone))


def _concerns_graph(row: Row) -> bool:
    return row.moves or (row.text is not None and row.sighted)


async def _take_whole_components(graph: GraphReader, state: WorkingSet, stored: Sequence[StoredNode]) -> None:
    """Take nodes in, with everything that is joined to them."""
    await _take(graph, state, [node for node in stored if node.component is None])
    known = {node.before.component for node in state.nodes.values()}
    missing = {node.component for node in stored if node.component is not None} - known
    await _take(graph, state, await graph.nodes_of(missing))


async def _take(graph: GraphReader, state: WorkingSet, stored: Iterable[StoredNode]) -> None:
    """Take stored nodes in; those that are there already stay as they are."""
    asked: set[str] = set()
    for node_id, tenant, text, links, rows, first_seen, first_key, component, profile, suspect, muted in stored:
        if node_id in state.nodes:
            continue
        standing = NOWHERE
        if profile or muted:
            standing = Standing(profile, bool(suspect), tuple(orjson.loads(muted)) if muted else ())
            asked.update(standing.muted)
        content = state.kinds.content_of_links(tenant, text, links.split(LINK_SEPARATOR) if links else ())
        before = Before(rows, (first_seen, first_key), component, standing)
        state.add_node(Node(node_id, content, rows, before.first, component, standing, before))
    if asked := asked - state.crowds.keys():
        state.crowds.update(await graph.crowds(asked))


async def _fill(graph: GraphReader, nodes: Collection[Node]) -> None:
    """Complete the members of nodes."""
    stored: dict[int, dict[str, int]] = {}
    asked = {node.id for node in nodes if node.members is None and node.stored_members() is None}
    if asked:
        for node_id, key, first_seen in await graph.members(asked):
            stored.setdefault(node_id, {})[key] = first_seen
    for node in nodes:
        if node.members is None:
            known = node.stored_members()
            node.fill(stored[node.id] if known is None else known)
