"""The identity graph in a real Neo4j: what is kept with a batch, who waits for whom, and what an outage leaves."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

from headwater.common.v1 import events_pb2 as common_events
from services.identity_graph import renewal
from services.identity_graph.app import build, subjects_processor
from services.identity_graph.consumer import GROUP
from services.identity_graph.model import Kinds, key_text
from services.identity_graph.neo4j_client import Neo4j
from services.identity_graph.neo4j_settings import Neo4jSettings
from services.identity_graph.ports import Told
from services.kernel import topics
from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.log import Message, Offsets, PartitionLostError, Progress, Record, Tally, message_of
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS
from tests.conftest import RunService
from tests.engines.neo4j import Neo4jServer, neo4j_engine
from tests.laws.identity_neo4j import Worker, nothing_told, opened
from tests.laws.identity_world import SETTINGS, TENANT, Event, Type, World

__all__ = ["neo4j_engine"]
KINDS = Kinds(SETTINGS)
PASSWORD = "not-a-secret-1"  # of a server that lives as long as a test
WORKERS = 4


@pytest.fixture
async def workers(neo4j_engine: Neo4jServer, tmp_path: Path) -> AsyncIterator[list[Worker]]:
    async with opened(neo4j_engine.uri, tmp_path / "local", KINDS, WORKERS, WORKERS) as found:
        yield found


@pytest.fixture
def worker(workers: list[Worker]) -> Worker:
    return workers[0]


@pytest.fixture
def world(worker: Worker, tmp_path: Path) -> World:
    return World(tmp_path, SETTINGS, worker)


def row(number: int, key: int, **columns: str) -> Event:
    """The record crm/leads/`key` as of position `number`."""
    return Event(number, Type.OPERATION_UPDATE, "leads", key, {"id": key, **columns}, (), 1000 * number)


async def clusters(worker: Worker) -> dict[str, str]:
    pages = [page async for page in worker.adapters.stores.queries.assignments(TENANT)]
    return {record: profile for page in pages for record, profile in page}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "uri is missing"),
        ({"uri": "http://x:7474"}, "bolt://host:7687"),
        ({"uri": "bolt://"}, "bolt://host:7687"),
        ({"uri": "bolt://x", "username": "neo4j"}, "go together"),
        ({"uri": "bolt://x", "connections_max": 0}, "from 3 to 1000"),
        ({"uri": "bolt://x", "prefix": "t.1"}, "a letter first"),
    ],
)
def test_settings_that_are_wrong_are_named(table: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Neo4jSettings.from_config(table)


async def test_without_a_log_for_a_cluster_it_is_refused(run_service: RunService) -> None:
    with pytest.raises(InvalidInputError, match=r"configure \[kafka\]"):
        async with run_service(build, settings_tables={"neo4j": {"uri": "bolt://127.0.0.1:1"}}):
            pass


# A batch is one transaction: graph, offset and outputs ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.engine
class TestLedger:
    async def test_what_is_done_already_is_refused_and_changes_nothing(
        self, worker: Worker, world: World, tmp_path: Path
    ) -> None:
        await world.deliver_together([row(1, 1, email="a@x.io")])
        before, known = await worker.tables(), await worker.ledger.pending(GROUP, topics.CHANGES, 0)
        stale = World(tmp_path, SETTINGS, worker)  # begins where the other began
        with pytest.raises(PartitionLostError, match="has done changes/0 already"):
            await stale.deliver_together([row(2, 2, email="a@x.io")])
        assert await worker.tables() == before
        assert await worker.ledger.pending(GROUP, topics.CHANGES, 0) == known

    async def test_outputs_outlive_a_crash_before_they_were_published(
        self, workers: list[Worker], world: World
    ) -> None:
        assert await workers[1].ledger.pending(GROUP, topics.CHANGES, 0) is None
        await world.deliver_together([row(1, 1, email="a@x.io"), row(2, 2, email="a@x.io")])
        pending = await workers[1].ledger.pending(GROUP, topics.CHANGES, 0)
        assert pending is not None
        assert (pending.start, pending.next_offset) == (0, 2)
        assert list(pending.outputs) == world.messages

    async def test_what_is_published_late_is_as_of_now(
        self, workers: list[Worker], world: World, tmp_path: Path
    ) -> None:
        late = [[r._replace(partition=1) for part in world.records([row(5, n, email="a@x.io")]).values() for r in part]
                for n in (1, 3, 4)]  # fmt: skip
        await world.process([record for part in late for record in part])  # and the worker ends, before it publishes
        other = World(tmp_path, SETTINGS, workers[1])
        other.assigned = dict(world.assigned)
        gone = Event(6, Type.OPERATION_DELETE, "leads", 3, {}, (), 6000)
        await other.deliver_together([row(2, 2, email="a@x.io"), gone])
        pending = await workers[1].ledger.pending(GROUP, topics.CHANGES, 1)
        assert pending is not None
        reader = World(tmp_path, SETTINGS, workers[2])
        reader.assigned = {"crm/leads/3": world.assigned["crm/leads/3"]}
        reader.read([m for m in other.messages if m.key == b"default\x1fcrm/leads/2"])
        reader.read(pending.outputs)
        assert reader.told() == other.told()
        assert len({now.profile for now in reader.told().values()}) == 1
        assert [m.event_id for m in pending.outputs] == [m.event_id for m in world.messages]

    async def test_a_dead_letter_keeps_the_ledger_in_step(self, worker: Worker, world: World) -> None:
        letter = Message(topics.DEAD_LETTERS, b"k", b"\xff", "", 1)
        progress = Progress(GROUP, topics.CHANGES, 1, 0, 7, [letter], Tally(dead_lettered=1))
        async with worker.unit():
            await world.processor.store.save(await world.processor.store.load([]), progress)
            await worker.record(progress)
        assert await worker.ledger.pending(GROUP, topics.CHANGES, 1) == progress

    async def test_a_batch_that_fails_leaves_nothing(self, worker: Worker, world: World) -> None:
        (batch,) = world.records([row(1, 1, email="a@x.io")]).values()
        progress = Progress(GROUP, topics.CHANGES, batch[0].partition, 0, 1, [], Tally())
        with pytest.raises(ValueError, match="on purpose"):
            async with worker.unit():
                work = await world.processor.store.load(batch)
                await world.processor.store.save(work, progress)
                await worker.record(progress)
                raise ValueError("on purpose")
        assert not (await worker.tables()).nodes
        assert await worker.ledger.pending(*progress[:3]) is None

    async def test_who_is_cancelled_lets_go_of_everything(self, workers: list[Worker], tmp_path: Path) -> None:
        worlds = [World(tmp_path, SETTINGS, worker) for worker in workers]
        (batch,) = worlds[0].records([row(1, 1, email="a@x.io")]).values()
        holds = asyncio.Event()

        async def hold() -> None:
            async with workers[0].unit():
                await worlds[0].processor.store.load(batch)
                holds.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(hold())
        await holds.wait()
        waits = asyncio.create_task(worlds[1].deliver_together([row(1, 2, email="a@x.io")]))
        await asyncio.sleep(0.3)
        assert not waits.done(), "they share an identifier"
        task.cancel()
        await waits
        assert task.cancelled() or (await asyncio.wait([task]))
        assert list(await clusters(workers[0])) == ["crm/leads/2"]


# Many workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.engine
class TestTogether:
    async def test_identifiers_that_all_make_at_once_are_made_once(self, workers: list[Worker], tmp_path: Path) -> None:
        async def make(number: int) -> None:
            world = World(tmp_path, SETTINGS, workers[number])
            events = [row(n, 10 * n + number, email=f"{n}@x.io", name="Ada") for n in range(10)]
            (batch,) = [[r._replace(partition=number) for part in world.records(events).values() for r in part]]
            while True:
                try:
                    await world.process(sorted(batch, key=lambda record: record.offset))
                except UnavailableError:  # two of them were in each other's way
                    continue
                return

        await asyncio.gather(*(make(number) for number in range(WORKERS)))
        tables = await World(tmp_path, SETTINGS, workers[0]).check_tables()
        # The e-mail addresses are on four records each, more than the three that may tell a person.
        assert len({link for link, _ in tables.links if "email" in link}) == 10
        assert len(tables.crowds) == 0, "records that hold the same are one node"
        assert len(tables.members) == 40

    async def test_who_shares_nothing_waits_for_nobody(self, workers: list[Worker], tmp_path: Path) -> None:
        worlds = [World(tmp_path, SETTINGS, worker) for worker in workers]
        (batch,) = worlds[0].records([row(1, 1, email="a@x.io")]).values()
        other = batch[0].partition ^ 1
        async with workers[0].unit():
            work = await worlds[0].processor.store.load(batch)
            (free,) = worlds[1].records([row(1, 2, email="b@x.io")]).values()
            await worlds[1].process([free[0]._replace(partition=other)])
            progress = Progress(GROUP, topics.CHANGES, batch[0].partition, 0, 1, [], Tally())
            await worlds[0].processor.store.save(work, progress)
            await workers[0].record(progress)
        assert len(await clusters(workers[0])) == 2

    async def test_two_that_release_what_one_record_holds_join_all_of_it(
        self, workers: list[Worker], tmp_path: Path
    ) -> None:
        world = World(tmp_path, SETTINGS, workers[0])
        # A device may be on two records, an e-mail address on three: the last record holds both, and stands alone.
        with_device = [row(n, n, device_id="d", name=f"D{n}") for n in (1, 2)]
        with_email = [row(n, n, email="a@x.io", name=f"E{n}") for n in (3, 4, 5)]
        await world.deliver_together([*with_device, *with_email, row(6, 6, device_id="d", email="a@x.io")])
        assert len(set((await clusters(workers[0])).values())) == 6
        gone = [Event(7, Type.OPERATION_DELETE, "leads", key, {}, (), 7000) for key in (1, 3)]
        first, second = ([r for part in world.records([event]).values() for r in part] for event in gone)
        async with workers[0].unit():
            work = await world.processor.store.load([first[0]._replace(partition=1)])
            progress = Progress(GROUP, topics.CHANGES, 1, 0, 1, [], Tally())
            await world.processor.store.save(work, progress)
            other = World(tmp_path, SETTINGS, workers[1])
            other.assigned = dict(world.assigned)
            waits = asyncio.create_task(other.process([second[0]._replace(partition=2)]))
            await asyncio.sleep(0.3)
            assert not waits.done(), "the record that holds both is claimed"
            await workers[0].record(progress)
        await waits
        await world.check_tables()
        assert len(set((await clusters(workers[0])).values())) == 1

    async def test_an_erasure_waits_for_batches_and_keeps_the_ledger(
        self, workers: list[Worker], tmp_path: Path
    ) -> None:
        world = World(tmp_path, SETTINGS, workers[0])
        await world.deliver_together([row(1, 1, email="a@x.io"), row(2, 2, email="a@x.io")])
        request = common_events.ErasureRequested(erasure_id="e_1", records=["crm/leads/1", "crm/leads/2"])
        message = message_of(topics.ERASURES, b"e_1", request, 5)
        record = Record(topics.ERASURES, 0, 0, message.key, message.value, message.type, "", 5)
        adapters = workers[1].adapters
        group = subjects_processor(adapters, SETTINGS, lambda: WORKERS, lambda: 7.0)
        assert group.ledger is not None
        async with group.ledger.unit():
            work = await group.store.load([record])
            decision = group.decide(work, record)
            progress = Progress(group.name, topics.ERASURES, 0, 0, 1, decision.outputs, Tally(1))
            await group.store.save(work, progress)
            await group.ledger.record(progress)
        done = common_events.ErasureDone.FromString(decision.outputs[-1].value or b"")
        assert not any(done.remaining.values())
        assert await clusters(workers[0]) == {}
        assert await group.ledger.pending(group.name, topics.ERASURES, 0) == progress
        state = await adapters.stores.erasures.state("e_1")
        assert state is not None
        for stale in (row(1, 1, email="a@x.io"), row(2, 2, email="b@x.io")):
            await world.deliver_together([stale])
        assert await clusters(workers[0]) == {}
        texts = await workers[0].neo4j.ask(
            "MATCH (n) UNWIND keys(n) AS k WITH n[k] AS value RETURN toStringOrNull(value)"
        )
        assert not [text for (text,) in texts if text and "a@x.io" in text]


# The graph as a whole -------------------------------------------------------------------------------------------------


class Still:
    """A log in which nothing waits."""

    async def lag(self, group: str, names: Collection[str]) -> int:
        return 0

    async def oldest_pending_ms(self, group: str, names: Collection[str]) -> int | None:
        return None

    async def positions_of(self, group: str, names: Collection[str]) -> Offsets:
        return {}


async def told_of(*told: Told) -> AsyncIterator[Sequence[Told]]:
    yield told


@pytest.mark.slow
@pytest.mark.engine
class TestLife:
    async def test_other_settings_empty_it_and_those_who_do_not_come_back_are_told_of(
        self, worker: Worker, world: World
    ) -> None:
        life = worker.adapters.life
        await world.deliver_together([row(5, 1, email="a@x.io"), row(6, 2, email="b@x.io")])
        told = [Told(key_text(TENANT, f"crm/leads/{n}"), 1000, world.assigned[f"crm/leads/{n}"][0]) for n in (1, 2)]
        assert await life.is_whole()
        await life.renew("other settings", told_of(*told))
        assert await life.fingerprint() == "other settings"
        assert await clusters(worker) == {}
        assert await worker.ledger.pending(GROUP, topics.CHANGES, 0) is None
        known = world.assigned
        again = World(Path(), SETTINGS, worker)
        again.assigned = {record: (generation, None) for record, (generation, _) in known.items()}
        await again.deliver_together([row(5, 1, email="a@x.io")])
        assert again.told()["crm/leads/1"].first_seen == 1000, "as it was told before"
        generation, ghosts = await life.ghosts()
        assert ghosts == [(key_text(TENANT, "crm/leads/2"), 6000)]
        assert generation > known["crm/leads/2"][0]
        await life.lay_ghosts()
        assert await life.ghosts() == (0, [])

    async def test_nobody_works_on_it_while_it_is_emptied_and_it_opens_with_the_unit(
        self, worker: Worker, world: World, tmp_path: Path, neo4j_engine: Neo4jServer
    ) -> None:
        await world.deliver_together([row(1, 1, email="a@x.io")])
        database = Database(tmp_path / "rebuilding")
        own = Worker(neo4j_engine.uri, KINDS, database)
        async with database.transaction():
            await own.adapters.life.reset()
            assert not await worker.adapters.life.is_whole(), "it is not whole"
            with pytest.raises(UnavailableError, match="being emptied"):
                await World(tmp_path, SETTINGS, worker).deliver_together([row(1, 1, email="a@x.io")])
            with pytest.raises(UnavailableError, match="another worker"):
                await worker.adapters.life.renew("", nothing_told())
            await own.adapters.life.seed([Told(key_text(TENANT, "crm/leads/1"), 500, 41)])
        while not await worker.adapters.life.is_whole():
            await asyncio.sleep(0.01)
        again = World(tmp_path, SETTINGS, worker)
        await again.deliver_together([row(1, 1, email="a@x.io")])
        generation, now = again.assigned["crm/leads/1"]
        assert generation > 41
        assert now is not None
        assert now.first_seen == 500
        await own.adapters.life.close()
        await own.neo4j.close()
        database.close()

    async def test_a_rebuild_that_is_cut_off_is_brought_to_its_end(
        self, worker: Worker, tmp_path: Path, neo4j_engine: Neo4jServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.05)
        database = Database(tmp_path / "rebuilding")
        log = SqliteLog(database)
        await log.create_topics(TOPICS)
        own = Worker(neo4j_engine.uri, KINDS, database)
        keeper = renewal.Renewal(own.adapters.life, database, log, SETTINGS)
        await keeper.start()
        with pytest.raises(ValueError, match="cut off"):
            async with database.transaction():
                await own.adapters.life.reset()
                raise ValueError("cut off")
        assert not await worker.adapters.life.is_whole()
        keeping = asyncio.create_task(keeper.keep_whole())
        while not await worker.adapters.life.is_whole():
            await asyncio.sleep(0.01)
        keeping.cancel()
        await own.adapters.life.close()
        await own.neo4j.close()
        database.close()

    async def test_who_cannot_make_it_again_leaves_that_to_others(self, workers: list[Worker]) -> None:
        async def broken() -> AsyncIterator[Sequence[Told]]:
            raise UnavailableError("the log is not there")
            yield ()

        with pytest.raises(UnavailableError, match="the log"):
            await workers[0].adapters.life.renew("other settings", broken())
        assert not await workers[1].adapters.life.is_whole()
        await workers[1].adapters.life.renew("other settings", nothing_told())
        assert await workers[1].adapters.life.is_whole()

    async def test_two_installations_in_one_database_know_nothing_of_one_another(
        self, worker: Worker, world: World, tmp_path: Path, neo4j_engine: Neo4jServer
    ) -> None:
        await world.deliver_together([row(1, 1, email="a@x.io")])
        database = Database(tmp_path / "other")
        other = Worker(neo4j_engine.uri, KINDS, database, prefix="Other")
        await other.adapters.life.start()
        assert not await other.adapters.life.is_whole()
        await other.adapters.life.renew("", nothing_told())
        await World(tmp_path, SETTINGS, other).deliver_together([row(1, 2, email="a@x.io")])
        assert list(await clusters(other)) == ["crm/leads/2"]
        async with database.transaction():
            await other.adapters.life.reset()
        assert await clusters(other) == {}
        assert list(await clusters(worker)) == ["crm/leads/1"]
        await other.adapters.life.close()
        await other.neo4j.close()
        database.close()

    async def test_freshness_is_the_newest_that_any_partition_was_told(
        self, workers: list[Worker], world: World
    ) -> None:
        for number in (3, 1, 2):
            (batch,) = world.records([row(number, number, email="a@x.io")]).values()
            await world.process([batch[0]._replace(partition=number)])
        report = await workers[1].adapters.stores.freshness.report("", Still(), {GROUP: (topics.CHANGES,)})
        (source,) = report.sources
        assert (source.source, source.as_of.ToMilliseconds()) == ("crm", 3000)


# Outages --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.engine
async def test_workers_that_start_at_once_on_an_empty_server_make_one_schema(
    neo4j_engine: Neo4jServer, database: Database
) -> None:
    async def start(worker: Worker) -> None:
        for _ in range(100):
            try:
                await worker.adapters.life.start()
            except UnavailableError:
                await asyncio.sleep(0.1)  # and again, as a process does that starts
                continue
            break
        assert await worker.neo4j.ask("MATCH (s:IdentitySettings) RETURN count(s)") == [[1]]
        await worker.adapters.life.close()
        await worker.neo4j.close()

    for number in range(4):
        starting = [Worker(neo4j_engine.uri, KINDS, database, prefix=f"at_once_{number}_") for _ in range(2 * WORKERS)]
        await asyncio.gather(*map(start, starting))


@pytest.mark.slow
@pytest.mark.engine
async def test_a_server_that_asks_who_one_is_and_that_dies(tmp_path: Path, neo4j_engine: Neo4jServer) -> None:
    del neo4j_engine  # it is installed
    server = Neo4jServer(tmp_path / "server", PASSWORD)
    client = Neo4j(Neo4jSettings(server.uri, "neo4j", PASSWORD, connect_timeout_s=1.0))
    other = Neo4j(Neo4jSettings(server.uri, "neo4j", "not the password"))
    with pytest.raises(UnavailableError, match=f"Neo4j at {server.uri}"):
        await client.ask("RETURN 1")
    try:
        server.start()
        assert await client.ask("CREATE (n:Kept) RETURN 1") == [[1]]
        with pytest.raises(UnavailableError, match="unauthorized"):
            await other.ask("RETURN 1")
        with pytest.raises(UnavailableError):
            async with client.unit() as unit:
                await unit.run("CREATE (n:Lost)")
                server.kill()
        server.start()
        assert await client.ask("MATCH (n) RETURN labels(n)") == [[["Kept"]]]
    finally:
        await client.close()
        await other.close()
        server.stop()
