"""The HTTP edge: OpenAI's API, the page's endpoints, errors and fences, over real sockets."""

import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.kernel import topics
from services.kernel.errors import UnavailableError
from services.kernel.http_server import listening, tenant_of
from services.kernel.log import key_of, message_of, position_of
from services.kernel.service import Platform
from services.rag_gateway.app import build
from services.rag_gateway.http_api import build_http
from tests.conftest import Running, RunService
from tests.contract.test_rag_gateway_api import ALECRIM, REFUNDS, ada
from tests.unit.rag_gateway.peer_doubles import World

QUESTION = "Within how many hours can I cancel a booking free of charge?"


class Edge(NamedTuple):
    session: aiohttp.ClientSession
    running: Running
    world: World
    port: int

    async def post(self, path: str, body: Any, status: int = 200, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(path, json=body, headers=named) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(path, headers=named) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def events(self, path: str, body: Any) -> list[tuple[str, Any]]:
        """All server-sent events of an answer."""
        async with self.session.post(path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return parsed(await response.text())


def parsed(stream: str) -> list[tuple[str, Any]]:
    found = []
    for block in stream.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def add_hello(application: web.Application, platform: Platform) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"tenant": tenant_of(request), "http": platform.settings.http_address})

    application.router.add_get("/v1/hello", hello)


@pytest.fixture
async def edge(run_service: RunService) -> AsyncIterator[Edge]:
    world = World()
    world.add(REFUNDS, ALECRIM)
    world.profiles["email:ada@example.com"] = ada()
    async with run_service(build, *world.builds) as running, contextlib.AsyncExitStack() as stack:
        application = build_http(running.platform, [add_hello])
        url = await stack.enter_async_context(listening(application, "127.0.0.1:0"))
        port = int(url.rstrip("/").rpartition(":")[2])
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))
        yield Edge(session, running, world, port)


# OpenAI's API ---------------------------------------------------------------------------------------------------


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "headwater", "messages": [{"role": "user", "content": text}], **fields}


async def test_a_chat_completion_has_openais_shape_and_headwaters_fields(edge: Edge) -> None:
    answer = await edge.post("/v1/chat/completions", chat(QUESTION))
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert "24 hours" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    extension = answer["headwater"]
    assert extension["answer_id"].startswith("a_")
    assert extension["citations"][0]["verified"] is True
    assert {store["store"] for store in extension["freshness"]} == {"profile", "knowledge", "identity"}


async def test_a_streamed_completion_ends_with_done(edge: Edge) -> None:
    body = chat(QUESTION, stream=True, stream_options={"include_usage": True})
    events = [data for _, data in await edge.events("/v1/chat/completions", body)]
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    words = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert "24 hours" in words
    (last,) = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["finish_reason"]]
    assert last["headwater"]["answered"] is True
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{last['headwater']['answer_id']}"}


