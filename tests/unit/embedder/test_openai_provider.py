"""Models behind an OpenAI-compatible endpoint, against a real HTTP server that follows a script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from services.embedder import openai_client
from services.embedder.openai_answers import TextsRefusedError
from services.embedder.openai_provider import HARMLESS, OpenAiEmbedder
from services.embedder.rate_limits import WAIT_MAX_S, backfill_wait_s, wait_s
from services.kernel.errors import HeadwaterError
from services.kernel.jobs import EnrichmentError, Lane, PermanentError, RateLimited, TransientError
from tests.unit.embedder.embeddings_server import (
    EmbeddingsServer,
    Script,
    answer,
    answers,
    base64_of,
    refuses,
    unused_url,
    when,
)
from tests.unit.embedder.examples import HashModel

LIVE, BACKFILL = Lane
NOW = 1_800_000_000.0


@contextlib.asynccontextmanager
async def provider(server: EmbeddingsServer, **settings: Any) -> AsyncIterator[OpenAiEmbedder]:
    embedder = OpenAiEmbedder(server.settings(**settings), HashModel())
    try:
        yield embedder
    finally:
        await embedder.close()


async def failure(*scripts: Script, texts: tuple[str, ...] = ("a", "b"), **settings: Any) -> EnrichmentError:
    """The error that texts meet."""
    async with EmbeddingsServer(*scripts).running() as server, provider(server, **settings) as embedder:
        with pytest.raises(EnrichmentError) as caught:
            await embedder.embed(texts, LIVE)
        return caught.value


async def documents(embedder: OpenAiEmbedder, *texts: str, lane: Lane = LIVE) -> list[Any]:
    """Embed documents of one text each at once; their vectors, or what they met."""
    return await asyncio.gather(*(embedder.embed([text], lane) for text in texts), return_exceptions=True)


# What is sent, and what comes back ---------------------------------------------------------------------------------


async def test_vectors_have_length_one_and_are_those_of_their_texts() -> None:
    async with EmbeddingsServer().running() as server, provider(server) as embedder:
        first, second = await embedder.embed(["alpha", "beta"], LIVE)
        assert first.dtype == np.float32
        np.testing.assert_allclose(first, HashModel().embed("alpha"), atol=1e-6)
        np.testing.assert_allclose(second, HashModel().embed("beta"), atol=1e-6)
        np.testing.assert_array_equal(await embedder.embed_query("alpha"), first)
    assert server.requests[0] == {"model": "tiny", "input": ["alpha", "beta"]}
    assert "Authorization" not in server.headers[0]


async def test_dimensions_are_asked_for_where_they_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "k-123")
    async with (
        EmbeddingsServer().running() as server,
        provider(server, dimensions=64, api_key_env="SOME_KEY") as embedder,
    ):
        await embedder.embed(["alpha"], LIVE)
    assert server.requests[0]["dimensions"] == 64
    assert server.headers[0]["Authorization"] == "Bearer k-123"


async def test_the_name_of_vectors_holds_provider_model_and_dimensions() -> None:
    server = EmbeddingsServer()
    async with provider(server, dimensions=64) as asked, provider(server) as native:
        assert (asked.model_id, native.model_id) == ("openai/tiny/64", "openai/tiny/native")


async def test_vectors_in_another_order_and_in_base64_are_read() -> None:
    scripts = answers(answer([base64_of([0, 2]), base64_of([5, 0])], [1, 0]))
    async with EmbeddingsServer(scripts).running() as server, provider(server) as embedder:
        first, second = await embedder.embed(["a", "b"], LIVE)
        assert (first.tolist(), second.tolist()) == ([1, 0], [0, 1])
        assert embedder.dimensions == 2


async def test_texts_of_many_documents_share_requests_within_the_bounds() -> None:
    async with (
        EmbeddingsServer().running() as server,
        provider(server, batch_texts_max=4, batch_tokens_max=20, requests_max=1) as embedder,
    ):
        await documents(embedder, *(f"text {n}" for n in range(13)))
        assert sum(map(len, server.texts)) == 13
        assert len(server.texts) <= 5
        assert max(map(len, server.texts)) == 4
        server.requests.clear()
        await documents(embedder, *(f"word {n} " * 4 for n in range(6)))
        assert max(map(len, server.texts)) == 2  # of eight tokens each
        await documents(embedder, "a text that is longer than a request may be " * 9)


async def test_a_document_that_has_failed_before_has_its_requests_for_itself() -> None:
    async with EmbeddingsServer().running() as server, provider(server, requests_max=1) as embedder:
        await asyncio.gather(
            embedder.embed(["a"], LIVE),
            embedder.embed(["b"], LIVE),
            embedder.embed(["bad", "bad too"], LIVE, alone=True),
        )
        assert ["bad", "bad too"] in server.texts


async def test_a_long_query_is_cut_to_what_the_model_takes() -> None:
    async with EmbeddingsServer().running() as server, provider(server, tokens_max=66) as embedder:
        await embedder.embed_query("word " * 999)
    assert server.texts == [["word " * 64]]


# What goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=90), usegmt=True)}, 90),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW, UTC) - timedelta(seconds=90), usegmt=True)}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 30}, WAIT_MAX_S),
        ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-reset": str(int(NOW) + 30)}, 30),
        ({"x-ratelimit-reset": str(int(NOW + 30) * 1000)}, 30),
        ({"ratelimit-reset": "12"}, 12),
        ({"retry-after": "3", "x-ratelimit-reset-tokens": "6m0s"}, 3),
        ({}, None),
    ],
)
def test_how_long_to_stay_away_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_s(headers, NOW) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(("remaining", "seconds"), [("99", 8.0), ("100", 0.0), ("0", 8.0), ("many", 0.0)])
def test_backfill_leaves_the_last_tenth_of_a_budget(remaining: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": remaining,
        "x-ratelimit-reset-tokens": "8s",
    }
    assert backfill_wait_s(headers, NOW) == seconds


async def test_a_busy_endpoint_is_left_alone_for_as_long_as_it_asks() -> None:
    async with (
        EmbeddingsServer(refuses(429, retry_after="30")).running() as server,
        provider(server, requests_max=1, batch_texts_max=1) as embedder,
    ):
        met = await documents(embedder, "a", "b", "c")
        assert all(isinstance(error, RateLimited) and 29 < error.retry_after_s <= 30 for error in met)
        with pytest.raises(RateLimited):
            await embedder.embed(["d"], LIVE)
        with pytest.raises(RateLimited):
            await embedder.embed_query("q")
    assert len(server.requests) == 1


async def test_a_busy_endpoint_that_does_not_say_for_how_long_is_left_alone_longer_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_client, "PATIENCE_BASE_S", 0.001)
    waits = []
    async with EmbeddingsServer(always=refuses(429)).running() as server, provider(server) as embedder:
        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                await embedder.embed(["a"], LIVE)
            waits.append(caught.value.retry_after_s)
            await asyncio.sleep(waits[-1] * 2)
    assert waits == [0.001, 0.002, 0.004]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (refuses(500, "oops"), "oops"),
        (refuses(502), "502"),
        (refuses(503), "503"),
        (refuses(401), "api_key_env"),
        (refuses(404), "base_url and model"),
        (refuses(301, location="http://127.0.0.1:1/"), "301"),
        (answers(b"<html>"), "not JSON"),
        (answers(b"[]"), "no list"),
        (lambda texts: web.Response(body=answer([[1, 0]] * (len(texts) - 1))), "1 vectors for 2 texts"),
        (lambda texts: web.Response(body=answer([[1, 0]] * (len(texts) + 1))), "3 vectors for 2 texts"),
        (answers(answer([[1, 0], [0, 1]], [0, 0])), "which texts"),
        (answers(answer([[1, 0], [0, 1, 0]])), "2, 3 dimensions"),
        (answers(answer([["a"], ["b"]])), "no number"),
        (answers(answer(["%", "%"])), "no number"),
        (answers(answer([[], []])), "no lists of numbers"),
    ],
)
async def test_a_failure_of_the_endpoint_may_pass_and_says_what_it_was(script: Script, words: str) -> None:
    error = await failure(script, script, script)
    assert isinstance(error, TransientError)
    assert words in str(error)


async def test_vectors_of_another_length_are_refused() -> None:
    error = await failure(answers(answer([[1, 0], [0, 1]])), dimensions=64)
    assert isinstance(error, TransientError)
    assert "2 dimensions, not 64" in str(error)
    async with EmbeddingsServer().running() as server, provider(server) as embedder:
        await embedder.embed(["a"], LIVE)
        server.always = answers(answer([[1, 0]]))
        with pytest.raises(TransientError, match="2 dimensions, not 64"):
            await embedder.embed_query("b")


async def test_an_endpoint_that_is_slow_or_not_there_may_come_back() -> None:
    async def slow(_: list[str]) -> None:
        await asyncio.sleep(30)

    assert "timeout_s" in str(await failure(slow, timeout_s=0.05))
    embedder = OpenAiEmbedder(EmbeddingsServer().settings(base_url=unused_url()), HashModel())
    with pytest.raises(TransientError, match="is the endpoint running"):
        await embedder.embed(["a"], LIVE)
    await embedder.close()


async def test_a_missing_key_is_named() -> None:
    assert "UNSET_KEY" in str(await failure(api_key_env="UNSET_KEY"))


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_a_poisonous_text_stands_alone_in_the_end_and_the_others_never_notice(status: int) -> None:
    always = when("poison", refuses(status, "bad text"))
    async with EmbeddingsServer(always=always).running() as server, provider(server, requests_max=1) as embedder:
        names = [f"text {n}" for n in range(20)]
        names[7] = "poison"
        await documents(embedder, "something before", *names)
        outcomes = await documents(embedder, *names)
    (culprit,) = [error for error in outcomes if isinstance(error, Exception)]
    assert outcomes[7] is culprit
    if status == 500:  # it may be the endpoint after all: the document is tried again, by itself
        assert isinstance(culprit, TransientError)
    else:
        assert isinstance(culprit, PermanentError)
        assert "'poison'" in str(culprit)
        assert "bad text" in str(culprit)


async def test_a_poisonous_text_decides_over_its_own_document_alone() -> None:
    async with EmbeddingsServer(always=when("poison", refuses(400))).running() as server, provider(server) as embedder:
        bad, good = await asyncio.gather(
            embedder.embed(["fine", "poison", "fine too"], LIVE), embedder.embed(["good", "better"], LIVE),
            return_exceptions=True,
        )  # fmt: skip
    assert isinstance(bad, PermanentError)
    assert not isinstance(good, BaseException)
    assert len(good) == 2


@pytest.mark.parametrize("numbers", [b"[0, 0]", b"[NaN, 1]", b"[null, 1]", b"[Infinity, 1]", b"[3e38, 1e999]"])
async def test_a_vector_without_a_direction_is_refused_with_its_text(numbers: bytes) -> None:
    def script(texts: list[str]) -> web.Response:
        vectors = [numbers if text == "odd" else b"[1, 0]" for text in texts]
        entries = b",".join(b'{"index": %d, "embedding": %s}' % each for each in enumerate(vectors))
        return web.Response(body=b'{"data": [%s]}' % entries)

    async with EmbeddingsServer(always=script).running() as server, provider(server) as embedder:
        first, odd, last = await documents(embedder, "first", "odd", "last")
        assert isinstance(odd, PermanentError)
        assert "not finite" in str(odd)
        assert first[0].tolist() == last[0].tolist() == [1, 0]
        with pytest.raises(TextsRefusedError):
            await embedder.embed_query("odd")


@pytest.mark.parametrize("script", [refuses(400, "unknown parameter"), answers(answer([[0, 0]]))])
async def test_no_document_is_given_up_for_an_endpoint_that_takes_nothing(script: Script) -> None:
    error = await failure(*[script] * 9, texts=("a",))
    assert isinstance(error, TransientError)
    assert "harmless" in str(error)


async def test_requests_become_smaller_where_they_were_too_much() -> None:
    def small_only(texts: list[str]) -> web.Response | None:
        return web.json_response({}, status=413) if len(texts) > 5 else None

    async with (
        EmbeddingsServer(always=small_only).running() as server,
        provider(server, batch_texts_max=8, requests_max=1) as embedder,
    ):
        await documents(embedder, *map(str, range(40)))
        server.requests.clear()
        outcomes = await documents(embedder, *map(str, range(40)))
        assert max(map(len, server.texts)) <= 4
        assert all(len(outcome) == 1 for outcome in outcomes)


# Lanes and queries -------------------------------------------------------------------------------------------------


class Gate:
    """A script that holds every answer back until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.holding = 0

    async def __call__(self, _: list[str]) -> None:
        self.holding += 1
        await self.opened.wait()

    async def holds(self, count: int) -> None:
        while self.holding < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("requests_max", [1, 3])
