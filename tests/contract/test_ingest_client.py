"""The client's side of ingest, and its HTTP routes, against the real service."""

import asyncio
import gzip
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from headwater.ingest.v1 import events_pb2, service_pb2_grpc
from services.ingest.app import build
from services.ingest.client import Totals, push_file
from services.ingest.http_api import ARRAY_BYTES_MAX, add_routes
from services.kernel import topics
from services.kernel.errors import InvalidInputError, NotFoundError, UnavailableError
from services.kernel.log import decode_token
from services.kernel.settings import DOCUMENT_BYTES, DOCUMENT_BYTES_MAX
from services.rag_gateway.http_api import build_http
from tests.conftest import Running, RunService
from tests.contract.conftest import Tables, on

SAMPLES = Path(__file__).parents[1] / "data" / "ingest" / "debezium"


@pytest.fixture
def run_service(run_service: RunService, log_engine: Tables) -> RunService:
    """Run services with each adapter of the log."""
    return on(log_engine, run_service)


@pytest.fixture
async def running(run_service: RunService) -> AsyncIterator[Running]:
    async with run_service(build) as services:
        yield services


@pytest.fixture
def stub(running: Running) -> Any:
    return service_pb2_grpc.IngestServiceStub(running.channel)


def native(number: int) -> bytes:
    return orjson.dumps({"source": "crm", "entity": "t", "op": "insert", "key": {"id": number}, "after": {"n": number}})


async def count(running: Running, topic: str) -> int:
    return sum(await running.platform.log.end(topic))


async def documents(running: Running) -> list[events_pb2.DocumentChange]:
    log = running.platform.log
    return [
        events_pb2.DocumentChange.FromString(record.value or b"")
        for partition in range(log.partitions(topics.DOCUMENTS))
        for record in await log.read(topics.DOCUMENTS, partition, 0)
    ]


# Files --------------------------------------------------------------------------------------------------------------


async def test_a_file_of_lines_arrives_with_progress_and_a_token_for_all_of_it(
    running: Running, stub: Any, tmp_path: Path
) -> None:
    file = tmp_path / "changes.jsonl"
    file.write_bytes(b"".join(native(n) + b"\n" for n in range(5_000)))
    seen: list[int] = []
    totals = await push_file(stub, file, on_progress=seen.append)
    assert totals[:5] == (5_000, 5_000, 0, 0, 0)
    assert seen == sorted(seen)
    assert seen[-1] == 5_000
    assert sum(place.offset for place in decode_token(totals.position_token).offsets) == 5_000
    assert await count(running, topics.CHANGES) == 5_000


async def test_bad_lines_are_told_by_file_and_line(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl"
    file.write_bytes(native(1) + b"\n\nnonsense\n" + native(2))
    totals = await push_file(stub, str(file))
    assert totals[:5] == (4, 2, 1, 1, 0)
    assert totals.errors[0].startswith(f"{file}:3: not valid JSON")


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLES.glob("*.json"))])
async def test_the_captured_files_are_arrays_and_are_understood(stub: Any, name: str) -> None:
    totals = await push_file(stub, SAMPLES / name)
    assert totals.dead_lettered == 0
    assert totals.accepted >= 1


