"""The laws, on a real database: order, replay, once, deletion, and independence of how work is batched."""

import asyncio
import random
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from headwater.embedder.v1 import service_pb2 as pb
from headwater.ingest.v1 import events_pb2
from services.embedder import indexer, sqlite_chunks, sqlite_documents
from services.embedder.document import Loaded
from services.embedder.in_process import InProcess
from services.embedder.loaders import load
from services.embedder.ports import Vector
from services.kernel.breaker import BreakerPolicy
from services.kernel.enrichment import PermanentError, RateLimited, RetryPolicy, TransientError
from tests.unit.embedder.conftest import RunWorld, running_world
from tests.unit.embedder.examples import HashModel, document, row

Changed = events_pb2.DocumentChange | events_pb2.Change
NAMES = ["docs/a", "docs/b", "docs/c"]
WORDS = ["alpha", "beta", "gamma", "delta"]
QUICK = RetryPolicy(
    base_s=0.001, cap_s=0.002, attempts_max=99, breaker=BreakerPolicy(failures=3, pause_s=0.001, pause_max_s=0.002)
)


@st.composite
def histories(draw: st.DrawFn) -> list[Changed]:
    """Changes of a few documents and rows with growing positions: texts, metadata, access, deletions, truncations."""
    changes: list[Changed] = []
    there: set[int] = set()
    for position in range(1, draw(st.integers(1, 14)) + 1):
        kind = draw(st.sampled_from(["put", "put", "put", "delete", "row", "row", "row", "gone", "truncate"]))
        text = " ".join(draw(st.lists(st.sampled_from(WORDS), max_size=4)))
        number = draw(st.integers(1, 2))
        if kind == "put":
            paragraphs = "\n\n".join([f"# {text}", *[text * 9] * draw(st.integers(0, 3))])
            access = draw(st.lists(st.sampled_from(["staff", "board"]), unique=True))
            fields: dict[str, Any] = {"access": access, "metadata": {"m": text}, "name": "a.md"}
            changes.append(document(draw(st.sampled_from(NAMES)), paragraphs, position=position, **fields))
        elif kind == "delete":
            changes.append(document(draw(st.sampled_from(NAMES)), None, position=position))
        elif kind == "row":
            values = {"name": text, "city": draw(st.sampled_from(WORDS)), "price": position}
            # A source leaves out only what is there and did not change.
            left_out = ["description"] if number in there and draw(st.booleans()) else []
            values |= {} if left_out else {"description": draw(st.sampled_from(WORDS))}
            partial = number in there and draw(st.booleans())
            if partial:
                values = {name: value for name, value in values.items() if draw(st.booleans())}
            changes.append(row(number, values, position=position, unavailable=left_out, partial=partial))
            there.add(number)
        elif kind == "gone":
            changes.append(row(number, None, position=position))
            there.discard(number)
        else:
            changes.append(row(0, None, position=position, op="truncate"))
            there.clear()
    return changes


