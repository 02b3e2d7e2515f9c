"""Search in the embedded mode: the searcher on what SQLite holds."""

from services.embedder.index import Reader, may_see
from services.embedder.ports import Embedder
from services.embedder.searcher import Searcher as AnySearcher
from services.embedder.sqlite_search import SqliteSearch
from services.embedder.vectors import VectorIndex
from services.kernel.sqlite import Database

__all__ = ["Reader", "Searcher", "may_see"]


class Searcher(AnySearcher):
    """A searcher on the installation's database."""

    def __init__(self, database: Database, index: VectorIndex, embedder: Embedder, weight: float) -> None:
        self.store = SqliteSearch(database, index)
        super().__init__(self.store, self.store, embedder, weight)

    def look_for_another_model(self) -> bool:
        """Tell whether there are chunks that the model has not embedded."""
        return self.store.look_for_another_model()

    def close(self) -> None:
        """Let the thread end."""
        self.store.close()
