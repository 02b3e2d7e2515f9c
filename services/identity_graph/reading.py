"""Takes what is stored into the working set of a batch."""

from collections.abc import Collection, Iterable

import orjson

from services.identity_graph.model import NOWHERE, Standing
from services.identity_graph.ports import GraphReader
from services.identity_graph.working_set import LINK_SEPARATOR, Before, Node, Row, StoredNode, StoredRow, WorkingSet


def take_rows(state: WorkingSet, stored: Iterable[StoredRow]) -> None:
    """Take stored records into the working set; those that are there already stay as they are."""
    for row in stored:
        if row.key not in state.rows:
            carried = orjson.loads(row.carried) if row.carried else None
            buried = tuple(orjson.loads(row.buried)) if row.buried else ()
            state.rows[row.key] = Row(
                row.key,
                row,
                row.partition,
                row.offset,
                row.position,
                row.first_seen,
                row.text,
                carried,
                buried,
                row.aside,
            )


def take(state: WorkingSet, stored: Iterable[StoredNode]) -> None:
    """Take stored nodes in; those that are there already stay as they are."""
    for node_id, tenant, text, links, rows, first_seen, first_key, component, profile, suspect, muted in stored:
        if node_id in state.nodes:
            continue
        standing = NOWHERE
        if profile or muted or suspect:
            standing = Standing(profile, bool(suspect), tuple(orjson.loads(muted)) if muted else ())
        content = state.kinds.content_of_links(tenant, text, links.split(LINK_SEPARATOR) if links else ())
        before = Before(rows, (first_seen, first_key), component, standing)
        state.add_node(Node(node_id, content, rows, before.first, component, standing, before))


async def read_crowds(graph: GraphReader, state: WorkingSet) -> None:
    """Read the numbers of the quarantined identifiers that nodes of the working set hold."""
    muted = {link for node in state.nodes.values() if node.standing.muted for link in node.standing.muted}
    if asked := muted - state.crowds.keys():
        state.crowds.update(await graph.crowds(asked))


async def fill(graph: GraphReader, nodes: Collection[Node]) -> None:
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
