"""Law 5, parity: an embedded installation and a cluster on real engines give the same for the same log."""

import os
from pathlib import Path

import grpc
import pytest

from headwater.embedder.v1 import service_pb2, service_pb2_grpc
from tests.engines.cluster import Engines, cluster_in
from tests.laws import cluster_world as world

CHANGES = int(os.environ.get("HEADWATER_PARITY", "4000"))
DOCUMENTS = 2_000 if CHANGES >= 50_000 else 200
QUESTIONS = 200
TOP = 10
SETTLE_S = 1_800.0


async def ranked(channel: grpc.aio.Channel) -> list[list[str]]:
    """Return the documents found for each question, best first; equal scores are told apart by name."""
    stub = service_pb2_grpc.EmbedderServiceStub(channel)
    found = []
    for text in world.questions(QUESTIONS):
        answer = await stub.Search(service_pb2.SearchRequest(query=text, top_k=TOP))
        assert not answer.missing, answer.missing
        found.append([f"{hit.document_id}#{hit.ordinal}" for hit in answer.hits])
    return found


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(7200)
async def test_both_ways_to_run_give_the_same_state_and_the_same_answers(engines: Engines, tmp_path: Path) -> None:
    papers = world.papers(DOCUMENTS)
    rows = DOCUMENTS - len(papers)
    requests = world.mixed(world.changes(CHANGES), papers, world.hotels(rows, rows))
    told = world.conversations(CHANGES // 10)
    with cluster_in(engines, tmp_path / "cluster", world.CONFIG) as cluster:
        cluster.start()
        await world.Feeder(requests).feed(world.ingesters(cluster))
        await world.tell(cluster, told)
        groups = await cluster.quiet(SETTLE_S)
        world.assert_balanced(groups)
        hashes = await cluster.hashes()
        async with cluster.channel("embedder") as channel:
            answers = await ranked(channel)
        await world.assert_all_taken_in_once(cluster, groups)
        cluster.stop()
    expected, expected_answers = await world.twin(tmp_path / "embedded", requests, told, ranked)
    assert hashes == expected
    different = [n for n, pair in enumerate(zip(answers, expected_answers, strict=True)) if pair[0] != pair[1]]
    assert not different, [(answers[n], expected_answers[n]) for n in different[:3]]
    print(f"{len(answers)} questions have the same answers; inputs", world.inputs(groups))
