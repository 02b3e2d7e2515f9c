"""A profile service on a real log, driven batch by batch, and a plain model of what must come out."""

import asyncio
import itertools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bson
import orjson
from aiokafka import TopicPartition
from hypothesis import strategies as st

from headwater.profile.v1 import events_pb2
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.log import Message, key_of
from services.kernel.processor import ProcessorLoop
from services.kernel.records import record_key
from services.kernel.service import Peers, Platform
from services.kernel.settings import Settings
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.profile.app import build
from services.profile.projection import Projection, SourceRow
from services.profile.settings import Settings as ProfileSettings
from tests.engines import Kafka
from tests.engines.mongo import MongoServer, documents_in
from tests.unit.profile.examples import PARTITIONS, T0_MS, assigned, change

if TYPE_CHECKING:
    from services.kernel.kafka_log import KafkaLog

NOW_S = T0_MS / 1000 + 1e6


class Change(NamedTuple):
    """A change of a row. Its place in the list of changes is its source position, its time, and the true order."""

    op: str
    entity: str
    key: int = 0
    after: dict[str, int | None] | None = None
    unavailable: tuple[str, ...] = ()
    partial: bool = False

    @property
    def record(self) -> str:
        """The record's key."""
        return record_key("crm", self.entity, {"id": self.key})


class Assignment(NamedTuple):
    """An assignment; its place in the list of assignments is its generation."""

    record: str
    profile: str
    suspect: bool = False


COLUMNS = ("a", "b", "c")
ENTITIES = ("customers", "orders")
KEYS = st.integers(1, 2)
PROFILES = ("p1", "p2", "p3", "")
GROUPS = ("profile-rows", "profile-fold")


@st.composite
def puts(draw: st.DrawFn) -> Change:
    """A change that makes a row; some updates leave columns out, or tell only what they set."""
    after = draw(st.dictionaries(st.sampled_from(COLUMNS), st.integers(0, 9) | st.none(), max_size=3))
    op = draw(st.sampled_from(["snapshot", "insert", "update", "update"]))
    left_out = [column for column in COLUMNS if column not in after and op == "update" and draw(st.booleans())]
    partial = op == "update" and draw(st.booleans())
    return Change(op, draw(st.sampled_from(ENTITIES)), draw(KEYS), after, tuple(left_out), partial)


CHANGES = st.lists(
    st.one_of(
        puts(),
        puts(),
        puts(),
        st.builds(lambda entity, key: Change("delete", entity, key), st.sampled_from(ENTITIES), KEYS),
        st.builds(lambda entity: Change("truncate", entity), st.sampled_from(ENTITIES)),
    ),
    max_size=12,
)
ASSIGNMENTS = st.lists(
    st.builds(
        Assignment,
        st.sampled_from([f"crm/{entity}/{key}" for entity in ENTITIES for key in (1, 2)]),
        st.sampled_from(PROFILES),
        st.booleans(),
    ),
    max_size=8,
)
STEPS = st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(1, 5)), max_size=20)


def messages_of(tenant: str, changes: Sequence[Change], assignments: Sequence[Assignment]) -> list[Message]:
    """What ingest and identity resolution would append, in the true order."""
    found = []
    for at, c in enumerate(changes, 1):
        partitions: Iterable[int | None] = range(PARTITIONS) if c.op == "truncate" else (None,)
        found += [
            change(
                c.op,
                c.key,
                c.after,
                at=at,
                entity=c.entity,
                tenant=tenant,
                unavailable=c.unavailable,
                partial=c.partial,
                partition=p,
            )
            for p in partitions
        ]
    for generation, a in enumerate(assignments, 1):
        names = [("account", a.record)]
        found.append(assigned(a.record, a.profile, generation, tenant=tenant, identifiers=names, suspect=a.suspect))
    return found


