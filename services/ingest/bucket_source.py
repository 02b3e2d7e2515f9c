"""A watched bucket: all its objects as documents first, then every change, as notifications and later listings tell it.

A notification and a listing only say where to look: what is published is the object as it is when it is looked at, and
while one look is under way no other begins. So neither order nor repetition of notifications matters, and what they
missed the next listing finds. Only a deletion that the store itself confirms takes a document away.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import structlog

from headwater.common.v1 import operations_pb2
from headwater.ingest.v1 import events_pb2
from services.ingest.bucket_store import BucketStore
from services.ingest.decoders.common import DecodeError
from services.ingest.decoders.s3 import SCHEME, document_id, object_of
from services.ingest.folder_documents import batched
from services.ingest.folder_files import Selection
from services.ingest.media_types import media_type
from services.ingest.messages import messages_of
from services.ingest.s3_client import Listed, Object, S3Client
from services.ingest.settings import BucketSettings
from services.kernel.errors import UnavailableError
from services.kernel.log import Log
from services.kernel.sqlite import Database

LOOKS_AT_ONCE = 4  # objects in memory at a time
RETRY_S = 5.0  # after the store could not be asked

log = structlog.get_logger(__name__)


class Look(NamedTuple):
    """A look at an object: where, and what was seen: the object, None where it is gone, or why it cannot be read."""

    key: str
    seen: Object | DecodeError | None


class BucketSource:
    """One watched bucket."""

    def __init__(
        self,
        bucket: BucketSettings,
        bytes_max: int,
        rescan_s: float,
        database: Database,
        log_: Log,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.settings = bucket
        self._bytes_max, self._rescan_s, self._log, self._clock = bytes_max, rescan_s, log_, clock
        self._client = S3Client(bucket.endpoint, bucket.region, bucket.name, bucket.credentials(), clock)
        self._store = BucketStore(database, bucket.tenant, bucket.source)
        self._selection = Selection(bucket.include, bucket.exclude)
        # What else than the objects makes the documents.
        self._made_with = hashlib.blake2b("\x1f".join(bucket.access).encode(), digest_size=6).hexdigest()
        self._looking = asyncio.Lock()
        self._trouble = ""

    async def watch(self) -> None:
        """Follow the bucket until cancelled."""
        try:
            while True:
                try:
                    await self.reconcile()
                except UnavailableError as error:
                    self._note(f"{error}: its documents stay as they are")
                    await asyncio.sleep(min(RETRY_S, self._rescan_s))
                else:
                    await asyncio.sleep(self._rescan_s)
        finally:
            await self._client.close()

    async def reconcile(self) -> None:
        """Compare the bucket's listing with what is known, and publish the difference.

        Raises:
            UnavailableError: the store cannot be asked.
        """
        known, changed, too_large = self._store.marks(), [], ""
        missing = set(known)
        async for item in self._listed():
            missing.discard(item.key)
            if item.size > self._bytes_max:
                too_large = item.key
            elif known.get(item.key) != self._mark(item.etag):
                changed.append(item.key)
        unreadable = ""
        for keys in batched([*changed, *sorted(missing)], LOOKS_AT_ONCE):
            async with self._looking:
                looks = await self._look(keys)
                await self._publish([(self._document(look), look) for look in looks if _is_readable(look)])
            unreadable = next((str(look.seen) for look in looks if isinstance(look.seen, DecodeError)), unreadable)
        if too_large:
            unreadable = f"objects over {self._bytes_max:,} bytes are left out, for example {too_large}"
        self._note(unreadable)

    async def take(self, documents: Sequence[events_pb2.DocumentChange]) -> list[str | None]:
        """Publish what objects are now that notifications tell of.

        Args:
            documents: the notifications' changes.

        Returns:
            For each, None when it was published, nothing when it is none of this source's, or why it could not be.

        Raises:
            UnavailableError: the store cannot be asked; the documents before may have been published.
        """
        outcomes: list[str | None] = ["" for _ in documents]
        wanted = [place for place, document in enumerate(documents) if self.wants(object_of(document.reference)[1])]
        for some in batched(wanted, LOOKS_AT_ONCE):
            async with self._looking:
                looks = await self._look([object_of(documents[place].reference)[1] for place in some])
                seen = list(zip(looks, some, strict=True))
                await self._publish([(self._document(k, documents[at]), k) for k, at in seen if _is_readable(k)])
            for look, place in seen:
                outcomes[place] = str(look.seen) if isinstance(look.seen, DecodeError) else None
        return outcomes

    def wants(self, key: str) -> bool:
        """Whether an object is a document of this source."""
        return key.startswith(self.settings.prefix) and self._selection.wants(key) and not key.endswith("/")

    async def check(self) -> operations_pb2.Check:
        """Compare the bucket with what is known of it, for `headwater verify`."""
        name = f"bucket {self.settings.source}"
        try:
            found = {item.key async for item in self._listed() if item.size <= self._bytes_max}
        except UnavailableError as error:
            return operations_pb2.Check(name=name, ok=False, detail=str(error))
        known = self._store.marks().keys()
        missed, extra = found - known, known - found
        words = f"{len(found)} objects, {len(missed)} never seen, {len(extra)} gone but still known"
        if self._trouble:
            words = f"{words}; {self._trouble}"
        return operations_pb2.Check(name=name, ok=not missed and not extra and not self._trouble, detail=words)

    async def _listed(self) -> AsyncIterator[Listed]:
        async for item in self._client.list(self.settings.prefix):
            if self.wants(item.key):
                yield item

    async def _look(self, keys: Sequence[str]) -> list[Look]:
        return await asyncio.gather(*map(self._look_at, keys))

    async def _look_at(self, key: str) -> Look:
        try:
            return Look(key, await self._client.read(key, self._bytes_max))
        except DecodeError as error:
            return Look(key, error)

    def _document(self, look: Look, told: events_pb2.DocumentChange | None = None) -> events_pb2.DocumentChange:
        """The document of an object as it was seen; a notification tells its position and time beside."""
        bucket, key, seen = self.settings, look.key, look.seen
        document = events_pb2.DocumentChange(
            tenant=bucket.tenant,
            source=bucket.source,
            document_id=document_id(bucket.source, key),
            operation=events_pb2.DOCUMENT_OPERATION_DELETE,
            name=key.rpartition("/")[2],
            uri=f"{SCHEME}{bucket.name}/{key}",
            access=bucket.access,
            position=told.position if told is not None else "",
        )
        if told is not None and told.HasField("occurred_at"):
            document.occurred_at.CopyFrom(told.occurred_at)
        if isinstance(seen, Object):
            document.operation, document.content = events_pb2.DOCUMENT_OPERATION_PUT, seen.content
            document.media_type = media_type(document.name) or seen.media_type
            document.metadata["path"] = key
            if seen.changed_at is not None and not document.HasField("occurred_at"):
                document.occurred_at.seconds, document.occurred_at.nanos = seen.changed_at
        return document

    async def _publish(self, found: Sequence[tuple[events_pb2.DocumentChange, Look]]) -> None:
        seconds, fraction = divmod(self._clock(), 1)
        now = int(seconds), int(fraction * 1_000_000) * 1_000
        messages = [message for document, _ in found for message in messages_of(document, 0, now)]
        if not messages:
            return
        marks = {look.key: self._mark(look.seen.etag) for _, look in found if isinstance(look.seen, Object)}
        async with self._log.unit_from_outside(durable=True) as unit:
            unit.emit(messages)
            self._store.save(unit, marks, [look.key for _, look in found if look.seen is None])

    def _mark(self, etag: str) -> str:
        return f"{etag} {self._made_with}"

    def _note(self, trouble: str) -> None:
        """Log what is wrong when it begins, and when it is over."""
        if trouble and trouble != self._trouble:
            log.warning("bucket.trouble", source=self.settings.source, bucket=self.settings.name, trouble=trouble)
        elif self._trouble and not trouble:
            log.info("bucket.well", source=self.settings.source, bucket=self.settings.name)
        self._trouble = trouble


def _is_readable(look: Look) -> bool:
    return not isinstance(look.seen, DecodeError)


class Buckets:
    """The watched buckets by name: where the references of documents lead."""

    def __init__(self, sources: Sequence[BucketSource]) -> None:
        self._sources: dict[str, list[BucketSource]] = {}
        for source in sources:
            self._sources.setdefault(source.settings.name, []).append(source)

    async def take(self, documents: Sequence[events_pb2.DocumentChange]) -> list[str | None]:
        """Publish what the objects are now that documents refer to.

        Returns:
            For each, None when it was published, nothing when no source wants it, or why it could not be.

        Raises:
            UnavailableError: a store cannot be asked.
        """
        outcomes: list[str | None] = [None for _ in documents]
        groups: dict[BucketSource, list[int]] = {}
        for place, document in enumerate(documents):
            source = self._source_of(document)
            if isinstance(source, str):
                outcomes[place] = source
            else:
                groups.setdefault(source, []).append(place)
        for source, places in groups.items():
            taken = await source.take([documents[place] for place in places])
            for place, outcome in zip(places, taken, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _source_of(self, document: events_pb2.DocumentChange) -> BucketSource | str:
        """The watched bucket that a document is of, or why there is none. Another tenant's is as good as none."""
        if not document.reference.startswith(SCHEME):
            return f"{document.reference!r:.80} is no reference: write s3://bucket/key"
        name, key = object_of(document.reference)
        sources = [s for s in self._sources.get(name, ()) if s.settings.tenant == document.tenant]
        if not sources:
            return f"the bucket {name!r:.80} is not watched: add it as [[ingest.buckets]]"
        return next((source for source in sources if source.wants(key)), sources[0])