async def test_two_streams_have_two_ids_and_the_unstreamed_form_is_named_alike(edge: Edge) -> None:
    ids = [(await edge.events("/v1/chat/completions", chat(QUESTION, stream=True)))[0][1]["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    answer = await edge.post("/v1/chat/completions", chat(QUESTION))
    assert answer["id"] == f"chatcmpl-{answer['headwater']['answer_id']}"


async def test_user_as_kind_and_value_is_who_asks(edge: Edge) -> None:
    answer = await edge.post("/v1/chat/completions", chat("What is my tier?", user="email:ada@example.com"))
    assert "gold" in answer["choices"][0]["message"]["content"]
    assert answer["headwater"]["profile_id"] == "p_ada"
    opaque = await edge.post("/v1/chat/completions", chat("What is my tier?", user="user-1234"))
    assert opaque["headwater"]["profile_id"] == ""


async def test_metadata_carries_the_conversation_and_who_asks(edge: Edge) -> None:
    metadata = {"as": "email:ada@example.com", "conversation_id": "web-7"}
    answer = await edge.post("/v1/chat/completions", chat("What is my tier?", metadata=metadata))
    assert answer["headwater"]["conversation_id"] == "web-7"
    assert "gold" in answer["choices"][0]["message"]["content"]


async def test_numbers_in_metadata_may_be_texts_as_openais_clients_send_them(edge: Edge) -> None:
    metadata = {"top_k": "3", "budget_tokens": "900", "at_least_timeout_s": "2.5"}
    await edge.post("/v1/chat/completions", chat(QUESTION, metadata=metadata))
    (search,) = [request for name, request in edge.world.calls if name == "Search"]
    assert search.top_k == 3
    await edge.post("/v1/chat/completions", chat(QUESTION, metadata={"top_k": 4, "at_least_timeout_s": 1}))
    assert [request.top_k for name, request in edge.world.calls if name == "Search"][1:] == [4]


async def test_earlier_messages_of_the_caller_are_the_conversation(edge: Edge) -> None:
    body = chat("And how soon?")
    body["messages"] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Do you send the money?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "And how soon?"}]},
    ]
    answer = await edge.post("/v1/chat/completions", body)
    assert "7 days" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "gpt-5"}, 404, "headwater"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
        ({"n": 2}, 400, "n:"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"metadata": {"as": "nobody"}}, 400, "kind:value"),
        ({"metadata": {"at_least": "%%%"}}, 400, "position token"),
        ({"metadata": 4}, 400, "metadata"),
        ({"metadata": {"top_k": "many"}}, 400, "top_k: 'many' is not a whole number"),
        ({"metadata": {"budget_tokens": "1.5"}}, 400, "budget_tokens: '1.5' is not a whole number"),
        ({"metadata": {"top_k": "-1"}}, 400, "top_k"),
        ({"metadata": {"at_least_timeout_s": "soon"}}, 400, "at_least_timeout_s"),
        ({"metadata": {"at_least_timeout_s": "nan"}}, 400, "at_least_timeout_s"),
        ({"metadata": {"at_least_timeout_s": True}}, 400, "at_least_timeout_s"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_request_is_refused_in_openais_shape(
    edge: Edge, change: dict[str, Any], status: int, says: str, stream: bool
) -> None:
    refusal = await edge.post("/v1/chat/completions", chat(QUESTION, stream=stream) | change, status)
    assert set(refusal["error"]) == {"message", "type", "param", "code"}
    assert refusal["error"]["type"] == "invalid_request_error"
    assert says in refusal["error"]["message"]


async def test_the_models_are_listed(edge: Edge) -> None:
    listed = await edge.get("/v1/models")
    assert [model["id"] for model in listed["data"]] == ["headwater"]
    assert (await edge.get("/v1/models/headwater"))["object"] == "model"
    await edge.get("/v1/models/other", 404)


# The page's endpoints -------------------------------------------------------------------------------------------


async def test_the_page_is_served_whole_without_anything_from_elsewhere(edge: Edge) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        async with edge.session.get(path) as response:
            assert response.status == 200
            assert response.content_type == kind
            text = await response.text()
            assert "http://" not in text.replace("http://www.w3.org/", "")
            assert "https://" not in text
            assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_a_question_streams_context_words_and_answer(edge: Edge) -> None:
    events = await edge.events("/api/ask", {"question": QUESTION, "as": "email:ada@example.com"})
    assert [events[0][0], events[-1][0]] == ["context", "answer"]
    words = "".join(data["text"] for name, data in events if name == "text")
    assert words == events[-1][1]["text"]
    assert events[-1][1]["citations"][0]["verified"] is True


async def test_a_refused_question_has_a_status_and_says_why(edge: Edge) -> None:
    assert "empty" in (await edge.post("/api/ask", {"question": " "}, 400))["error"]["message"]
    assert "kind:value" in (await edge.post("/api/ask", {"question": "x", "as": "ada"}, 400))["error"]["message"]


async def test_a_body_that_is_not_json_or_too_large_is_refused(edge: Edge) -> None:
    async with edge.session.post("/api/ask", data="{") as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]
    async with edge.session.post("/api/ask", data=io.BytesIO(b" " * (2 << 20))) as response:
        assert response.status == 413
        assert "1 MiB" in (await response.json())["error"]["message"]


async def test_a_profile_comes_with_the_provenance_of_every_field(edge: Edge) -> None:
    answer = await edge.get("/api/profile?as=email:ada@example.com")
    assert answer["profile"]["fields"]["tier"]["record"] == "crm/customers/1001"
    assert answer["freshness"]["store"] == "profile"
    assert "nobody" in (await edge.get("/api/profile?as=email:nobody@example.com", 404))["error"]["message"]
    await edge.get("/api/profile?as=ada", 400)


async def test_a_document_is_opened_in_the_cited_version(edge: Edge) -> None:
    document = await edge.get(f"/api/document?id={REFUNDS.id}&version=v1")
    assert document["text"] == REFUNDS.text
    await edge.get(f"/api/document?id={REFUNDS.id}&version=v0", 404)


async def test_a_rating_is_passed_on(edge: Edge) -> None:
    await edge.post("/api/rate", {"answer_id": "a_1", "up": False, "text": "wrong"})
    (rating,) = edge.world.ratings
    assert (rating.answer_id, rating.up, rating.text) == ("a_1", False, "wrong")
    await edge.post("/api/rate", {"answer_id": "a_1", "scale": 5})
    for wrong in ({"answer_id": "a_1"}, {"answer_id": 4, "up": True}, {"answer_id": "a", "scale": 9}):
        await edge.post("/api/rate", wrong, 400)