async def test_one_event_over_several_lines_is_understood(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "change.json"
    file.write_text(json.dumps(json.loads(native(1)), indent=2))
    assert (await push_file(stub, file))[:4] == (1, 1, 0, 0)


@pytest.mark.parametrize("first", [b"[1, 2, 3]", b"[1,", b"{", b"nonsense"])
async def test_a_bad_first_line_does_not_keep_the_others_back(stub: Any, tmp_path: Path, first: bytes) -> None:
    file = tmp_path / "changes.jsonl"
    file.write_bytes(first + b"\n" + native(1) + b"\n" + native(2))
    assert (await push_file(stub, file))[:4] == (3, 2, 0, 1)


async def test_standard_input_or_any_stream_is_read(stub: Any) -> None:
    assert (await push_file(stub, io.BytesIO(native(1) + b"\n" + native(2)))).accepted == 2


async def test_what_comes_through_a_pipe_is_pushed_as_it_comes(running: Running, stub: Any) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        pushing = asyncio.create_task(push_file(stub, stream))
        os.write(writer, native(1) + b"\n")
        while await count(running, topics.CHANGES) < 1:
            await asyncio.sleep(0.005)
        assert not pushing.done()
        os.write(writer, native(2))
        os.close(writer)
        assert (await pushing).accepted == 2


async def test_waiting_for_a_pipe_can_be_cancelled(stub: Any) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        pushing = asyncio.create_task(push_file(stub, stream))
        await asyncio.sleep(0.05)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
    os.close(writer)


async def test_a_packed_file_is_unpacked(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl.gz"
    file.write_bytes(gzip.compress(native(1) + b"\n" + native(2) + b"\n"))
    assert (await push_file(stub, file)).accepted == 2


async def test_a_damaged_packed_file_is_a_clear_error(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl.gz"
    file.write_bytes(gzip.compress(native(1) * 100)[:40])
    with pytest.raises(InvalidInputError, match="cannot be read any further"):
        await push_file(stub, file)


@pytest.mark.parametrize("name", ["changes.jsonl", "notes.md"])
async def test_an_empty_file_is_told_of(stub: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    totals = await push_file(stub, tmp_path / name)
    assert totals == Totals(errors=(f"{tmp_path / name}: it is empty: there was nothing to read",))


async def test_ten_megabytes_in_one_line_go_to_dead_letters_and_the_rest_goes_on(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl"
    file.write_bytes(native(1) + b"\n" + b'{"x":"' + b"y" * (10 << 20) + b'"}\n' + native(2) + b"\n")
    assert (await push_file(stub, file))[:5] == (3, 2, 0, 1, 0)


async def test_a_line_beyond_any_request_is_refused_and_the_rest_goes_on(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl"
    file.write_bytes(native(1) + b"\n" + b"y" * (20 << 20) + b"\n" + native(2) + b"\n")
    totals = await push_file(stub, file)
    assert totals[:5] == (3, 2, 0, 0, 1)
    assert f"{file}:2: the line is longer" in totals.errors[0]


async def test_a_file_that_is_not_there_and_a_folder_are_clear_errors(stub: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no such file"):
        await push_file(stub, tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="is a folder"):
        await push_file(stub, tmp_path)


async def test_an_unknown_format_is_refused_with_those_that_are(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(native(1))
    with pytest.raises(InvalidInputError, match="use one of auto, native"):
        await push_file(stub, tmp_path / "a.jsonl", format_="xml")


async def test_a_service_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    import grpc

    (tmp_path / "a.jsonl").write_bytes(native(1))
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        stub: Any = service_pb2_grpc.IngestServiceStub(channel)
        with pytest.raises(UnavailableError, match="after 0 records"):
            await push_file(stub, tmp_path / "a.jsonl")


async def test_files_that_are_no_events_are_documents(running: Running, stub: Any, tmp_path: Path) -> None:
    (tmp_path / "refunds.md").write_text("# Refunds")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    await push_file(stub, tmp_path / "refunds.md", "policies")
    await push_file(stub, tmp_path / "table.csv")
    found = {document.document_id: document for document in await documents(running)}
    assert sorted(found) == ["documents/table.csv", "policies/refunds.md"]
    assert found["policies/refunds.md"].content == b"# Refunds"
    assert found["policies/refunds.md"].media_type == "text/markdown"
    assert found["policies/refunds.md"].uri == str(tmp_path / "refunds.md")


async def test_a_named_format_makes_any_file_one_of_events(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "changes.txt").write_bytes(native(1) + b"\n")
    assert (await push_file(stub, tmp_path / "changes.txt", format_="native")).accepted == 1


# HTTP ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def http(running: Running) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.AppRunner(build_http(running.platform, extra_routes=[add_routes]), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def post(http: aiohttp.ClientSession, path: str, body: bytes, **options: Any) -> tuple[int, Any]:
    async with http.post(path, data=io.BytesIO(body), **options) as response:
        return response.status, await response.json()


async def test_changes_over_http_as_lines(running: Running, http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/changes", native(1) + b"\nnonsense\n" + native(2))
    assert status == 200
    assert (answer["read"], answer["accepted"], answer["dead_lettered"]) == (3, 2, 1)
    assert answer["errors"][0].startswith("http:2: ")
    assert {place.topic for place in decode_token(answer["position_token"]).offsets} == {"changes", "dead_letters"}
    assert await count(running, topics.CHANGES) == 2


async def test_changes_over_http_as_an_array_and_with_a_tenant(running: Running, http: aiohttp.ClientSession) -> None:
    body = b" [" + native(1) + b"," + native(2) + b"]"
    status, answer = await post(http, "/v1/changes", body, headers={"x-headwater-tenant": "acme"})
    assert (status, answer["accepted"]) == (200, 2)
    records = [record for p in range(4) for record in await running.platform.log.read(topics.CHANGES, p, 0)]
    assert {events_pb2.Change.FromString(record.value or b"").tenant for record in records} == {"acme"}


async def test_more_than_a_body_may_usually_have_is_streamed(running: Running, http: aiohttp.ClientSession) -> None:
    body = b"".join(native(n) + b"\n" for n in range(40_000))
    status, answer = await post(http, "/v1/changes", body)
    assert (status, answer["accepted"]) == (200, 40_000)
    assert await count(running, topics.CHANGES) == 40_000


@pytest.mark.parametrize("body", [b"", b"[", b"[1", b"[]"])
async def test_a_body_that_is_nothing_is_refused(http: aiohttp.ClientSession, body: bytes) -> None:
    status, answer = await post(http, "/v1/changes", body)
    assert status == 400
    assert answer["error"]["message"]


async def test_an_unknown_format_over_http_is_refused(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/changes?format=xml", native(1))
    assert status == 400
    assert "use one of" in answer["error"]["message"]


async def test_documents_over_http(running: Running, http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/documents?source=faq", orjson.dumps({"id": 7, "text": "seven"}))
    assert (status, answer["accepted"]) == (200, 1)
    status, answer = await post(http, "/v1/documents?source=faq&name=a%2Fb.md&access=staff&access=hr", b"# A")
    assert (status, answer["document_id"]) == (200, "faq/a/b.md")
    async with http.delete("/v1/documents/faq/7") as response:
        assert (await response.json())["document_id"] == "faq/7"
    found = [(d.document_id, d.operation, list(d.access), d.media_type) for d in await documents(running)]
    put, delete = events_pb2.DOCUMENT_OPERATION_PUT, events_pb2.DOCUMENT_OPERATION_DELETE
    assert sorted(found) == [
        ("faq/7", put, [], "text/plain"),
        ("faq/7", delete, [], ""),
        ("faq/a/b.md", put, ["staff", "hr"], "text/markdown"),
    ]


async def test_an_array_beyond_the_limit_is_refused_with_the_limit(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/changes", b'["' + b"x" * ARRAY_BYTES_MAX + b'"]')
    assert status == 400
    assert f"an array of more than {ARRAY_BYTES_MAX:,} bytes" in answer["error"]["message"]
    assert "JSON lines" in answer["error"]["message"]


async def test_a_document_beyond_the_limit_is_refused_with_the_limit(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/documents?name=a.txt", b"x" * (DOCUMENT_BYTES + 1))
    assert status == 400
    assert f"the limit is {DOCUMENT_BYTES:,}" in answer["error"]["message"]
    assert "document_bytes_max in [ingest]" in answer["error"]["message"]
    status, answer = await post(http, "/v1/documents?name=a.txt", b"x" * (DOCUMENT_BYTES_MAX + 1))
    assert status == 400
    assert f"a document of more than {DOCUMENT_BYTES_MAX:,} bytes" in answer["error"]["message"]