def model(
    tenant: str, changes: Sequence[Change], assignments: Sequence[Assignment], settings: ProfileSettings
) -> dict[str, events_pb2.Profile]:
    """The documents that everything, taken in the true order and folded once at the end, makes."""
    rows: dict[str, tuple[int, dict[str, int | None]]] = {}
    for at, c in enumerate(changes, 1):
        match c.op:
            case "truncate":
                rows = {record: row for record, row in rows.items() if record.split("/")[1] != c.entity}
            case "delete":
                rows.pop(c.record, None)
            case _:
                before = rows.get(c.record, (0, {}))[1]
                kept = before if c.partial else {name: before[name] for name in c.unavailable if name in before}
                rows[c.record] = (at, {**kept, **(c.after or {})})
    newest = {a.record: a for a in assignments}
    profiles: dict[str, list[SourceRow]] = {}
    for record, (at, body) in rows.items():
        if record in newest and newest[record].profile:
            profiles.setdefault(newest[record].profile, []).append(
                SourceRow(
                    record, "crm", record.split("/")[1], (T0_MS + at * 1000) * 1000, orjson.dumps(body).decode(),
                    orjson.dumps([["account", record]]).decode(), int(newest[record].suspect),
                )
            )  # fmt: skip
    projection = Projection(settings)
    folded = {profile_id: projection.fold(tenant, profile_id, found) for profile_id, found in profiles.items()}
    return {
        profile_id: comparable(events_pb2.Profile.FromString(document.content))
        for profile_id, document in folded.items()
        if document is not None
    }


def comparable(profile: events_pb2.Profile) -> events_pb2.Profile:
    """A profile without what tells of its history, with rows in one spelling."""
    profile.ClearField("version")
    for record in profile.records:
        record.row_json = orjson.dumps(orjson.loads(record.row_json), option=orjson.OPT_SORT_KEYS).decode()
    return profile


