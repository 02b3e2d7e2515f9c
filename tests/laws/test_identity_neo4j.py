"""The laws of identity on a real Neo4j: the same histories, the same answers, the same hash as embedded."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from services.identity_graph.model import Kinds
from services.identity_graph.settings import Settings
from tests.engines.neo4j import Neo4jServer, neo4j_engine
from tests.laws.identity_neo4j import opened
from tests.laws.identity_world import CHAINS, SETTINGS, Event, World, histories, rows
from tests.laws.test_identity_exactness import check
from tests.laws.test_identity_undo import come_and_go, outcome_of

__all__ = ["neo4j_engine"]
pytestmark = [pytest.mark.slow, pytest.mark.engine]


async def both(events: list[Event], seed: int, limits: Settings, uri: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        embedded = await check(events, seed, World(Path(folder, "embedded"), limits), limits)
        async with opened(uri, Path(folder, "local"), Kinds(limits)) as (worker,):
            return embedded, await check(events, seed, World(Path(folder), limits, worker), limits)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.integers(0, 2**32), st.sampled_from([SETTINGS, CHAINS]))
def test_any_delivery_of_any_history_gives_the_answer_from_scratch_and_the_hash_of_the_embedded_graph(
    neo4j_engine: Neo4jServer, events: list[Event], seed: int, limits: Settings
) -> None:
    embedded, graph = asyncio.run(both(events, seed, limits, neo4j_engine.uri))
    assert graph == embedded


async def undone(batches: list[list[Event]], uri: str) -> tuple[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        async with opened(uri, Path(folder), Kinds(SETTINGS)) as (worker,):
            world = World(Path(folder), SETTINGS, worker)
            for batch in batches:
                await world.deliver(batch)
            await world.check_tables()
            return await world.hash(), world.told()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(max_size=12), st.lists(rows, min_size=1, max_size=3), st.data())
def test_records_that_come_and_go_leave_the_graph_as_if_they_had_never_been(
    neo4j_engine: Neo4jServer, events: list[Event], bridges: list[dict[str, object]], data: st.DataObject
) -> None:
    batches = come_and_go(events, bridges, data)
    assert asyncio.run(undone(batches, neo4j_engine.uri)) == asyncio.run(outcome_of([events]))