async def outcome(changes: Sequence[Changed], *, slices: int = 0) -> str:
    """The state hash after changes, given to the log in one or several appends, and after a rebuild."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_world(Path(folder), HashModel()) as w:
            for start in range(0, len(changes), slices or len(changes) or 1):
                await w.put(*changes[start : start + (slices or len(changes))])
                if slices:
                    await w.settle()
            await w.settle()
            state = await w.state()
            assert w.census_holds()
            assert await w.rebuilt() == state
            assert w.census_holds()
            return state


@given(histories(), st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
async def test_any_order_and_repetition_gives_the_same_state_and_so_does_a_replay(
    history: list[Changed], chance: random.Random, slices: int
) -> None:
    shuffled = [*history, *chance.sample(history, len(history) // 2)]
    chance.shuffle(shuffled)
    assert await outcome(history) == await outcome(shuffled, slices=slices)


async def test_deletion_leaves_nothing_behind_at_once(world: RunWorld) -> None:
    async with world(HashModel()) as w:
        await w.put(document("docs/a", "alpha\n\nbeta " * 60, position=1, name="a.md"))
        await w.put(row(1, {"name": "Riva", "city": "Split", "description": "gamma"}, position=1))
        await w.settle()
        assert await w.found("alpha beta gamma")
        await w.put(document("docs/a", None, position=2))
        await w.put(row(0, None, position=9, op="truncate"))
        await w.settle()
        assert await w.found("alpha beta gamma") == []
        for table in ("documents", "chunks", "words_docsize", "embeddings", "progress", "jobs"):
            assert w.rows(f"knowledge_{table}") == 0, table
        (check,) = [c for c in (await w.verified()).checks if c.name == "census knowledge"]
        assert check.ok, check.detail


async def test_only_what_changed_is_embedded_again(world: RunWorld) -> None:
    model = HashModel()
    async with world(model) as w:
        sections = [f"# Section {n}\n\n{WORDS[n]} text." for n in range(4)]
        await w.put(document("docs/a", "\n\n".join(sections), position=1, name="a.md"))
        await w.settle()
        model.embedded.clear()
        sections[2] = "# Section 2\n\nchanged text."
        await w.put(document("docs/a", "\n\n".join(sections), position=2, name="a.md"))
        await w.put(document("docs/copy", "\n\n".join(sections), position=1, name="a.md"))
        await w.settle()
        assert len(model.embedded) <= 2
        assert all("changed" in text for text in model.embedded)


@pytest.mark.parametrize("in_thread", [0, 10_000])
@pytest.mark.parametrize("slice_", [1, 3, 100])
async def test_the_result_does_not_depend_on_how_work_is_sliced(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, slice_: int, in_thread: int
) -> None:
    monkeypatch.setattr(InProcess, "texts_at_once", slice_)
    monkeypatch.setattr(sqlite_chunks, "_IN_THREAD", in_thread)
    monkeypatch.setattr(sqlite_documents, "_IN_THREAD", in_thread)
    changes = [document(f"docs/{n}", f"# {n}\n\n" + "alpha beta. " * 99, position=1, name="a.md") for n in range(3)]
    async with world(HashModel()) as w:
        await w.put(*changes)
        await w.settle()
        await w.put(document("docs/1", None, position=2))
        await w.settle()
        assert w.census_holds()
        assert w.rows("knowledge_progress") == 0
        assert await w.state() == await outcome([changes[0], changes[2]])


async def test_the_old_version_answers_until_the_new_one_is_whole(world: RunWorld) -> None:
    class Gate(HashModel):
        closed = False

        def embed(self, text: str) -> Vector:
            if self.closed and "new" in text and "query" not in text:
                raise TransientError("not yet")
            return super().embed(text)

    model = Gate()
    async with world(model, policy=QUICK) as w:
        await w.put(document("docs/a", "old words", position=1, name="a.txt"))
        await w.settle()
        model.closed = True
        await w.put(document("docs/a", "new words", position=2, name="a.txt"))
        while not w.rows("knowledge_jobs"):
            await asyncio.sleep(0.005)
        assert [hit.text for hit in await w.found("query words")] == ["old words"]
        model.closed = False
        await w.settle()
        assert [hit.text for hit in await w.found("query words")] == ["new words"]


async def test_killed_at_any_point_it_ends_in_the_same_state_with_every_event_once(tmp_path: Path) -> None:
    texts = [f"# {n}\n\n" + f"{WORDS[n % 4]} text. " * 60 for n in range(12)]
    changes = [document(f"docs/{n % 4}", text, position=n + 1, name="a.md") for n, text in enumerate(texts)]
    expected = await outcome(changes)
    chance = random.Random(7)

    class Dies(HashModel):
        def __init__(self, texts: int) -> None:
            super().__init__()
            self.left = texts

        def embed(self, text: str) -> Vector:
            self.left -= 1
            if self.left < 0:
                raise TransientError("killed")
            return super().embed(text)

    for turn in range(8):
        # The model stops working at some point: everything after it is abandoned with the process.
        async with running_world(tmp_path, Dies(chance.randrange(6)), policy=RetryPolicy(base_s=99, cap_s=99)) as w:
            await w.put(*changes[turn * 2 : turn * 2 + 2])
            await asyncio.sleep(chance.random() * 0.03)
    async with running_world(tmp_path, HashModel()) as w:
        await w.put(*changes)
        await w.stub.RetryJobs(pb.RetryJobsRequest())
        await w.settle()
        assert await w.state() == expected
        assert w.census_holds()
        assert w.rows("knowledge_progress") == 0
        for topic in ("embedder.jobs", "knowledge.indexed"):
            ids = [r.event_id for p in range(4) for r in await w.log.read(topic, p, 0, max_records=9999)]
            assert len(ids) == len(set(ids))


@given(st.lists(st.tuples(st.lists(st.sampled_from(["429", "503", "bug"]), max_size=3), st.booleans()), max_size=12))
@settings(max_examples=10, deadline=None)
async def test_whatever_a_provider_does_no_document_is_lost_doubled_or_blocked(
    scripts: list[tuple[list[str], bool]],
) -> None:
    faults = {f"doc{n}": list(script) for n, (script, _) in enumerate(scripts)}
    poison = {f"doc{n}" for n, (_, poisonous) in enumerate(scripts) if poisonous}
    done: dict[str, int] = defaultdict(int)

    class Scripted(HashModel):
        def embed(self, text: str) -> Vector:
            name = text.rsplit(maxsplit=1)[-1]
            match faults[name].pop() if faults.get(name) else "ok":
                case "429":
                    raise RateLimited("slow down", 0.001)
                case "503":
                    raise TransientError("unavailable")
                case "bug":
                    raise KeyError("oops")
            if name in poison:
                raise PermanentError("cannot be embedded: leave it out")
            done[name] += 1
            return super().embed(text)

    with tempfile.TemporaryDirectory() as folder:
        async with running_world(Path(folder), Scripted(), policy=QUICK) as w:
            await w.put(*[document(f"docs/{name}", f"text {name}", position=1, name="a.txt") for name in faults])
            await w.settle()
            jobs = await w.stub.ListJobs(pb.ListJobsRequest())
            assert {job.document_id for job in jobs.jobs} == {f"docs/{name}" for name in poison}
            assert all("leave it out" in job.last_error for job in jobs.jobs)
            assert jobs.counts["done"] == len(faults) - len(poison)
            assert done == dict.fromkeys(faults.keys() - poison, 1)
            poison.clear()
            await w.stub.RetryJobs(pb.RetryJobsRequest())
            await w.settle()
            assert (await w.stub.ListJobs(pb.ListJobsRequest())).counts["done"] == len(faults)


async def test_a_reader_that_never_comes_back_parks_its_document_and_blocks_nothing(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def stuck(content: bytes, media_type: str, name: str) -> Loaded:
        if content.startswith(b"stuck"):
            released.wait(60)
        return load(content, media_type, name)

    monkeypatch.setattr(indexer, "load", stuck)
    monkeypatch.setattr(indexer, "LOAD_TIMEOUT_S", 0.05)
    async with world(HashModel()) as w:
        await w.put(*[document(f"docs/{n}", "stuck" if n < 9 else "fine", position=1) for n in range(12)])
        await w.settle()
        jobs = await w.stub.ListJobs(pb.ListJobsRequest())
        assert (jobs.counts["parked"], jobs.counts["done"]) == (9, 3)
        assert "could not be read within" in jobs.jobs[0].last_error
        released.set()


async def test_another_model_embeds_everything_anew_from_what_is_stored(tmp_path: Path) -> None:
    class Other(HashModel):
        model_id = "hash/2"

    async with running_world(tmp_path, HashModel()) as w:
        await w.put(document("docs/a", "# A\n\nalpha\n\n# B\n\nbeta", position=1, name="a.md"))
        await w.settle()
        state = await w.state()
    async with running_world(tmp_path, Other()) as w:
        await w.settle()
        assert await w.state() == state
        assert [hit.text for hit in await w.found("alpha", top_k=1)] == ["# A\n\nalpha"]