async def test_live_texts_go_ahead_of_the_backfill_and_find_a_request_free(requests_max: int) -> None:
    gate = Gate()
    async with (
        EmbeddingsServer(always=gate).running() as server,
        provider(server, requests_max=requests_max, batch_texts_max=2) as embedder,
    ):
        backfill = asyncio.create_task(documents(embedder, *(f"old {n}" for n in range(20)), lane=BACKFILL))
        await gate.holds(max(1, requests_max - 1))
        live = asyncio.create_task(documents(embedder, "new"))
        if requests_max > 1:
            await gate.holds(requests_max)  # with no backfill done yet
            assert server.texts[-1] == ["new"]
        while not embedder._batches.waits(LIVE) and ["new"] not in server.texts:
            await asyncio.sleep(0.001)
        gate.opened.set()
        await asyncio.gather(backfill, live)
        assert server.texts.index(["new"]) <= requests_max


async def test_an_endless_stream_of_live_texts_leaves_a_request_to_the_backfill() -> None:
    gate = Gate()
    async with (
        EmbeddingsServer(always=gate).running() as server,
        provider(server, requests_max=3, batch_texts_max=1) as embedder,
    ):
        live = asyncio.create_task(documents(embedder, *(f"new {n}" for n in range(3))))
        await gate.holds(3)
        more = asyncio.create_task(documents(embedder, *(f"newer {n}" for n in range(9))))
        old = asyncio.create_task(documents(embedder, "old", lane=BACKFILL))
        while not embedder._batches.waits(BACKFILL):
            await asyncio.sleep(0.001)
        gate.opened.set()
        await asyncio.gather(live, more, old)
        assert server.texts.index(["old"]) <= 5


