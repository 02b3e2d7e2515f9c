"""Watched buckets, on a server with S3's API in a process of its own."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import grpc
import pytest
from botocore.config import Config

from headwater.ingest.v1 import events_pb2, service_pb2, service_pb2_grpc
from services.ingest.app import build
from services.kernel import topics
from tests.conftest import Running, RunService
from tests.contract.conftest import Tables, on
from tests.contract.test_ingest_api import records

pytestmark = pytest.mark.slow
BUCKET = "policies"
PUT, DELETE = events_pb2.DOCUMENT_OPERATION_PUT, events_pb2.DOCUMENT_OPERATION_DELETE
Document = events_pb2.DocumentChange


@pytest.fixture
def run_service(run_service: RunService, log_engine: Tables) -> RunService:
    """Run services with each adapter of the log."""
    return on(log_engine, run_service)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    written = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with written.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", written.read_text())):
                assert server.poll() is None, written.read_text()
                time.sleep(0.05)
            yield found[0]
        finally:
            server.terminate()


@pytest.fixture
def s3(endpoint: str) -> Iterator[Any]:
    names = {"aws_access_key_id": "ada", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **names, config=Config(signature_version="s3v4"))
    client.create_bucket(Bucket=BUCKET)
    yield client
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    for found in [page["Contents"] for page in pages if "Contents" in page]:
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": item["Key"]} for item in found]})
    client.delete_bucket(Bucket=BUCKET)
    client.close()


def settings(endpoint: str, **more: Any) -> dict[str, Any]:
    bucket = {"name": BUCKET, "endpoint": endpoint, "access_key": "ada", "secret_key": "secret", **more}
    return {"ingest": {"buckets": [bucket], "rescan_s": 3600, "document_bytes_max": 1000}}


async def documents(running: Running) -> list[Document]:
    """All document changes, in the order of each document."""
    return [
        Document.FromString(record.value or b"") for record in await records(running.platform.log, topics.DOCUMENTS)
    ]


async def until(running: Running, count: int) -> list[Document]:
    while sum(await running.platform.log.end(topics.DOCUMENTS)) < count:
        await asyncio.sleep(0.02)
    return await documents(running)


@contextlib.asynccontextmanager
async def followed(run_service: RunService, table: dict[str, Any], count: int) -> AsyncIterator[Running]:
    async with run_service(build, settings_tables=table) as running:
        await until(running, count)
        yield running


async def notify(running: Running, *records: Any, tenant: str = "") -> service_pb2.PushRawResponse:
    stub: Any = service_pb2_grpc.IngestServiceStub(running.channel)
    request = service_pb2.PushRawRequest(format="s3", records=[json.dumps(r).encode() for r in records], tenant=tenant)
    answer: service_pb2.PushRawResponse
    (answer,) = [answer async for answer in stub.PushRaw(iter([request]))]
    return answer


def notification(name: str, key: str, sequencer: str, bucket: str = BUCKET) -> Any:
    record = {"eventSource": "minio:s3", "eventName": name, "eventTime": "2026-11-23T17:00:00Z",
              "s3": {"bucket": {"name": bucket}, "object": {"key": key, "sequencer": sequencer}}}  # fmt: skip
    return {"Records": [record]}


async def test_everything_first_then_what_notifications_tell(run_service: RunService, endpoint: str, s3: Any) -> None:
    keys = [f"a/{n}.md" for n in range(3)]
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"first")
    s3.put_object(Bucket=BUCKET, Key="a b+ü.md", Body=b"odd")
    s3.put_object(Bucket=BUCKET, Key="large.md", Body=b"x" * 1001)
    async with followed(run_service, settings(endpoint, access=["staff"]), 4) as running:
        first = {document.document_id: document for document in await documents(running)}
        assert first.keys() == {"policies/a/0.md", "policies/a/1.md", "policies/a/2.md", "policies/a b+ü.md"}
        odd = first["policies/a b+ü.md"]
        assert (odd.content, odd.media_type, list(odd.access)) == (b"odd", "text/markdown", ["staff"])
        assert (odd.reference, odd.uri) == ("", "s3://policies/a b+ü.md")

        s3.put_object(Bucket=BUCKET, Key="a/1.md", Body=b"second")
        answer = await notify(running, notification("s3:ObjectCreated:Put", "a%2F1.md", "16A"))
        assert (answer.accepted, answer.dead_lettered, answer.skipped) == (1, 0, 0)
        assert answer.position_token
        s3.delete_object(Bucket=BUCKET, Key="a/2.md")
        await notify(running, notification("s3:ObjectRemoved:Delete", "a%2F2.md", "16B"))
        found = await documents(running)
        last = {document.document_id: document for document in found}
        assert (last["policies/a/1.md"].content, last["policies/a/1.md"].operation) == (b"second", PUT)
        assert last["policies/a/2.md"].operation == DELETE
        assert last["policies/a/1.md"].position.endswith("16A")
        assert len(found) == 6


async def test_a_listing_of_many_pages_is_read_to_its_end(run_service: RunService, endpoint: str, s3: Any) -> None:
    for n in range(1005):
        s3.put_object(Bucket=BUCKET, Key=f"{n}.md", Body=b"x")
    async with followed(run_service, settings(endpoint), 1005) as running:
        assert len({document.document_id for document in await documents(running)}) == 1005


async def test_an_old_notification_brings_nothing_old_back(run_service: RunService, endpoint: str, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.md", Body=b"now")
    async with followed(run_service, settings(endpoint), 1) as running:
        await notify(running, notification("ObjectRemoved:Delete", "a.md", "1"))
        assert [(d.operation, d.content) for d in await documents(running)] == [(PUT, b"now")] * 2


async def test_what_happened_meanwhile_is_found_at_the_next_start(
    run_service: RunService, endpoint: str, s3: Any
) -> None:
    for name in ("kept", "changed", "gone"):
        s3.put_object(Bucket=BUCKET, Key=f"{name}.md", Body=b"first")
    async with followed(run_service, settings(endpoint), 3):
        pass
    s3.put_object(Bucket=BUCKET, Key="changed.md", Body=b"second")
    s3.delete_object(Bucket=BUCKET, Key="gone.md")
    async with followed(run_service, settings(endpoint), 5) as running:
        found = (await documents(running))[:]
        assert len(found) == 5
        last = {document.document_id: document for document in found}
        assert last["policies/changed.md"].content == b"second"
        assert last["policies/gone.md"].operation == DELETE


async def test_only_what_is_wanted_is_read(run_service: RunService, endpoint: str, s3: Any) -> None:
    for key in ("in/a.md", "in/a.png", "out/a.md", "in/.hidden.md"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    async with followed(run_service, settings(endpoint, prefix="in/", include=["*.md"]), 1) as running:
        assert [document.document_id for document in await documents(running)] == ["policies/in/a.md"]
        answer = await notify(running, notification("ObjectCreated:Put", "out/a.md", "1"))
        assert (answer.accepted, answer.skipped) == (0, 1)


async def test_what_cannot_be_taken_is_given_up_with_the_reason(
    run_service: RunService, endpoint: str, s3: Any
) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.md", Body=b"x")
    async with followed(run_service, settings(endpoint), 1) as running:
        s3.put_object(Bucket=BUCKET, Key="large.md", Body=b"x" * 1001)
        answer = await notify(
            running,
            notification("ObjectCreated:Put", "large.md", "1"),
            notification("ObjectCreated:Put", "a.md", "1", bucket="other"),
        )
        assert (answer.accepted, answer.dead_lettered) == (0, 2)
        assert "more than 1,000 bytes" in answer.errors[0]
        assert "[[ingest.buckets]]" in answer.errors[1]
        letters = await running.platform.log.read(topics.DEAD_LETTERS, 0, 0)
        for partition in range(1, running.platform.log.partitions(topics.DEAD_LETTERS)):
            letters += await running.platform.log.read(topics.DEAD_LETTERS, partition, 0)
        assert len(letters) == 2
        assert len(await documents(running)) == 1


async def test_another_tenant_cannot_read_the_bucket(run_service: RunService, endpoint: str, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.md", Body=b"x")
    async with followed(run_service, settings(endpoint), 1) as running:
        answer = await notify(running, notification("ObjectCreated:Put", "a.md", "1"), tenant="other")
        assert (answer.accepted, answer.dead_lettered) == (0, 1)


async def test_a_store_that_is_away_makes_notifications_wait(run_service: RunService) -> None:
    async with run_service(build, settings_tables=settings("http://127.0.0.1:1")) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await notify(running, notification("ObjectCreated:Put", "a.md", "1"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sum(await running.platform.log.end(topics.DEAD_LETTERS)) == 0


async def test_a_bucket_that_is_missing_takes_no_document_away(run_service: RunService, endpoint: str, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.md", Body=b"x")
    async with followed(run_service, settings(endpoint), 1):
        pass
    s3.delete_object(Bucket=BUCKET, Key="a.md")
    s3.delete_bucket(Bucket=BUCKET)
    try:
        async with run_service(build, settings_tables=settings(endpoint)) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await notify(running, notification("ObjectRemoved:Delete", "a.md", "1"))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert len(await documents(running)) == 1
    finally:
        s3.create_bucket(Bucket=BUCKET)
