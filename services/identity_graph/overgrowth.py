"""Components that have grown beyond their bound, of which no more is read than a batch touches.

Their nodes stand alone, so that what joins one needs nothing of the others. When nodes or links of such a component go,
it may have come apart: then each loose end is followed until it has proved too large, or has been seen whole and is an
ordinary component again.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable

from services.identity_graph.model import OVERGROWN, Crowd, Link
from services.identity_graph.ports import GraphReader
from services.identity_graph.reading import read_crowds, take
from services.identity_graph.working_set import LINK_SEPARATOR, StoredNode, WorkingSet


async def settle(graph: GraphReader, state: WorkingSet, watched: set[Link], released: Collection[Link]) -> None:
    """Find what is, or stays, overgrown, and take in what is not any more.

    Args:
        graph: the graph.
        state: rows are in their new nodes.
        watched: links, new to some node here, that overgrown components hold.
        released: identifiers that are not quarantined any more.
    """
    touched = [node for node in state.nodes.values() if node.component == OVERGROWN]
    if not touched and not watched:
        return
    search = _Search(graph, state, released)
    grown = {link for node in touched if node.rows > node.before.rows for link in node.content.links}
    watched = {link for link in watched | grown if not search.is_dead(link)}
    holders = await search.holders(watched)
    for link in watched:
        crowd = _count(state, link, holders[link])
        if state.kinds.is_crowded(link, *crowd):
            state.crowded[link] = crowd
    gone = {link for node in touched if not node.rows for link in node.content.links if not search.is_dead(link)}
    cut = await search.holders(gone)
    ends = [node for link in gone for node in cut[link]] + [node for link in state.crowded for node in holders[link]]
    whole = await search.follow(node for node in ends if node.component == OVERGROWN)
    state.still_overgrown = {node.id for node in touched if node.rows and node.id not in whole}
    state.outside = {
        link
        for link in watched - state.crowded.keys()
        if any(node.component == OVERGROWN and node.id not in state.nodes for node in holders[link])
    }


def _count(state: WorkingSet, link: Link, stored: Iterable[StoredNode]) -> Crowd:
    """Return how many hold a link now: what is stored, but for what the working set knows better."""
    rows = {node.id: node.rows for node in stored}
    rows.update((node.id, node.rows) for node in state.nodes.values() if link in node.content.links)
    return Crowd(sum(count > 0 for count in rows.values()), sum(rows.values()))


class _Search:
    """Follows links from node to node through the store, but for the nodes and links that are gone."""

    def __init__(self, graph: GraphReader, state: WorkingSet, released: Collection[Link]) -> None:
        self._graph, self._state, self._released = graph, state, released

    def is_dead(self, link: Link) -> bool:
        """Tell whether a link is quarantined now; its crowd has been read."""
        state = self._state
        return link in state.crowded or (link in state.crowds and link not in self._released)

    async def holders(self, links: Collection[Link]) -> dict[Link, list[StoredNode]]:
        """Return the stored nodes that hold links, and whose rows are not all gone."""
        found: dict[Link, list[StoredNode]] = defaultdict(list)
        for node in {node.id: node for node in await self._graph.holders(links)}.values():
            known = self._state.nodes.get(node.id)
            if known is None or known.rows:
                for link in _links(node):
                    if link in links:
                        found[link].append(node)
        return found

    async def follow(self, ends: Iterable[StoredNode]) -> set[int]:
        """Follow loose ends; take in those that are seen whole, and return the ids of their nodes."""
        whole: set[int] = set()
        too_large: set[int] = set()
        for end in ends:
            if end.id in whole or end.id in too_large:
                continue
            seen = await self._reach(end, too_large)
            if len(seen) > self._state.kinds.component_records_max or not too_large.isdisjoint(seen):
                too_large.update(seen)
            else:
                whole.update(seen)
                take(self._state, seen.values())
                await read_crowds(self._graph, self._state)
        return whole

    async def _reach(self, start: StoredNode, too_large: set[int]) -> dict[int, StoredNode]:
        """Return the nodes that are joined to one, or, where they are too many, enough of them to tell."""
        seen = {start.id: start}
        frontier, done = [start], set[Link]()
        while frontier and len(seen) <= self._state.kinds.component_records_max:
            links = {link for node in frontier for link in _links(node)} - done
            done |= links
            self._state.crowds.update(await self._graph.crowds(links - self._state.crowds.keys()))
            found = await self.holders({link for link in links if not self.is_dead(link)})
            frontier = []
            for node in (node for nodes in found.values() for node in nodes):
                if node.id not in seen:
                    seen[node.id] = node
                    frontier.append(node)
            if not too_large.isdisjoint(node.id for node in frontier):
                break
        return seen


def _links(node: StoredNode) -> list[Link]:
    return node.links.split(LINK_SEPARATOR) if node.links else []
