"""What the profile service needs from its stores; an adapter per technology stands beside this file."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from headwater.common.v1 import common_pb2
from services.kernel.log import Ledger, Record
from services.kernel.processor import Store
from services.profile.documents import Documents, Stored
from services.profile.erasure import Erasures
from services.profile.projection import Folded, SourceRow
from services.profile.rows import Rows

ROWS_GROUP, FOLD_GROUP, ERASURE_GROUP = "profile-rows", "profile-fold", "profile-erasure"

Fold = Callable[[str, str, Iterable[SourceRow]], Folded | None]
"""Tenant, profile id and rows in, document out: `Projection.fold`."""


class ProfileReader(Protocol):
    """Committed reads, for queries. Identifiers are normalised ones, as identity resolution sends them."""

    async def document(self, tenant: str, profile_id: str) -> Stored | None:
        """Return a document."""

    async def profiles_of(self, tenant: str, kind: str, values: Sequence[str]) -> list[str]:
        """Return the ids of the profiles that have an identifier of this kind with one of the values."""

    async def profile_of_record(self, tenant: str, record: str) -> str | None:
        """Return the id of the profile that a record is assigned to."""


class ProfileStores(Protocol):
    """The stores of the three processors, and what a rebuild asks of them together.

    Attributes:
        rows: the state of profile-rows.
        documents: the state of profile-fold; it folds the touched profiles one at a time while it loads them, so
            that only the rows of one are in memory.
        erasures: removes subjects, and probes, while it loads a batch; profile-erasure then only tells of it.
        reader: for queries.
    """

    @property
    def rows(self) -> Store[Rows]:
        """See above."""

    @property
    def documents(self) -> Store[Documents]:
        """See above."""

    @property
    def erasures(self) -> Store[Erasures]:
        """See above."""

    @property
    def reader(self) -> ProfileReader:
        """See above."""

    @property
    def ledger(self) -> Ledger | None:
        """That of stores which are not in the local database."""

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what the documents of a tenant are current to."""

    async def start(self) -> None:
        """Prepare the stores before anything runs; raises UnavailableError while their server is not there."""

    async def stop(self) -> None:
        """Close connections."""

    async def reset(self) -> None:
        """Forget rows and documents, in the open unit of work; what was erased stays fenced off."""

    async def seed(self, records: Sequence[Record]) -> None:
        """Remember the versions of published profiles, in the open unit of work."""

    async def reload(self) -> None:
        """After a rebuild: publish what came out otherwise than it had been published, and forget the seeds."""

    async def state_hash(self, connection: sqlite3.Connection) -> str:
        """Return the hash of rows and documents, in whatever order and however often they were written."""
