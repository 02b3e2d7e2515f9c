"""The events that tell the other services which profile a record belongs to. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from headwater.common.v1 import common_pb2
from headwater.identity_graph.v1 import events_pb2
from services.identity_graph.clustering import Outcome
from services.identity_graph.model import Key, Link, Node, Row, WorkingSet, birth_id, split_key, split_link
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
    for node in outcome.nodes:
        if node.rows:
            messages.extend(_of_node(state, node))
    for row in state.rows.values():
        if not row.touched:
            continue
        if row.node is None:
            if row.node_before is not None:
                messages.append(_message(state, row.key, row.first_seen, None, state.newest_ms))
        elif row.node is row.node_before and row.first_seen != row.first_seen_before:
            messages.append(_message(state, row.key, row.first_seen, standing_of(row.node, row.key), row.first_seen))
    return messages


def standing_of(node: Node, key: Key) -> Assignment:
    """Return what the graph says now of one of a node's rows."""
    profile, suspect, muted = node.standing
    links = node.content.links
    return Assignment(
        profile or birth_id(key), tuple(link for link in links if link not in muted) if muted else links, suspect
    )


def standing_before(row: Row) -> Assignment | None:
    """Return what the graph said of a row before the batch; None when it was not in it."""
    node = row.node_before
    if node is None:
        return None
    profile, suspect, muted = node.standing_before
    links = tuple(link for link in node.content.links if link not in muted)
    return Assignment(profile or birth_id(row.key), links, suspect)


def _of_node(state: WorkingSet, node: Node) -> Iterator[Message]:
    cause_ms = node.cause_ms or state.newest_ms
    if node.rows_before and node.standing != node.standing_before:
        if node.members is None:
            raise RuntimeError(f"what is said of node {node.id} changes, and its rows were not read")
        keys: Iterable[Key] = node.members
    else:
        keys = node.joined
    for key in sorted(keys) if len(node.joined) > 1 else keys:
        row, now = state.rows.get(key), standing_of(node, key)
        if row is None:
            yield _message(state, key, (node.members or {})[key], now, cause_ms)
        elif row.node is not row.node_before:
            if row.first_seen != row.first_seen_before or now != standing_before(row):
                yield _message(state, key, row.first_seen, now, cause_ms)
        elif row.first_seen == row.first_seen_before:  # else it is told with its new first sighting
            yield _message(state, key, row.first_seen, now, cause_ms)


def _message(state: WorkingSet, key: Key, first_seen: int, now: Assignment | None, cause_ms: int) -> Message:
    tenant, record = split_key(key)
    event = events_pb2.RecordAssigned(tenant=tenant, record=record, generation=state.generation)
    if now is not None:
        event.profile_id, event.suspect = now.profile, now.suspect
        add = event.identifiers.add
        for link in now.links:
            kind, value = split_link(link)
            add(kind=kind, value=value)
    event.first_seen.seconds, event.first_seen.nanos = first_seen // 1000, first_seen % 1000 * 1_000_000
    return Message(topics.ASSIGNMENTS, key.encode(), event.SerializeToString(), ASSIGNED, cause_ms)


def identifier(link: Link) -> common_pb2.Identifier:
    """Return a link as an identifier of the contracts."""
    kind, value = split_link(link)
    return common_pb2.Identifier(kind=kind, value=value)