class World:
    """One installation; examples keep apart by tenant."""

    def __init__(self, folder: Path, engines: Mapping[str, Mapping[str, Any]] | None = None, **table: Any) -> None:
        """Open it.

        Args:
            folder: of the local database.
            engines: the tables [kafka] and [mongodb] of a cluster; without them, all is in the local database.
            table: the table [profile].
        """
        self.database = Database(folder)
        self.runner = asyncio.Runner()
        self.engines = engines
        settings = Settings(data=folder, tables={"profile": table, **(engines or {})})
        self.settings = ProfileSettings.from_config(table)
        self.log: SqliteLog | KafkaLog = self.runner.run(self._opened_log())
        self.service = build(Platform(self.log, self.database, settings, lambda: NOW_S, Peers(lambda _: "127.0.0.1:1")))
        self.runner.run(self._started())
        self.loops = {p.name: ProcessorLoop(p, self.log) for p in self.service.processors}
        self.consumers = {
            p.name: self.log.consumer(p.name, p.topics, p.ledger, p.internal_topics) for p in self.service.processors
        }
        self._tenants = itertools.count()

    async def _opened_log(self) -> "SqliteLog | KafkaLog":
        if self.engines is None:
            log = SqliteLog(self.database, PARTITIONS)
            await log.create_topics(topics.TOPICS)
            return log
        from services.kernel.kafka_log import KafkaLog
        from services.kernel.kafka_settings import KafkaSettings

        kafka = KafkaLog(KafkaSettings.from_config(self.engines["kafka"]), self.database, PARTITIONS)
        await kafka.start()
        await kafka.create_topics(topics.TOPICS)
        return kafka

    async def _started(self) -> None:
        assert self.service.start is not None
        for _ in range(50):  # a broker that has just started may not know of groups yet
            try:
                return await self.service.start()
            except UnavailableError:
                await asyncio.sleep(0.2)
        raise TimeoutError("the stores do not start")

    async def _stopped(self) -> None:
        assert self.service.stop is not None
        await self.service.stop()
        if not isinstance(self.log, SqliteLog):
            await self.log.close()

    def close(self) -> None:
        """Close the stores and the log."""
        self.runner.run(self._stopped())
        self.runner.close()
        self.database.close()

    def new_tenant(self) -> str:
        """A tenant that nobody has used."""
        return f"t{next(self._tenants)}"

    def append(self, messages: Sequence[Message]) -> None:
        """Append to the log."""
        if messages:
            self.runner.run(self.log.append(messages, durable=False))

    def step(self, group: str, size: int) -> bool:
        """Let a processor take one batch of at most `size`; False when there was nothing to take."""
        loop = self.loops[group]
        if not self.runner.run(self.log.lag(group, loop.processor.topics)):
            return False

        async def take() -> bool:
            polling = asyncio.ensure_future(self.consumers[group].poll(size, 1 << 20))
            while not (await asyncio.wait({polling}, timeout=0.2))[0]:
                # The log may have told of a lag only because it did not know yet where the store stands.
                if not await self.log.lag(group, loop.processor.topics):
                    polling.cancel()
                    return False
            loop._resume.clear()  # where it has to wait, it does not: the batch is taken again later
            await loop._handle(self.consumers[group], polling.result())
            loop.resume()
            return True

        return self.runner.run(take())

    def settle(self, size: int = 500) -> None:
        """Let all processors work until nothing is left to do."""
        while any(self.step(group, size) for group in self.loops) or self.runner.run(self._is_undecided()):
            pass

    async def _is_undecided(self) -> bool:
        """Tell whether there is something that is committed, but is to be read only in a moment."""
        if isinstance(self.log, SqliteLog):
            return False
        for topic in (topics.TOUCHED, topics.PROFILES, topics.ERASURES_DONE):
            places = [TopicPartition(self.log.named(topic), n) for n in range(self.log.partitions(topic))]
            readable = await self.log._ends(places)
            if [readable[place] for place in places] != await self.log.end(topic):
                return True
        return False

    def documents(self, tenant: str) -> dict[str, events_pb2.Profile]:
        """The stored documents of a tenant."""
        return {
            key.partition("\x1f")[2]: comparable(events_pb2.Profile.FromString(content))
            for key, _, content in self.stored()
            if key.startswith(f"{tenant}\x1f")
        }

    def stored(self) -> list[tuple[str, int, bytes]]:
        """Key, version and content of all documents."""
        if self.engines is None:
            rows = self.database.reader.execute("SELECT key, version, content FROM profile_documents ORDER BY key")
            return rows.fetchall()
        found = [bson.decode(raw) for name, raw in self._in_mongodb() if name == "profile_documents"]
        return sorted(
            (each["_id"], each["version"], each["content"])
            for each in found
            if each["_gone"] is None and each["content"] is not None
        )

    def traces(self, tenant: str, text: str) -> set[str]:
        """The tables, or collections, that hold a text in something of the tenant."""
        found = self._in_mongodb() if self.engines is not None else self._in_sqlite()
        return {name for name, held in found if f"{tenant}\x1f".encode() in held and text.encode() in held}

    def _in_mongodb(self) -> list[tuple[str, bytes]]:
        assert self.engines is not None
        return documents_in(self.engines["mongodb"]["uri"], self.engines["mongodb"]["database"])

    def _in_sqlite(self) -> list[tuple[str, bytes]]:
        return [
            (table, b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row))
            for table in ("profile_rows", "profile_documents", "profile_identifiers")
            for row in self.database.reader.execute(f"SELECT * FROM {table}")
        ]

    def published(self, tenant: str) -> dict[str, events_pb2.Profile]:
        """The newest of each profile on the topic, without those that are gone."""
        newest: dict[str, bytes | None] = {}
        for partition in range(PARTITIONS):
            offset = 0
            while records := self.runner.run(self.log.read(topics.PROFILES, partition, offset)):
                offset = records[-1].offset + 1
                newest.update(
                    (record.key.decode().partition("\x1f")[2], record.value)
                    for record in records
                    if record.key is not None and record.key.startswith(key_of(tenant, ""))
                )
        return {
            profile_id: comparable(events_pb2.Profile.FromString(value))
            for profile_id, value in newest.items()
            if value is not None
        }


def cluster(kafka: Kafka, mongo: MongoServer) -> dict[str, dict[str, Any]]:
    """The settings of topics and a database that nobody has used."""
    name = f"t{uuid.uuid4().hex}"
    return {
        "kafka": {"bootstrap_servers": kafka.address, "prefix": f"{name}.", "replication": 1},
        "mongodb": {"uri": mongo.uri, "database": name},
    }
