"""What the service answers about the knowledge base as a whole, whatever keeps it: documents and freshness."""

from headwater.common.v1 import common_pb2
from headwater.embedder.v1 import service_pb2 as pb
from services.embedder.events import GROUP
from services.embedder.index import may_see
from services.embedder.ports import Jobs, KnowledgeStore
from services.embedder.state import Key
from services.kernel import topics
from services.kernel.errors import NotFoundError
from services.kernel.log import DEFAULT_TENANT

READ_BY = {GROUP: (topics.DOCUMENTS, topics.CHANGES)}


class Knowledge:
    """Answers about the knowledge base."""

    def __init__(self, store: KnowledgeStore, jobs: Jobs) -> None:
        self._store, self._jobs = store, jobs

    async def document(self, key: Key, version: str, held: frozenset[str]) -> pb.GetDocumentResponse:
        """Return a document's text.

        Raises:
            NotFoundError: there is none, it cannot be found yet, it has another version, or the reader may not see it.
        """
        whole = await self._store.whole(key)
        # To a reader who may not see it, it is not there.
        if whole is None or not may_see(whole.access, held):
            raise NotFoundError(f"there is no document {key.document_id!r} in tenant {key.tenant}: check its id")
        if not whole.version:
            raise NotFoundError(f"{key.document_id!r} is not searchable yet: ListJobs tells how far it is")
        if version not in ("", whole.version):
            raise NotFoundError(f"{key.document_id!r} has version {whole.version} now; {version} is not kept")
        return pb.GetDocumentResponse(
            document_id=key.document_id, version=whole.version, title=whole.title, text=whole.text, uri=whole.uri
        )

    async def freshness(self, tenant: str) -> common_pb2.StoreFreshness:
        """Return what can be found is current to: documents whose work is not done hold it back."""
        report = await self._store.report(tenant)
        waiting = await self._jobs.unfinished_count()
        if not waiting:
            return report
        report.behind += waiting
        for place in report.applied.offsets:
            if (first := await self._jobs.first_unfinished(place.topic, place.partition)) is not None:
                place.offset = min(place.offset, first)
        for entry in report.sources:
            since_ms = await self._jobs.unfinished_since_ms(tenant, entry.source)
            if since_ms is not None and entry.as_of.ToMilliseconds() >= since_ms:
                entry.as_of.FromMilliseconds(max(0, since_ms - 1))
        return report

    async def applied(self) -> common_pb2.Position:
        """Return the position up to which everything can be found, or was given up."""
        return (await self.freshness(DEFAULT_TENANT)).applied
