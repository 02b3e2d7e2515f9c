"""Changes that are not whole, in the log: compaction keeps what they add to."""

from collections.abc import Sequence

from headwater.ingest.v1 import events_pb2
from services.ingest.messages import messages_of
from services.kernel import topics
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.sqlite_retention import Retention

LATER_MS = 10**14


def change(number: int, *, partial: bool = False, unavailable: Sequence[str] = ()) -> events_pb2.Change:
    return events_pb2.Change(
        source="crm", entity="customers", record="crm/customers/1", key_json='{"id":1}', partial=partial,
        operation=events_pb2.OPERATION_UPDATE, after_json="{}", unavailable=unavailable, source_position=str(number),
    )  # fmt: skip


async def kept(log: SqliteLog, database: Database, changes: Sequence[events_pb2.Change]) -> list[str]:
    for one in changes:
        await log.append(messages_of(one, 4, (1, 0)))
    await Retention(log, database).clean(LATER_MS)
    found = []
    for partition in range(log.partitions(topics.CHANGES)):
        found += await log.read(topics.CHANGES, partition, 0)
    return [events_pb2.Change.FromString(record.value or b"").source_position for record in found]


async def test_a_change_that_is_not_whole_takes_the_place_of_none(log: SqliteLog, database: Database) -> None:
    changes = [change(1), change(2), change(3, partial=True), change(4, unavailable=["photo"])]
    assert await kept(log, database, changes) == ["2", "3", "4"]


async def test_a_whole_change_takes_the_place_of_all_before_it(log: SqliteLog, database: Database) -> None:
    assert await kept(log, database, [change(1), change(2, partial=True), change(3)]) == ["3"]
