"""The journal of decisions: what was linked, merged, split, refused and quarantined, and why. Pure.

It tells of the difference that a batch made to persons, so that what comes and goes within one batch leaves no entry.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.assignments import identifier
from services.identity_graph.clustering import Component, Outcome
from services.identity_graph.matching import Refusal, resolve
from services.identity_graph.model import Crowd, Key, Link, Node, WorkingSet, birth_id, split_key, split_link
from services.kernel import topics
from services.kernel.log import Message, key_of

DECIDED = events_pb2.IdentityDecided.DESCRIPTOR.full_name
RECORDS_LISTED = 100
EVIDENCE_LISTED = 20


@dataclass(slots=True)
class _Moves:
    """Where rows went from one profile to another.

    Attributes:
        into: new profile -> old profiles -> rows, as far as they are known one by one.
        out_of: old profile -> new profiles.
        arrived: profile -> rows that were in none before.
        gone: old profile -> rows that are in none now.
        nodes: new profile -> its nodes, where there is something to tell of it.
    """

    into: dict[str, dict[str, list[Key]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    out_of: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    arrived: dict[str, list[Key]] = field(default_factory=lambda: defaultdict(list))
    gone: dict[str, list[Key]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def note(self, old: str, new: str, keys: Iterable[Key]) -> None:
        self.into[new][old].extend(keys)
        self.out_of[old].add(new)


def decisions(state: WorkingSet, outcome: Outcome) -> list[Message]:
    """Return the entries that a batch adds to the journal."""
    if not outcome.nodes:
        return []
    moves = _moves(state, outcome)
    events = [
        *_quarantines(state, outcome),
        *_linked(state, outcome, moves),
        *_merged(state, outcome, moves),
        *_split(state, outcome, moves),
        *_refused(state, outcome),
    ]
    return [_message(event) for event in events]


def _moves(state: WorkingSet, outcome: Outcome) -> _Moves:
    moves = _Moves()
    for node in outcome.nodes:
        if not node.rows:
            continue
        old, new = node.standing_before.profile, node.standing.profile
        if new is not None:
            moves.nodes[new].append(node)
        if not node.rows_before or (old is None and new is None):
            continue
        if old is not None and new is not None:
            if node.rows > len(node.joined):
                moves.note(old, new, [node.first[1]] if node.first[1] not in node.joined else [])
            continue
        for key in node.members or ():
            if key not in node.joined:
                moves.note(old or birth_id(key), new or birth_id(key), [key])
    for row in state.rows.values():
        before, now = row.node_before, row.node
        if before is now:
            continue
        old_profile = before and (before.standing_before.profile or birth_id(row.key))
        new_profile = now and (now.standing.profile or birth_id(row.key))
        if new_profile and old_profile:
            moves.note(old_profile, new_profile, [row.key])
        elif new_profile:
            moves.arrived[new_profile].append(row.key)
        elif old_profile:
            moves.gone[old_profile].append(row.key)
    return moves


def _linked(state: WorkingSet, outcome: Outcome, moves: _Moves) -> Iterator[events_pb2.IdentityDecided]:
    """Rows that joined a profile: new ones, and such as left another that goes on without them."""
    joined = {profile: list(keys) for profile, keys in moves.arrived.items()}
    for new, olds in moves.into.items():
        for old, keys in olds.items():
            if old != new and len(moves.out_of[old]) > 1 and len(olds) > 1:
                joined.setdefault(new, []).extend(keys)
    for profile, keys in joined.items():
        nodes = moves.nodes.get(profile, ())
        if sum(node.rows for node in nodes) < 2:
            continue
        others = sorted(old for old in moves.into.get(profile, ()) if old != profile and moves.out_of[old] == {profile})
        joining = keys
        if profile not in moves.into and not others:
            joining = [key for key in keys if birth_id(key) != profile]  # the others joined the oldest
        holding = {row.node.id for key in joining if (row := state.rows[key]).node is not None}
        links = sorted({
            link for node in nodes if node.id in holding for link in node.content.links
            if len(outcome.holders.get(link, ())) > 1 or node.rows > 1
        } & outcome.holders.keys())  # fmt: skip
        yield _event(
            state, events_pb2.DECISION_KIND_LINKED, profile, others if len(moves.into.get(profile, ())) == 1 else [],
            joining, links, f"{_some(joining)} shares {_words(links)} with the profile", nodes,
        )  # fmt: skip


def _merged(state: WorkingSet, outcome: Outcome, moves: _Moves) -> Iterator[events_pb2.IdentityDecided]:
    for new, olds in moves.into.items():
        merged = sorted(old for old in olds if old != new and moves.out_of[old] == {new})
        if not merged or len(olds) < 2:
            continue
        nodes = moves.nodes[new]
        links = [link for link in _shared(nodes, outcome) if _joins_profiles(outcome.holders[link])]
        keys = [key for old in merged for key in olds[old]]
        reason = f"both hold {_words(links)}" if links else "their records are joined by records of others"
        yield _event(state, events_pb2.DECISION_KIND_MERGED, new, merged, keys, links, reason, nodes)


def _split(state: WorkingSet, outcome: Outcome, moves: _Moves) -> Iterator[events_pb2.IdentityDecided]:
    for old, news in moves.out_of.items():
        gone = moves.gone.get(old, [])
        (only, *more) = sorted(news)
        renamed = not more and only != old and len(moves.into[only]) == 1 and not moves.arrived.get(only)
        if not more and not (renamed and gone):
            continue
        stays = old if old in news else only
        left = [key for new in news if new != stays for key in moves.into[new][old]]
        links = _lost(state, outcome, old)
        if links:
            reason = f"nothing holds it together since {_words(links)} does not link its records any more"
        else:
            reason = f"{_some(gone or left)} held it together"
        others = sorted((news | {old}) - {stays})
        nodes = [node for new in news for node in moves.nodes.get(new, ())]
        yield _event(state, events_pb2.DECISION_KIND_SPLIT, stays, others, [*left, *gone], links, reason, nodes)


def _lost(state: WorkingSet, outcome: Outcome, profile: str) -> list[Link]:
    """Return the links that rows of a profile do not share any more."""
    lost = set(outcome.quarantined)
    held = {link for node in outcome.nodes if node.standing_before.profile == profile for link in node.content.links}
    for row in state.rows.values():
        before = row.node_before
        if before is not None and before is not row.node and before.standing_before.profile == profile:
            lost.update(set(before.content.links) - set(row.node.content.links if row.node else ()))
    return sorted(lost & held)


def _refused(state: WorkingSet, outcome: Outcome) -> Iterator[events_pb2.IdentityDecided]:
    """Refusals that were not there before the batch; what was is worked out again, for it is not stored."""
    for component in outcome.components:
        if component.resolution is None or not component.resolution.refusals:
            continue
        known = _refusals_before(state, outcome, component)
        fresh: dict[tuple[Link, str], list[Refusal]] = defaultdict(list)
        for refusal in component.resolution.refusals:
            sides = (component.nodes[refusal.left].content.text, component.nodes[refusal.right].content.text)
            if (refusal.link, *sides) not in known:
                fresh[refusal.link, refusal.reason].append(refusal)
        for (link, reason), refusals in fresh.items():
            nodes = [component.nodes[i] for i in sorted({side for r in refusals for side in (r.left, r.right)})]
            profile, *others = sorted({node.standing.profile or "" for node in nodes})
            yield _event(
                state, events_pb2.DECISION_KIND_REFUSED, profile, others, [node.first[1] for node in nodes], [link],
                f"{_words([link])} does not link them: {reason}", nodes,
            )  # fmt: skip


def _refusals_before(state: WorkingSet, outcome: Outcome, component: Component) -> set[tuple[Link, str, str]]:
    names = {node.component_before for node in component.nodes} - {None}
    before = [node for node in outcome.nodes if node.rows_before and node.component_before in names]
    before.sort(key=lambda node: node.content.text)
    resolution = resolve([node.content for node in before], state.crowds, state.kinds)
    return {(r.link, before[r.left].content.text, before[r.right].content.text) for r in resolution.refusals}


def _quarantines(state: WorkingSet, outcome: Outcome) -> Iterator[events_pb2.IdentityDecided]:
    for kind, links in (
        (events_pb2.DECISION_KIND_QUARANTINED, outcome.quarantined),
        (events_pb2.DECISION_KIND_RELEASED, outcome.released),
    ):
        for link in links:
            nodes = [node for node in outcome.nodes if node.rows and link in node.content.links]
            profiles = sorted({node.standing.profile or birth_id(node.first[1]) for node in nodes})
            olds = sorted({node.standing_before.profile for node in nodes if node.standing_before.profile})
            crowd = outcome.crowds[link]
            limit = state.kinds.max_records[split_link(link)[0]]
            reason = (
                f"{_words([link])} is held by {_count(crowd, nodes)}, which is too many to tell one person (the limit "
                f"is {limit} different ones)"
                if kind == events_pb2.DECISION_KIND_QUARANTINED
                else f"{_words([link])} is held by {_count(None, nodes)} now, which is few enough to link them"
            )
            profile = next(iter(profiles if kind == events_pb2.DECISION_KIND_RELEASED else olds or profiles), "")
            others = [other for other in profiles if other != profile]
            yield _event(state, kind, profile, others, [node.first[1] for node in nodes], [link], reason, nodes, link)


def _count(crowd: Crowd | None, nodes: Sequence[Node]) -> str:
    records, rows = crowd or Crowd(len(nodes), sum(node.rows for node in nodes))
    return f"{records} different records" if records == rows else f"{rows} records, {records} of them different"


def _shared(nodes: Iterable[Node], outcome: Outcome) -> list[Link]:
    return sorted({link for node in nodes for link in node.content.links if len(outcome.holders.get(link, ())) > 1})


def _joins_profiles(holders: Iterable[Node]) -> bool:
    return len({node.standing_before.profile for node in holders if node.rows_before}) > 1


def _some(keys: Collection[Key]) -> str:
    names = [split_key(key)[1] for key in list(keys)[:3]]
    return ", ".join(names) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _words(links: Collection[Link]) -> str:
    words = " and ".join(" ".join(split_link(link)) for link in list(links)[:3])
    return words or "an identifier"


def _event(
    state: WorkingSet,
    kind: events_pb2.DecisionKind.ValueType,
    profile: str,
    others: Iterable[str],
    keys: Iterable[Key],
    links: Iterable[Link],
    reason: str,
    nodes: Iterable[Node],
    about: str = "",
) -> events_pb2.IdentityDecided:
    cause_ms = max((node.cause_ms for node in nodes), default=0) or state.newest_ms
    keys = list(keys)
    tenant = split_key(keys[0])[0] if keys else about.partition("\x1f")[0]
    event = events_pb2.IdentityDecided(
        tenant=tenant, kind=kind, profile_id=profile, other_profile_ids=list(others)[:RECORDS_LISTED],
        records=[split_key(key)[1] for key in keys[:RECORDS_LISTED]],
        evidence=[identifier(link) for link in list(links)[:EVIDENCE_LISTED]], reason=reason,
    )  # fmt: skip
    event.occurred_at.seconds, event.occurred_at.nanos = cause_ms // 1000, cause_ms % 1000 * 1_000_000
    return event


def _message(event: events_pb2.IdentityDecided) -> Message:
    seconds, nanos = event.occurred_at.seconds, event.occurred_at.nanos
    return Message(
        topics.DECISIONS, key_of(event.tenant, event.profile_id), event.SerializeToString(), DECIDED,
        seconds * 1000 + nanos // 1_000_000,
    )  # fmt: skip
