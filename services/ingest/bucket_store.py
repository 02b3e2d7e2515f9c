"""What is known of the objects of watched buckets, in the installation's database.

Not a read model, as with folders: it is what lets a change be noticed that nobody told of.
"""

from collections.abc import Iterable, Mapping

from services.kernel.sqlite import Database, Transaction

SCHEMA = (
    """CREATE TABLE ingest_objects (
         tenant TEXT, source TEXT, key TEXT, mark TEXT NOT NULL, PRIMARY KEY (tenant, source, key)) WITHOUT ROWID""",
)


class BucketStore:
    """The rows of one bucket. A mark is the object's hash with the settings that its document was made with."""

    def __init__(self, database: Database, tenant: str, source: str) -> None:
        self._database, self._place = database, (tenant, source)

    def marks(self) -> dict[str, str]:
        """The marks of all objects that are known, by key."""
        rows = self._database.reader.execute(
            "SELECT key, mark FROM ingest_objects WHERE tenant=? AND source=?", self._place
        )
        return dict(rows.fetchall())

    def save(self, unit: Transaction, marks: Mapping[str, str], gone: Iterable[str]) -> None:
        """Remember objects, and forget others."""
        unit.executemany(
            "INSERT INTO ingest_objects VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET mark=excluded.mark",
            [(*self._place, key, mark) for key, mark in marks.items()],
        )
        unit.executemany(
            "DELETE FROM ingest_objects WHERE tenant=? AND source=? AND key=?", [(*self._place, key) for key in gone]
        )
