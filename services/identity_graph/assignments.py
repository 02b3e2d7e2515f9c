"""The events that tell the other services which profile a record belongs to. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from headwater.common.v1 import common_pb2
from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.clustering import Outcome
from services.identity_graph.model import Key, Link, Standing, birth_id, split_key, split_link
from services.identity_graph.working_set import Node, WorkingSet
from services.kernel import topics
from services.kernel.log import Message

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
                    messages.append(_message(state, row.key, row.first_seen, now, row.cause_ms))
        elif row.node is not None and row.sighted:
            messages.append(_message(state, row.key, row.first_seen, standing_of(row.node, row.key), row.cause_ms))
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
    profile, suspect, muted = standing
    links = node.content.links
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
            yield _message(state, key, first_seen, standing_of(node, key), node.cause_ms or state.newest_ms)


def gone(key: Key, first_seen: int, generation: int, cause_ms: int = 0) -> Message:
    """Return the message that a record is nobody's any more."""
    event = _event(key, first_seen, generation)
    return Message(topics.ASSIGNMENTS, key.encode(), event.SerializeToString(), ASSIGNED, cause_ms or first_seen)


def _message(state: WorkingSet, key: Key, first_seen: int, now: Assignment, cause_ms: int) -> Message:
    event = _event(key, first_seen, state.generation)
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


def identifier(link: Link) -> common_pb2.Identifier:
    """Return a link as an identifier of the contracts."""
    kind, value = split_link(link)
    return common_pb2.Identifier(kind=kind, value=value)
