"""The events that tell the other services which profile a record belongs to. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from headwater.common.v1 import common_pb2
from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.clustering import Outcome
from services.identity_graph.model import Key, Link, Standing, birth_id, split_key, split_link
from services.identity_graph.ports import Told
from services.identity_graph.working_set import Node, WorkingSet
from services.kernel import topics
from services.kernel.log import Message, Record

ASSIGNED = events_pb2.RecordAssigned.DESCRIPTOR.full_name


class Assignment(NamedTuple):
    """What is told of a record: its profile, the links that count, and whether the profile is suspect."""

    profile: str
    links: tuple[Link, ...]
    suspect: bool


def assignments(state: WorkingSet, outcome: Outcome) -> list[Message]:
    """Return the assignments that changed in a batch."""
    messages: list[Message] = []
    for row in state.rows.values():
        if row.node is not row.node_before:
            if row.node is None:
                messages.append(gone(row.key, row.first_seen, state.generation, row.cause_ms))
            else:
                now = standing_of(row.node, row.key)
                if row.node_before is None or row.sighted or now != _standing_before(row.node_before, row.key):
                    messages.append(assigned(row.key, row.first_seen, now, state.generation, row.cause_ms))
        elif row.node is not None and row.sighted:
            now = standing_of(row.node, row.key)
            messages.append(assigned(row.key, row.first_seen, now, state.generation, row.cause_ms))
    for node in outcome.nodes:
        if node.rows and node.before.rows and node.standing != node.before.standing:
            messages.extend(_of_members(state, node))
    return messages


def standing_of(node: Node, key: Key) -> Assignment:
    """Return what the graph says now of one of a node's rows."""
    return _assignment(node, node.standing, key)


def _standing_before(node: Node, key: Key) -> Assignment:
    return _assignment(node, node.before.standing, key)


def _assignment(node: Node, standing: Standing, key: Key) -> Assignment:
    return assignment_of(node.content.links, standing, key)


def assignment_of(links: tuple[Link, ...], standing: Standing, key: Key) -> Assignment:
    """Return what the graph says of one of the records that hold links."""
    profile, suspect, muted = standing
    if muted:
        links = tuple(link for link in links if link not in muted)
    return Assignment(profile or birth_id(key), links, suspect)


def _of_members(state: WorkingSet, node: Node) -> Iterator[Message]:
    """Tell of the rows of a node whose standing changed, but for those that came to it: they have been told."""
    if node.members is None:
        raise RuntimeError(f"what is said of node {node.id} changes, and its rows were not read")
    for key, first_seen in sorted(node.members.items()):
        row = state.rows.get(key)
        if row is None or (row.node is row.node_before and not row.sighted):
            now, cause_ms = standing_of(node, key), node.cause_ms or state.newest_ms
            yield assigned(key, first_seen, now, state.generation, cause_ms)


def gone(key: Key, first_seen: int, generation: int, cause_ms: int = 0) -> Message:
    """Return the message that a record is nobody's any more."""
    event = _event(key, first_seen, generation)
    return Message(topics.ASSIGNMENTS, key.encode(), event.SerializeToString(), ASSIGNED, cause_ms or first_seen)


def assigned(key: Key, first_seen: int, now: Assignment, generation: int, cause_ms: int) -> Message:
    """Return the message that tells of a record's profile."""
    event = _event(key, first_seen, generation)
    event.profile_id, event.suspect = now.profile, now.suspect
    add = event.identifiers.add
    for link in now.links:
        kind, value = split_link(link)
        add(kind=kind, value=value)
    return Message(topics.ASSIGNMENTS, key.encode(), event.SerializeToString(), ASSIGNED, cause_ms)


def _event(key: Key, first_seen: int, generation: int) -> events_pb2.RecordAssigned:
    tenant, record = split_key(key)
    event = events_pb2.RecordAssigned(tenant=tenant, record=record, generation=generation)
    event.first_seen.seconds, event.first_seen.nanos = first_seen // 1000, first_seen % 1000 * 1_000_000
    return event


def told_by(record: Record) -> Told:
    """Return what an assignment tells."""
    key = (record.key or b"").decode()
    if record.value is None:
        return Told(key, None, 0)
    event = events_pb2.RecordAssigned.FromString(record.value)
    return Told(key, event.first_seen.ToMilliseconds(), event.generation)


def identifier(link: Link) -> common_pb2.Identifier:
    """Return a link as an identifier of the contracts."""
    kind, value = split_link(link)
    return common_pb2.Identifier(kind=kind, value=value)
