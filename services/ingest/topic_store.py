"""How far raw topics have been read, in the installation's database: in one unit of work with what was read.

Not a read model: it is what makes each record be taken once. A cluster is known by the id that it gives itself, so that
its addresses may change.
"""

from collections.abc import Mapping

from services.kernel.sqlite import Database, Transaction

SCHEMA = (
    """CREATE TABLE ingest_topics (
         cluster TEXT, topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, missed INTEGER NOT NULL DEFAULT 0,
         PRIMARY KEY (cluster, topic, partition)) WITHOUT ROWID""",
)
Places = dict[tuple[str, int], int]
"""(topic, partition) -> a number of it."""


class TopicStore:
    """The rows of one cluster."""

    def __init__(self, database: Database, cluster: str) -> None:
        self._database, self._cluster = database, cluster

    def offsets(self) -> Places:
        """The next offset of every partition that was ever read."""
        return self._column("next_offset")

    def missed(self) -> Places:
        """Per partition, how many records had left it before they were read, where there were any."""
        return {place: count for place, count in self._column("missed").items() if count}

    def _column(self, name: str) -> Places:
        rows = self._database.reader.execute(
            f"SELECT topic, partition, {name} FROM ingest_topics WHERE cluster=?", (self._cluster,)
        )
        return {(topic, partition): value for topic, partition, value in rows}

    def save(self, unit: Transaction, offsets: Mapping[tuple[str, int], int], missed: int = 0) -> None:
        """Set the next offsets; `missed` is added to what each partition has missed."""
        unit.executemany(
            """INSERT INTO ingest_topics VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 next_offset=excluded.next_offset, missed=missed+excluded.missed""",
            [(self._cluster, *place, offset, missed) for place, offset in offsets.items()],
        )
