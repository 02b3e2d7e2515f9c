"""What is published late: the outputs of a batch whose worker ended before it had published them.

Another worker may have told of the same records meanwhile, and what comes last in a compacted topic is what stays. So
an assignment that is published late tells what the graph says by then, with the number of whoever made it so.
"""

from collections.abc import Sequence

import orjson

from services.identity_graph.assignments import assigned, assignment_of, gone
from services.identity_graph.model import Standing
from services.identity_graph.neo4j_client import Neo4j, table
from services.identity_graph.working_set import LINK_SEPARATOR
from services.kernel import topics
from services.kernel.log import Message


async def as_of_now(neo4j: Neo4j, outputs: Sequence[Message]) -> list[Message]:
    """Return the outputs of a batch with assignments as they are now."""
    keys = {message.key.decode() for message in outputs if message.topic == topics.ASSIGNMENTS and message.key}
    if not keys:
        return list(outputs)
    found = await neo4j.ask(
        "UNWIND $keys AS key MATCH (r:IdentityRecord {key: key}) OPTIONAL MATCH (r)-[:HOLDS]->(n:IdentityContent) "
        + table("key", "r.first_seen", "r.generation", "n.links", "n.profile", "n.suspect", "n.muted", "n.generation"),
        keys=sorted(keys),
    )
    now: dict[str, Message] = {}
    for key, first_seen, left_by, links, profile, suspect, muted, made_by in found:
        if links is not None:
            standing = Standing(profile, bool(suspect), tuple(orjson.loads(muted)) if muted else ())
            held = tuple(links.split(LINK_SEPARATOR)) if links else ()
            now[key] = assigned(key, first_seen, assignment_of(held, standing, key), made_by, 0)
        else:
            now[key] = gone(key, first_seen, left_by or 0)
    return [_renewed(message, now) for message in outputs]


def _renewed(message: Message, now: dict[str, Message]) -> Message:
    if message.topic != topics.ASSIGNMENTS or not message.key:
        return message
    current = now.get(message.key.decode())  # None: it was erased
    return message._replace(value=None if current is None else current.value)