def budget(remaining: int, reset: str) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }


async def test_backfill_waits_while_little_remains_of_the_budget_and_nothing_else_does() -> None:
    async with EmbeddingsServer().running() as server, provider(server) as embedder:
        server.answer_headers = budget(5, "1h")
        await documents(embedder, "first", lane=BACKFILL)
        old = asyncio.create_task(documents(embedder, "old", lane=BACKFILL))
        while not embedder._batches.waits(BACKFILL):
            await asyncio.sleep(0.001)
        await embedder.embed_query("asked")
        await documents(embedder, "new")
        assert server.texts == [["first"], ["asked"], ["new"]]
        server.answer_headers = budget(50, "1h")
        await documents(embedder, "newer")
        await old
    assert server.texts[3:] == [["newer"], ["old"]]


async def test_backfill_goes_on_by_itself_when_the_budget_is_whole_again() -> None:
    async with EmbeddingsServer().running() as server, provider(server) as embedder:
        server.answer_headers = budget(5, "20ms")
        for n in range(3):
            assert len(await documents(embedder, f"old {n}", lane=BACKFILL)) == 1


async def test_a_query_goes_at_once_whatever_waits() -> None:
    gate = Gate()
    held = when("old", gate)
    async with (
        EmbeddingsServer(always=held).running() as server,
        provider(server, requests_max=2, batch_texts_max=1) as embedder,
    ):
        backfill = asyncio.create_task(documents(embedder, *(f"old {n}" for n in range(9)), lane=BACKFILL))
        await gate.holds(1)
        assert len(await embedder.embed_query("asked")) == 64
        gate.opened.set()
        await backfill


async def test_a_query_is_given_up_at_its_deadline_and_the_next_ones_at_once() -> None:
    gate = Gate()
    async with EmbeddingsServer(always=gate).running() as server, provider(server, query_timeout_s=0.25) as embedder:
        for _ in range(6):
            with pytest.raises(HeadwaterError, match="query_timeout_s"):
                await embedder.embed_query("asked")
        assert len(server.requests) <= 2
        gate.opened.set()
        embedder._queries.paused_until = 0  # its pause is over
        assert len(await embedder.embed_query("asked")) == 64
        assert len(await embedder.embed_query("asked again")) == 64


async def test_nothing_is_left_waiting_when_it_is_closed() -> None:
    gate = Gate()
    async with EmbeddingsServer(always=gate).running() as server:
        embedder = OpenAiEmbedder(server.settings(requests_max=1, batch_texts_max=1), HashModel())
        waiting = [asyncio.create_task(embedder.embed([text], LIVE)) for text in "abc"]
        await gate.holds(1)
        await embedder.close()
        gate.opened.set()
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*waiting, return_exceptions=True)
        )
    assert HARMLESS not in [text for texts in server.texts for text in texts]
