"""The journal of decisions: what was linked, merged, split, refused and quarantined, and why. Pure.

It tells of the difference that a batch made to persons, so that what comes and goes within one batch leaves no entry.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.clustering import Component, Outcome
from services.identity_graph.matching import Refusal, resolve
from services.identity_graph.model import OVERGROWN, Key, Link, birth_id, split_key, split_link, tenant_of
from services.identity_graph.working_set import Node, WorkingSet
from services.kernel import topics
from services.kernel.log import Message, key_of

DECIDED = events_pb2.IdentityDecided.DESCRIPTOR.full_name
LISTED = 100  # of records, profiles and evidence in one entry
NAMED = 3  # of these in its words


class Flow(NamedTuple):
    """Rows that went the same way.

    Attributes:
        old: the profile that they were in; None for new ones.
        new: the profile that they are in; None when they are gone.
        keys: the rows, where they are known one by one.
        before, node: their node before and now.
    """

    old: str | None
    new: str | None
    keys: Sequence[Key]
    before: Node | None
    node: Node | None


class Story(NamedTuple):
    """What there is to tell of a profile, before it is put into words."""

    kind: events_pb2.DecisionKind.ValueType
    profile: str
    others: Collection[str]
    keys: Sequence[Key]
    links: Sequence[Link]
    reason: str
    nodes: Collection[Node]


def decisions(state: WorkingSet, outcome: Outcome) -> list[Message]:
    """Return the entries that a batch adds to the journal."""
    if not outcome.nodes:
        return []
    into: dict[str, list[Flow]] = defaultdict(list)
    out_of: dict[str, list[Flow]] = defaultdict(list)
    for flow in _flows(state, outcome):
        if flow.new is not None:
            into[flow.new].append(flow)
        if flow.old is not None:
            out_of[flow.old].append(flow)
    stories = [*_quarantines(state, outcome)]
    for profile, flows in into.items():
        if any(flow.old != profile for flow in flows):
            stories.extend(_gains(outcome, profile, flows, out_of))
    for profile, flows in out_of.items():
        if any(flow.new != profile for flow in flows):
            stories.extend(_losses(outcome, profile, flows, into))
    stories.extend(_refused(state, outcome))
    return [_message(state, story) for story in stories]


def _flows(state: WorkingSet, outcome: Outcome) -> list[Flow]:
    """Return where rows went, for all profiles that anything came to or went from."""
    moved = []
    for row in state.rows.values():
        before, now = row.node_before, row.node
        if before is not now:
            old = None if before is None else before.before.standing.profile or birth_id(row.key)
            new = None if now is None else now.standing.profile or birth_id(row.key)
            moved.append(Flow(old, new, (row.key,), before, now))
    concerned = {profile for flow in moved for profile in flow[:2]}
    for node in outcome.nodes:
        if node.before.standing is not node.standing and node.before.standing.profile != node.standing.profile:
            concerned |= {node.before.standing.profile, node.standing.profile}
    for node in outcome.nodes:
        if node.before.rows and node.rows > len(node.joined):
            old, new = node.before.standing.profile, node.standing.profile
            if old in concerned or new in concerned:
                moved.extend(_staying(node, old, new))
    return moved


def _staying(node: Node, old: str | None, new: str | None) -> list[Flow]:
    """Return what became of the rows that stayed in a node."""
    if old is not None and old == new:
        return [Flow(old, new, (), node, node)]
    stayed = sorted((node.members or {}).keys() - node.joined)
    if old is not None and new is not None:
        return [Flow(old, new, stayed, node, node)]
    if old is None and new is None:
        return []
    return [Flow(old or birth_id(key), new or birth_id(key), (key,), node, node) for key in stayed]


def _gains(outcome: Outcome, profile: str, flows: Sequence[Flow], out_of: dict[str, list[Flow]]) -> Iterator[Story]:
    """Rows that joined a profile, and profiles that became one with it."""
    sources = {flow.old for flow in flows if flow.old is not None}
    merged = sorted(old for old in sources - {profile} if all(flow.new in {None, profile} for flow in out_of[old]))
    if len(sources) > 1 and merged:
        nodes = {flow.node for flow in flows if flow.node is not None}
        links = sorted(
            link
            for link in {link for node in nodes for link in node.content.links}
            if len({node.before.standing.profile for node in outcome.holders.get(link, ())}) > 1
        )
        keys = [key for flow in flows if flow.old in merged for key in flow.keys]
        reason = f"their records share {_words(links)}"
        yield Story(events_pb2.DECISION_KIND_MERGED, profile, merged, keys, links, reason, nodes)
    if sources:  # what comes from one profile alone came apart from it, and joined nobody
        apart = {profile, *merged} if len(sources) > 1 else sources
        joined = [flow for flow in flows if flow.old not in apart]
    else:  # a new profile: one record was the first, and joined nobody
        joined = [flow for flow in flows if birth_id(flow.keys[0]) != profile]
    if joined:
        links = sorted({
            link for flow in joined if flow.node is not None for link in flow.node.content.links
            if (holders := outcome.holders.get(link)) and (len(holders) > 1 or flow.node.rows > 1)
        })  # fmt: skip
        keys = [key for flow in joined for key in flow.keys]
        renamed = merged if len(sources) == 1 else ()
        reason = f"{_some(keys)} shares {_words(links)} with it"
        nodes = {flow.node for flow in joined if flow.node is not None}
        yield Story(events_pb2.DECISION_KIND_LINKED, profile, renamed, keys, links, reason, nodes)


def _losses(outcome: Outcome, profile: str, flows: Sequence[Flow], into: dict[str, list[Flow]]) -> Iterator[Story]:
    """A profile that came apart, or lost the record that gave it its id."""
    ends = sorted({flow.new for flow in flows if flow.new is not None})
    gone = [key for flow in flows if flow.new is None for key in flow.keys]
    if len(ends) < 2:
        renamed = ends and ends[0] != profile and gone and all(flow.old == profile for flow in into[ends[0]])
        if not renamed:
            return
    stays = profile if profile in ends else ends[0]
    left = [key for flow in flows if flow.new not in {None, stays} for key in flow.keys]
    lost = {
        link
        for flow in flows
        if flow.before is not None
        for link in flow.before.content.links
        if link in outcome.quarantined or flow.node is None or link not in flow.node.content.links
    }
    links = sorted(lost)
    if any(link in outcome.quarantined for link in links):
        reason = f"{_words(links)} does not link any more"
    else:
        reason = f"{_some(gone or left)} held it together" + (f" by {_words(links)}" if links else "")
    nodes = {flow.node for flow in flows if flow.node is not None}
    others = sorted({*ends, profile} - {stays})
    yield Story(events_pb2.DECISION_KIND_SPLIT, stays, others, [*left, *gone], links, reason, nodes)


def _refused(state: WorkingSet, outcome: Outcome) -> Iterator[Story]:
    """Refusals that were not there before the batch; what was is worked out again, for it is not stored."""
    for component in outcome.components:
        if component.overgrown:
            yield from _overgrown(state, component)
        if component.resolution is None or not component.resolution.refusals:
            continue
        known = _refusals_before(state, outcome, component)
        fresh: dict[tuple[Link, str], list[Refusal]] = defaultdict(list)
        for refusal in component.resolution.refusals:
            sides = (component.nodes[refusal.left].content.text, component.nodes[refusal.right].content.text)
            if (refusal.link, *sides) not in known:
                fresh[refusal.link, refusal.reason].append(refusal)
        for (link, objection), refusals in fresh.items():
            nodes = [component.nodes[i] for i in sorted({side for r in refusals for side in (r.left, r.right)})]
            profile, *others = sorted({node.standing.profile or "" for node in nodes})
            reason = f"{_words([link])} does not link them: {objection}"
            keys = [node.first[1] for node in nodes]
            yield Story(events_pb2.DECISION_KIND_REFUSED, profile, others, keys, [link], reason, nodes)


def _overgrown(state: WorkingSet, component: Component) -> Iterator[Story]:
    nodes = [node for node in component.nodes if node.before.component != OVERGROWN]
    if nodes:
        keys = [node.first[1] for node in nodes]
        olds = sorted({profile for node in nodes if (profile := node.before.standing.profile)})
        links = sorted({link for node in nodes for link in node.content.links})
        reason = (
            f"chains of links join more than {state.kinds.component_records_max} different records, too many to tell "
            "persons by: each stands alone"
        )
        profile, *others = olds or [birth_id(keys[0])]
        yield Story(events_pb2.DECISION_KIND_REFUSED, profile, others, keys, links, reason, nodes)


def _refusals_before(state: WorkingSet, outcome: Outcome, component: Component) -> set[tuple[Link, str, str]]:
    names = {node.before.component for node in component.nodes} - {None}
    before = [node for node in outcome.nodes if node.before.rows and node.before.component in names]
    before.sort(key=lambda node: node.content.text)
    resolution = resolve([node.content for node in before], state.crowds, state.kinds)
    return {(r.link, before[r.left].content.text, before[r.right].content.text) for r in resolution.refusals}


def _quarantines(state: WorkingSet, outcome: Outcome) -> Iterator[Story]:
    for link in outcome.quarantined:
        nodes = _holding(outcome, link)
        olds = sorted({node.before.standing.profile for node in nodes if node.before.standing.profile})
        news = _profiles(nodes)
        limit = state.kinds.records_max[split_link(link)[0]]
        reason = f"{_words([link])} is on {_count(nodes)}, more than the {limit} that may tell one person"
        profile = olds[0] if olds else news[0]
        others = [other for other in news if other != profile]
        keys = [node.first[1] for node in nodes]
        yield Story(events_pb2.DECISION_KIND_QUARANTINED, profile, others, keys, [link], reason, nodes)
    for link in outcome.released:
        nodes = _holding(outcome, link)
        news = _profiles(nodes)
        reason = f"{_words([link])} is on {_count(nodes)} now: it links them again"
        keys = [node.first[1] for node in nodes]
        if keys:
            yield Story(events_pb2.DECISION_KIND_RELEASED, news[0], news[1:], keys, [link], reason, nodes)


def _holding(outcome: Outcome, link: Link) -> list[Node]:
    return [node for node in outcome.nodes if node.rows and link in node.content.links]


def _profiles(nodes: Iterable[Node]) -> list[str]:
    return sorted({node.standing.profile or birth_id(node.first[1]) for node in nodes})


def _count(nodes: Collection[Node]) -> str:
    rows = sum(node.rows for node in nodes)
    return f"{rows} records" if rows == len(nodes) else f"{rows} records ({len(nodes)} different ones)"


def _some(keys: Sequence[Key]) -> str:
    names = ", ".join(split_key(key)[1] for key in keys[:NAMED])
    return f"{names} and {len(keys) - NAMED} more" if len(keys) > NAMED else names


def _words(links: Sequence[Link]) -> str:
    return " and ".join(" ".join(split_link(link)) for link in links[:NAMED]) or "an identifier"


def _message(state: WorkingSet, story: Story) -> Message:
    cause_ms = max((node.cause_ms for node in story.nodes), default=0) or state.newest_ms
    tenant = tenant_of(story.keys[0]) if story.keys else next(iter(story.nodes)).content.tenant
    event = events_pb2.IdentityDecided(tenant=tenant, kind=story.kind, profile_id=story.profile, reason=story.reason)
    event.records.extend([split_key(key)[1] for key in story.keys[:LISTED]])
    if story.others:
        event.other_profile_ids.extend(list(story.others)[:LISTED])
    for link in story.links[:LISTED]:
        kind, value = split_link(link)
        event.evidence.add(kind=kind, value=value)
    event.occurred_at.seconds, event.occurred_at.nanos = cause_ms // 1000, cause_ms % 1000 * 1_000_000
    return Message(topics.DECISIONS, key_of(tenant, story.profile), event.SerializeToString(), DECIDED, cause_ms)