async def test_a_conversation_can_be_read(edge: Edge) -> None:
    events = await edge.events("/api/ask", {"question": QUESTION, "conversation_id": "c1"})
    log = edge.running.platform.log
    ends = await log.end(topics.CONVERSATIONS)
    position = position_of({(topics.CONVERSATIONS, p): end for p, end in enumerate(ends)})
    assert await log.wait_committed(["gateway-turns"], position, 10)
    turns = (await edge.get("/api/conversation?id=c1"))["turns"]
    assert [turn["answer_id"] for turn in turns] == [events[-1][1]["answer_id"]]


async def test_status_tells_the_freshness_of_every_store_and_the_balance(edge: Edge) -> None:
    status = await edge.get("/api/status")
    assert {store["store"] for store in status["freshness"]} == {"profile", "knowledge", "identity"}
    assert "gateway-turns" in {group["group"] for group in status["balance"]["groups"]}
    edge.world.failing["profile.GetFreshness"] = UnavailableError("down")
    status = await edge.get("/api/status")
    assert any(missing.startswith("profile:") for missing in status["missing"])


async def test_live_events_show_changes_and_turns_of_the_own_tenant_only(edge: Edge) -> None:
    for tenant, record in (("default", "crm/customers/1"), ("other", "crm/customers/2")):
        change = ingest_pb2.Change(
            tenant=tenant, source="crm", entity="customers", record=record, operation=ingest_pb2.OPERATION_UPDATE,
            before_json='{"tier": "silver"}', after_json='{"tier": "gold"}',
        )  # fmt: skip
        await edge.running.platform.log.append([message_of(topics.CHANGES, key_of(tenant, record), change, 5)])
    seen: list[Any] = []
    async with edge.session.get("/api/events") as response:
        asked = False
        while len({event["kind"] for event in seen}) < 2:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                seen.extend(json.loads(line[6:])["events"])
                if not asked:
                    await edge.events("/api/ask", {"question": QUESTION})
                    asked = True
    assert {event["kind"] for event in seen} == {"changes", "turns"}
    (change_event,) = [event for event in seen if event["kind"] == "changes"]
    assert change_event["title"] == "crm/customers/1"
    assert "silver → gold" in change_event["detail"]


async def test_a_reader_who_goes_away_in_the_middle_is_no_error(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        async with edge.session.get("/api/events") as response:
            await response.content.readline()
            response.close()
        await edge.events("/api/ask", {"question": QUESTION})  # news, which nobody reads
    assert "Error handling request" not in caplog.text


async def test_kpis_are_passed_on(edge: Edge) -> None:
    assert (await edge.get("/api/kpis"))["kpis"] == []


# Operations and fences ------------------------------------------------------------------------------------------


async def test_metrics_and_health_are_there(edge: Edge) -> None:
    await edge.events("/api/ask", {"question": QUESTION})
    async with edge.session.get("/metrics") as response:
        assert "headwater_answers_total" in await response.text()
    assert (await edge.get("/healthz")) == {"status": "ok"}


async def test_another_origin_is_refused(edge: Edge) -> None:
    refusal = await edge.post("/api/ask", {"question": QUESTION}, 403, origin="http://evil.example")
    assert "evil.example" in refusal["error"]["message"]
    own = f"http://127.0.0.1:{edge.port}"
    async with edge.session.post("/api/ask", json={"question": QUESTION}, headers={"origin": own}) as response:
        assert response.status == 200


async def test_a_host_name_that_is_not_this_machines_is_refused(edge: Edge) -> None:
    await edge.get("/api/status", 403, host="attacker.example")
    await edge.get("/v1/models", 200, host="localhost:99")


async def test_routes_of_other_services_are_mounted_and_find_the_tenant(edge: Edge) -> None:
    assert (await edge.get("/v1/hello", x_headwater_tenant="acme"))["tenant"] == "acme"
    assert (await edge.get("/v1/hello"))["tenant"] == ""


async def test_an_address_that_is_taken_is_named_with_the_cure(edge: Edge) -> None:
    with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{edge.port}.*--http-address"):
        async with listening(web.Application(), f"127.0.0.1:{edge.port}"):
            pass


async def test_what_is_not_there_is_said_in_json(edge: Edge) -> None:
    assert "/v1/models" in (await edge.get("/nothing", 404))["error"]["message"]
    assert "GET" in (await edge.get("/api/ask", 405))["error"]["message"]


async def test_the_tenant_of_a_request_is_asked_for_and_no_other(edge: Edge) -> None:
    async with edge.session.post(
        "/api/ask", json={"question": QUESTION}, headers={"x-headwater-tenant": "acme"}
    ) as response:
        await response.read()
    tenants = {request.tenant for name, request in edge.world.calls if name in ("Search", "GetDocument")}
    assert tenants == {"acme"}
