"""The turns that the log holds and a store has not taken in yet: an erasure must reach these, too."""

from services.kernel import topics
from services.kernel.log import Log, Offsets
from services.rag_gateway.conversations import TurnRow, decoded


async def pending_turns(log: Log, tenant: str, stored: Offsets) -> list[TurnRow]:
    """Return a tenant's turns from where a store stands to the end of the log.

    Args:
        log: the log.
        tenant: whose turns.
        stored: where the store stands in each partition of `conversations`; 0 in those that are not named.
    """
    rows: list[TurnRow] = []
    for partition in range(log.partitions(topics.CONVERSATIONS)):
        offset = stored.get((topics.CONVERSATIONS, partition), 0)
        while records := await log.read(topics.CONVERSATIONS, partition, offset):
            offset = records[-1].offset + 1
            rows.extend(row for row in decoded(records) if row.tenant == tenant)
    return rows
