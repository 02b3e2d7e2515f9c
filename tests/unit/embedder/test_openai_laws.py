"""The laws with a model behind an endpoint that fails in every way: nothing is lost, doubled, blocked or mixed."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web
from hypothesis import given, settings, strategies as st

from headwater.embedder.v1 import events_pb2, service_pb2 as pb
from services.kernel.breaker import BreakerPolicy
from services.kernel.enrichment import RetryPolicy
from tests.unit.embedder.conftest import World, running_world
from tests.unit.embedder.embeddings_server import EmbeddingsServer, answer, refuses, unused_url
from tests.unit.embedder.examples import HashModel, document

QUICK = RetryPolicy(
    base_s=0.001, cap_s=0.002, attempts_max=99, slots=12, live_slots=3,
    breaker=BreakerPolicy(failures=3, pause_s=0.001, pause_max_s=0.002),
)  # fmt: skip
FAULTS = ("429", "500", "503", "slow", "broken", "few", "short", "gone")


class Faulty:
    """Does to a request what is planned for its first text with a plan; poison is refused for good."""

    def __init__(self, plans: dict[str, list[str]], poison: set[str]) -> None:
        self.plans, self.poison = plans, poison

    async def __call__(self, texts: list[str]) -> web.StreamResponse | None:
        names = [text.rsplit(maxsplit=1)[-1] for text in texts]
        plan = next((self.plans[name] for name in names if self.plans.get(name)), None)
        match plan.pop() if plan else "":
            case "429":
                return answered(refuses(429, retry_after="0.002"), texts)
            case "500" | "503" as status:
                return answered(refuses(int(status)), texts)
            case "slow":
                await asyncio.sleep(0.2)
            case "broken":
                return web.Response(body=b'{"data": [{')
            case "few":
                return web.Response(body=answer([[0.6] * 64] * (len(texts) - 1)))
            case "short":
                return web.Response(body=answer([[0.6, 0.8]] * len(texts)))
            case "gone":
                raise web.HTTPNotFound
        return answered(refuses(400, "cannot be embedded"), texts) if self.poison & set(names) else None


def answered(script: Any, texts: list[str]) -> web.StreamResponse:
    response: web.StreamResponse = script(texts)
    return response


def names_of(count: int) -> list[str]:
    return [f"doc{n}" for n in range(count)]


async def parked(w: World) -> dict[str, str]:
    jobs = await w.stub.ListJobs(pb.ListJobsRequest(states=[events_pb2.JOB_STATE_PARKED]))
    return {job.document_id: job.last_error for job in jobs.jobs}


async def indexed(w: World) -> Counter[str]:
    """How often each document became searchable."""
    records = [r for p in range(4) for r in await w.log.read("knowledge.indexed", p, 0, max_records=9999)]
    assert len({record.event_id for record in records}) == len(records)
    return Counter(events_pb2.DocumentIndexed.FromString(record.value or b"").document_id for record in records)


async def census(w: World) -> tuple[bool, str]:
    """Whether the census holds, and the last of its figures."""
    (service,) = w.runtime.services
    assert service.checks is not None
    (check,) = await service.checks()
    return check.ok, check.detail.rpartition(", ")[2]


@given(st.lists(st.tuples(st.lists(st.sampled_from(FAULTS), max_size=3), st.booleans()), max_size=14), st.booleans())
@settings(max_examples=10, deadline=None)
async def test_whatever_an_endpoint_does_no_document_is_lost_doubled_or_blocked(
    scripts: list[tuple[list[str], bool]], restarts: bool
) -> None:
    names = names_of(len(scripts))
    poison = {name for name, (_, poisonous) in zip(names, scripts, strict=True) if poisonous}
    plans = {name: list(plan) for name, (plan, _) in zip(names, scripts, strict=True)}
    server = EmbeddingsServer(always=Faulty(plans, poison))
    async with server.running():
        model = server.table(dimensions=64, timeout_s=0.1, batch_texts_max=5, requests_max=3)
        with tempfile.TemporaryDirectory() as folder:
            async with running_world(Path(folder), None, policy=QUICK, model=model) as w:
                await w.put(*[document(f"docs/{name}", f"text {name}", position=1, name="a.txt") for name in names])
                if restarts:  # somewhere in the middle
                    while names and not server.requests:
                        await asyncio.sleep(0.001)
                else:
                    await w.settle()
            async with running_world(Path(folder), None, policy=QUICK, model=model) as w:
                await w.settle()
                errors = await parked(w)
                assert errors.keys() == {f"docs/{name}" for name in poison}
                assert all("cannot be embedded" in error for error in errors.values())
                assert await indexed(w) == {f"docs/{name}": 1 for name in set(names) - poison}
                assert w.census_holds()
                assert w.rows("knowledge_progress") == 0
                poison.clear()
                await w.stub.RetryJobs(pb.RetryJobsRequest())
                await w.settle()
                assert await indexed(w) == {f"docs/{name}": 1 for name in names}


async def test_a_rate_limit_charges_no_attempt_and_an_outage_few(tmp_path: Path) -> None:
    limited = [refuses(429, retry_after="0.01")] * 30
    async with EmbeddingsServer(*limited).running() as server:
        policy = RetryPolicy(attempts_max=2, base_s=0.001, cap_s=0.002)
        async with running_world(tmp_path, None, policy=policy, model=server.table()) as w:
            await w.put(*[document(f"docs/{n}", f"text {n}", position=1, name="a.txt") for n in range(5)])
            await w.settle()
            assert await parked(w) == {}
            assert len(await indexed(w)) == 5


async def test_an_endpoint_that_is_set_up_wrongly_costs_no_document(tmp_path: Path) -> None:
    policy = RetryPolicy(attempts_max=4, base_s=0.001, cap_s=0.002, slots=6,
                         breaker=BreakerPolicy(failures=3, pause_s=0.001, pause_max_s=0.005))  # fmt: skip
    async with (
        EmbeddingsServer(always=refuses(400, "dimensions are not supported")).running() as server,
        running_world(tmp_path, None, policy=policy, model=server.table()) as w,
    ):
        await w.put(*[document(f"docs/{n}", f"text {n}", position=1, name="a.txt") for n in range(9)])
        while len(server.requests) < 60:
            await asyncio.sleep(0.005)
        assert await parked(w) == {}
        server.always = lambda _: None
        await w.settle()
        assert len(await indexed(w)) == 9


async def test_queries_are_answered_by_words_when_the_endpoint_is_unwell_and_say_so(tmp_path: Path) -> None:
    async with EmbeddingsServer().running() as server, running_world(tmp_path, None, model=server.table()) as w:
        await w.put(document("docs/a", "The zebra crossing.", position=1, name="a.txt"))
        await w.settle()
        assert (await w.found("zebra"))[0].vector_score > 0
        for script in (refuses(500, "oops"), refuses(400, "too long"), refuses(429, retry_after="0.001")):
            server.scripts = [script]
            response = await w.stub.Search(pb.SearchRequest(query=f"zebra {len(server.requests)}"))
            assert [hit.document_id for hit in response.hits] == ["docs/a"]
            (missing,) = response.missing
            assert missing.startswith(f"search by meaning: {server.base_url}/embeddings refused with")
    # What was asked before is remembered, and needs no endpoint.
    async with running_world(tmp_path, None, model=server.table(base_url=unused_url())) as w:
        response = await w.stub.Search(pb.SearchRequest(query="zebra"))
        assert [hit.document_id for hit in response.hits] == ["docs/a"]
        assert "is the endpoint running" in response.missing[0]


async def test_vectors_of_two_models_never_meet_and_the_new_one_embeds_in_the_background(tmp_path: Path) -> None:
    opened = asyncio.Event()

    async def held(texts: list[str]) -> None:
        if any("text" in text for text in texts):
            await opened.wait()

    async with running_world(tmp_path, HashModel()) as w:
        await w.put(*[document(f"docs/{n}", f"text number {n}", position=1, name="a.txt") for n in range(4)])
        await w.settle()
        state = await w.state()
    async with (
        EmbeddingsServer(always=held).running() as server,
        running_world(tmp_path, None, model=server.table(dimensions=64)) as w,
    ):
        response = await w.stub.Search(pb.SearchRequest(query="number"))
        assert {hit.vector_score for hit in response.hits} == {0.0}
        assert len(response.hits) == 4
        assert "the embedding model has changed" in response.missing[0]
        assert await census(w) == (True, "4 still to be embedded by another model than before")
        opened.set()
        await w.settle()
        assert min(hit.vector_score for hit in await w.found("number")) > 0
        assert await w.state() == state
        assert await census(w) == (True, "0 documents incomplete")
    async with running_world(tmp_path, HashModel()) as w:  # the way back: its vectors are still there
        assert min(hit.vector_score for hit in await w.found("number")) > 0
        assert w.rows("knowledge_jobs") == 0


async def test_jobs_of_the_model_of_before_are_the_new_ones_own(tmp_path: Path) -> None:
    async with (
        EmbeddingsServer(always=refuses(429, retry_after="3600")).running() as server,
        running_world(tmp_path, None, model=server.table()) as w,
    ):
        await w.put(document("docs/a", "A text.", position=1, name="a.txt"))
        while not server.requests:
            await asyncio.sleep(0.001)
    async with running_world(tmp_path, HashModel()) as w:
        await w.settle()
        assert len(await w.found("text")) == 1


async def test_the_length_of_vectors_that_are_stored_is_the_only_one_that_is_taken(tmp_path: Path) -> None:
    async with EmbeddingsServer().running() as server:
        async with running_world(tmp_path, None, model=server.table()) as w:
            await w.put(document("docs/a", "A text.", position=1, name="a.txt"))
            await w.settle()
        server.always = lambda texts: web.Response(body=answer([[0.6, 0.8]] * len(texts)))
        async with running_world(tmp_path, None, model=server.table()) as w:
            response = await w.stub.Search(pb.SearchRequest(query="text"))
            assert len(response.hits) == 1
            assert "2 dimensions, not 64" in response.missing[0]


async def test_live_documents_become_searchable_before_a_backfill_is_done(tmp_path: Path) -> None:
    opened = asyncio.Event()

    async def held(texts: list[str]) -> None:
        if any("old" in text for text in texts):
            await opened.wait()

    async with EmbeddingsServer(always=held).running() as server:
        model = server.table(batch_texts_max=2, requests_max=2)
        async with running_world(tmp_path, None, model=model) as w:
            await w.put(*[document(f"docs/{n}", f"old {n}", position=1, name="a.txt") for n in range(200)])
            while not server.requests:
                await asyncio.sleep(0.001)
            position = await w.put(document("news/1", "The zebra crossing.", position=1, name="n.txt"))
            while not (await w.stub.Search(pb.SearchRequest(query="zebra"))).hits:
                await asyncio.sleep(0.01)
            assert position
            assert sum(len(texts) for texts in server.texts if "old" in texts[0]) <= 2
            opened.set()
            await w.settle()
            assert len(await indexed(w)) == 201


async def test_the_result_does_not_depend_on_how_texts_are_batched(tmp_path: Path) -> None:
    changes = [document(f"docs/{n}", f"# {n}\n\n" + "alpha beta. " * 99, position=1, name="a.md") for n in range(3)]
    states = set()
    async with EmbeddingsServer().running() as server:
        for texts in (1, 3, 32):
            async with running_world(tmp_path / str(texts), None, model=server.table(batch_texts_max=texts)) as w:
                await w.put(*changes)
                await w.settle()
                assert w.census_holds()
                states.add(await w.state())
    assert len(states) == 1
