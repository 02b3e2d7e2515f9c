"""Bad input and bad surroundings: a clear error that says what, where and the cure; nothing lost, nothing hung."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GOOD = {"source": "crm", "entity": "customers", "op": "insert", "key": {"id": 1},
        "after": {"id": 1, "email": "ada@example.com", "full_name": "Ada"}}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("bad-input")
    (base / "docs").mkdir()
    config = base / "headwater.toml"
    config.write_text(f'[[ingest.folders]]\npath = "{base / "docs"}"\nsource = "docs"\n')
    with serving(base / "data", "--config", str(config)) as running:
        yield running


def headwater(*arguments: str, stdin: bytes | None = None, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


def ingest(server: Server, path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = headwater("ingest", str(path), "--address", server.grpc, "--json", *arguments)
    return done.returncode, json.loads(done.stdout or b"{}"), done.stderr.decode()


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_an_empty_file_is_said_to_be_empty(server: Server, tmp_path: Path) -> None:
    done = headwater("ingest", str(written(tmp_path, "empty.jsonl", b"")), "--address", server.grpc)
    assert b"empty" in done.stdout + done.stderr


def test_a_file_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    done = headwater("ingest", str(tmp_path / "missing.jsonl"), "--address", server.grpc)
    assert done.returncode == 1
    assert b"missing.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("long.jsonl", b'{"x": "' + b"y" * 10_000_000 + b'"}'),
        ("utf8.jsonl", b'{"source": "\xff\xfe"}'),
        ("shape.jsonl", b"[1, 2, 3]"),
        ("cut.jsonl", b'{"source": "crm", "ent'),
        ("fields.jsonl", b'{"source": "crm", "op": "insert"}'),
        ("scalar.jsonl", b"42"),
    ],
)
def test_a_bad_line_is_kept_with_its_reason_and_the_others_go_on(
    server: Server, tmp_path: Path, name: str, bad: bytes
) -> None:
    good = [json.dumps({**GOOD, "key": {"id": f"{name}-{n}"}}).encode() for n in range(2)]
    path = written(tmp_path, name, b"\n".join([good[0], bad, good[1]]) + b"\n")
    status, answer, _ = ingest(server, path)
    totals = answer["files"][str(path)]
    assert (totals["read"], totals["accepted"], totals["dead_lettered"]) == (3, 2, 1)
    assert status == 1
    assert f"{name}:2" in totals["errors"][0]
    assert answer["balanced"]


def test_dead_letters_can_be_listed_shown_and_retried(server: Server, tmp_path: Path) -> None:
    ingest(server, written(tmp_path, "one.jsonl", b'{"broken": \n'))
    entries = json.loads(headwater("dead-letters", "list", "--json", "--address", server.grpc).stdout)
    entry = next(entry for entry in entries if entry["dead_letter"]["origin"].endswith("one.jsonl:1"))
    shown = headwater("dead-letters", "show", str(entry["id"]), "--address", server.grpc)
    assert b'{"broken":' in shown.stdout
    assert headwater("dead-letters", "retry", str(entry["id"]), "--address", server.grpc).returncode == 0
    refused = headwater("dead-letters", "show", "99999999", "--address", server.grpc)
    assert refused.returncode == 1
    assert b"there is no dead letter" in refused.stderr


def test_an_unknown_format_is_refused_with_the_known_ones(server: Server, tmp_path: Path) -> None:
    done = headwater(
        "ingest", str(written(tmp_path, "x.jsonl", b"{}\n")), "--format", "cobol", "--address", server.grpc
    )
    assert done.returncode == 1
    assert b"cobol" in done.stderr
    assert b"native" in done.stderr


def test_an_encrypted_pdf_is_parked_and_blocks_nobody(server: Server, tmp_path: Path) -> None:
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    with (tmp_path / "locked.pdf").open("wb") as out:
        writer.write(out)
    ingest(server, tmp_path / "locked.pdf")
    ingest(server, written(tmp_path, "open.txt", b"The drawbridge code is tangerine."))
    found = json.loads(headwater("search", "drawbridge code", "--json", "--address", server.grpc).stdout)
    assert "tangerine" in found["hits"][0]["text"]
    doctor = headwater("doctor", "--json", "--address", server.grpc)
    documents = next(check for check in json.loads(doctor.stdout) if check["check"] == "documents")
    assert not documents["ok"]
    assert doctor.returncode == 1


def test_a_folder_that_vanishes_loses_no_document(server: Server) -> None:
    docs = Path(server.log.name).parent / "docs"
    (docs / "harbour.txt").write_text("The harbour master is called Ottoline.")
    found: dict[str, Any] = {"hits": []}
    for _ in range(100):
        found = json.loads(headwater("search", "harbour master", "--json", "--address", server.grpc).stdout)
        if any("Ottoline" in hit["text"] for hit in found["hits"]):
            break
        time.sleep(0.1)
    moved = docs.with_name("moved")
    docs.rename(moved)
    time.sleep(2)
    found = json.loads(headwater("search", "harbour master", "--json", "--address", server.grpc).stdout)
    assert any("Ottoline" in hit["text"] for hit in found["hits"])
    moved.rename(docs)
    assert server.process.poll() is None


def test_a_taken_port_is_named_with_the_cure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for option, other in (("--grpc-address", "--http-address"), ("--http-address", "--grpc-address")):
            done = headwater("up", "--data", str(tmp_path / "data"), option, where, other, "127.0.0.1:0")
            assert done.returncode == 1
            assert where.encode() in done.stderr
            assert option.encode() in done.stderr


def test_a_second_process_on_the_same_data_is_refused_and_the_first_goes_on(server: Server) -> None:
    data = Path(server.log.name).with_suffix("")
    done = headwater("up", "--data", str(data), "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    assert done.returncode == 1
    assert b"is in use by process" in done.stderr
    assert headwater("balance", "--data", str(data)).returncode == 0  # commands find the first by its data folder


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a small disk")
def test_a_full_disk_refuses_loses_nothing_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode()}")
    try:
        ballast = disk / "ballast"
        with serving(disk / "data") as running:
            lines = [json.dumps({**GOOD, "key": {"id": n}, "position": n}) for n in range(2000)]
            path = written(tmp_path, "many.jsonl", "\n".join(lines).encode())
            first = ingest(running, path)[1]
            with ballast.open("wb") as out:
                try:
                    while True:
                        out.write(b"x" * 65536)
                        out.flush()
                except OSError:
                    pass
            for _ in range(20):  # the write-ahead log may have room left: it is as long as it was once
                done = headwater("ingest", str(path), "--address", running.grpc, "--no-wait", timeout=120)
                if done.returncode:
                    break
            assert done.returncode == 1
            assert b"free some space" in done.stderr
            ballast.unlink()
            status, after, _ = ingest(running, path)
            assert (status, after["balanced"]) == (0, True)
            assert after["files"][str(path)]["accepted"] == first["files"][str(path)]["accepted"] == 2000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_wrong_usage_ends_with_status_2() -> None:
    assert headwater("ask").returncode == 2
    assert headwater("no-such-command").returncode == 2


@pytest.mark.parametrize(
    "arguments", [("profile", "nobody"), ("ask", "hello", "--as", "nobody"), ("erase", "x", "--yes")]
)
def test_a_malformed_identifier_is_explained(server: Server, arguments: tuple[str, ...]) -> None:
    done = headwater(*arguments, "--address", server.grpc)
    assert done.returncode == 1
    assert b"is not kind:value" in done.stderr


def test_a_server_that_is_not_there_is_named() -> None:
    done = headwater("balance", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert b"127.0.0.1:1" in done.stderr
