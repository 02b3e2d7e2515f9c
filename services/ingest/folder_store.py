"""What is known of the files of watched folders, in the installation's database.

Not a read model: it cannot be made again from the log, only from the folders. It is what lets a deletion be noticed
that happened while nobody was watching, and it is written in the same transaction as the documents that it is about.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.ingest.folder_files import Stat
from services.ingest.settings import FolderSettings
from services.kernel.sqlite import Database, Transaction

SCHEMA = (
    """CREATE TABLE ingest_folders (
         tenant TEXT, source TEXT, device INTEGER NOT NULL, inode INTEGER NOT NULL, signature TEXT NOT NULL,
         version INTEGER NOT NULL, PRIMARY KEY (tenant, source)) WITHOUT ROWID""",
    """CREATE TABLE ingest_files (
         tenant TEXT, source TEXT, path TEXT, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL,
         PRIMARY KEY (tenant, source, path)) WITHOUT ROWID""",
    """CREATE TABLE ingest_documents (
         tenant TEXT, source TEXT, path TEXT, document_id TEXT, fingerprint BLOB NOT NULL,
         PRIMARY KEY (tenant, source, path, document_id)) WITHOUT ROWID""",
)


class FolderState(NamedTuple):
    """What is known of a folder as a whole.

    Attributes:
        device, inode: which folder it was that was read last.
        signature: the settings that its documents were made with.
        version: the highest position that was given to a document of it.
    """

    device: int = 0
    inode: int = 0
    signature: str = ""
    version: int = 0


class FolderStore:
    """The rows of one folder. Reads see committed data; writes belong to a unit of work."""

    def __init__(self, database: Database, folder: FolderSettings) -> None:
        self._database = database
        self._key = (folder.tenant, folder.source)

    @property
    def _reader(self) -> sqlite3.Connection:
        return self._database.reader

    def state(self) -> FolderState:
        """What is known of the folder; a folder that was never read has a state of zeros."""
        row = self._reader.execute(
            "SELECT device, inode, signature, version FROM ingest_folders WHERE tenant=? AND source=?", self._key
        ).fetchone()
        return FolderState(*row) if row else FolderState()

    def files(self) -> dict[str, Stat]:
        """All files that are known."""
        rows = self._reader.execute(
            "SELECT path, mtime_ns, size FROM ingest_files WHERE tenant=? AND source=?", self._key
        )
        return {path: Stat(mtime_ns, size) for path, mtime_ns, size in rows}

    def files_at(self, paths: Iterable[str]) -> dict[str, Stat]:
        """The known files at paths, or below them."""
        found = {}
        for path in paths:
            rows = self._reader.execute(
                "SELECT path, mtime_ns, size FROM ingest_files WHERE tenant=? AND source=? "
                "AND (path=? OR path>=? AND path<?)",
                (*self._key, path, f"{path}/", f"{path}0"),  # 0 is the character after the slash
            )
            found.update({name: Stat(mtime_ns, size) for name, mtime_ns, size in rows})
        return found

    def documents(self, path: str) -> dict[str, bytes]:
        """The fingerprints of a file's documents, by id."""
        rows = self._reader.execute(
            "SELECT document_id, fingerprint FROM ingest_documents WHERE tenant=? AND source=? AND path=?",
            (*self._key, path),
        )
        return dict(rows.fetchall())

    def save_state(self, unit: Transaction, state: FolderState) -> None:
        """Remember the state of the folder as a whole."""
        unit.execute(
            """INSERT INTO ingest_folders VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 device=excluded.device, inode=excluded.inode, signature=excluded.signature,
                 version=excluded.version""",
            (*self._key, *state),
        )

    def save_file(
        self, unit: Transaction, path: str, stat: Stat, put: Mapping[str, bytes], gone: Iterable[str]
    ) -> None:
        """Remember a file: how it looks, which documents are new or changed in it, and which are gone."""
        unit.execute(
            """INSERT INTO ingest_files VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 mtime_ns=excluded.mtime_ns, size=excluded.size""",
            (*self._key, path, *stat),
        )
        unit.executemany(
            """INSERT INTO ingest_documents VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                 fingerprint=excluded.fingerprint""",
            [(*self._key, path, document_id, mark) for document_id, mark in put.items()],
        )
        unit.executemany(
            "DELETE FROM ingest_documents WHERE tenant=? AND source=? AND path=? AND document_id=?",
            [(*self._key, path, document_id) for document_id in gone],
        )

    def forget_file(self, unit: Transaction, path: str) -> None:
        """Forget a file and its documents."""
        for table in ("ingest_files", "ingest_documents"):
            unit.execute(f"DELETE FROM {table} WHERE tenant=? AND source=? AND path=?", (*self._key, path))
