#!/usr/bin/env python3
"""Captures `demo/changes/` anew: a real Debezium reads a real PostgreSQL while the SQL files are played.

    capture.py            starts the engines on loopback, captures, stops them, checks
    capture.py --check    only checks the files that are there

Needs Debian's packages kcat (it reads Kafka) and postgresql-client, and what tests/engines/kafka.sh installs.
"""

import argparse
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHANGES = HERE.parent / "changes"
ENGINES = HERE.parent.parent / "tests" / "engines" / "kafka.sh"
PHASE_S_MAX = 60.0
SIZE_MAX = 400_000

# Per phase, what must come out: topic and op ("tombstone" for a null value) -> how often. The capture waits
# for it. A heartbeat of every source belongs to each phase besides.
EXPECTED: dict[str, dict[tuple[str, str], int]] = {
    "00-snapshot": {
        ("crm.public.customers", "r"): 40,
        ("web.public.accounts", "r"): 35,
        ("bookings.public.bookings", "r"): 70,
        ("bookings.public.holds", "r"): 3,
        ("inventory.public.hotels", "r"): 25,
        ("inventory.public.flights", "r"): 30,
    },
    "10-booking-moved": {
        ("bookings.public.bookings", "u"): 2,
        ("inventory.public.hotels", "u"): 2,
        ("inventory.public.flights", "u"): 3,
    },
    "20-merge": {("web.public.accounts", "u"): 1},
    "30-unmerge": {("web.public.accounts", "u"): 1},
    "40-drift": {
        ("crm.public.customers", "u"): 2,
        ("crm.public.customers", "c"): 2,  # the new customer, and the new key of the moved one
        ("crm.public.customers", "d"): 1,
        ("crm.public.customers", "tombstone"): 1,
        ("web.public.accounts", "d"): 1,
        ("web.public.accounts", "tombstone"): 1,
        ("bookings.public.bookings", "c"): 1,
        ("bookings.public.holds", "t"): 1,
        ("inventory.public.hotels", "u"): 2,
    },
}
FIELDS = {"topic", "partition", "offset", "tstype", "ts", "key", "payload"}  # and "headers", if any
SOURCES = ("crm", "web", "bookings", "inventory")
HEARTBEATS = tuple(f"__debezium-heartbeat.{source}" for source in SOURCES)
TABLES = tuple(sorted({topic for phase in EXPECTED.values() for topic, _ in phase}))

Record = dict[str, Any]


class Engines:
    """The engines of one capture, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kafka = f"127.0.0.1:{os.environ.get('KAFKA_PORT', '19092')}"
        self.connect = f"http://127.0.0.1:{os.environ.get('CONNECT_PORT', '18083')}"
        self.postgres_port = os.environ.get("POSTGRES_PORT", "15432")
        self.next_offset: Counter[str] = Counter()

    def run(self, *command: str) -> None:
        """Call kafka.sh."""
        subprocess.run([str(ENGINES), command[0], str(self.folder), *command[1:]], check=True)

    def play(self, script: Path) -> None:
        """Run one SQL file; each changes to the databases it needs."""
        server = ["-h", "127.0.0.1", "-p", self.postgres_port, "-U", "postgres", "-d", "postgres"]
        subprocess.run(["psql", "-q", "-X", *server, "-f", str(script)], check=True)

    def register(self, source: str) -> None:
        """Start the Debezium connector of one source."""
        template = string.Template((HERE / "connector.json").read_text())
        request = urllib.request.Request(
            f"{self.connect}/connectors/{source}/config",
            template.substitute(source=source, port=self.postgres_port).encode(),
            {"Content-Type": "application/json"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()

    def topics(self) -> set[str]:
        """The topics that exist: Connect makes each with its first record."""
        listing = subprocess.run(["kcat", "-b", self.kafka, "-L", "-J"], check=True, capture_output=True)
        return {topic["topic"] for topic in json.loads(listing.stdout)["topics"]}

    def read_new(self) -> Iterator[Record]:
        """What the source topics hold beyond the last call, topic by topic."""
        for topic in sorted(self.topics().intersection(TABLES + HEARTBEATS)):
            offset = str(self.next_offset[topic])
            source = ["-t", topic, "-p", "0", "-o", offset, "-X", "fetch.wait.max.ms=20"]
            kcat = ["kcat", "-b", self.kafka, "-C", "-q", "-J", "-e", *source]
            output = subprocess.run(kcat, check=True, capture_output=True, timeout=30).stdout
            for line in filter(None, output.decode().split("\n")):
                record = json.loads(line)
                record.pop("broker", None)  # newer kcat names the broker: it says nothing about the change
                self.next_offset[topic] = record["offset"] + 1
                yield record


def operation(record: Record) -> str:
    """Debezium's op, "tombstone" for a null value, "heartbeat" where there is no row."""
    if record["payload"] is None:
        return "tombstone"
    return str(json.loads(record["payload"]).get("op", "heartbeat"))


def rows(records: list[Record]) -> dict[tuple[str, str], int]:
    """How often each topic and op occurs, heartbeats left out."""
    return dict(Counter((it["topic"], operation(it)) for it in records if it["topic"] not in HEARTBEATS))


def capture_phase(engines: Engines, phase: str) -> list[Record]:
    """Wait until the phase has come out whole and each source was heard after it; in order of arrival."""
    records: list[Record] = []
    heard: set[str] = set()
    deadline = time.monotonic() + PHASE_S_MAX
    while time.monotonic() < deadline:
        complete = rows(records) == EXPECTED[phase]
        new = list(engines.read_new())
        records += new
        heard |= {record["topic"] for record in new if complete}
        if heard.issuperset(HEARTBEATS):
            return sorted(records, key=lambda record: (record["ts"], record["topic"], record["offset"]))
        time.sleep(0.3)
    raise TimeoutError(f"{phase}: {PHASE_S_MAX:.0f} s brought {rows(records)}, not {EXPECTED[phase]}")


def capture(folder: Path) -> None:
    """Play the story once and write one file a phase."""
    engines = Engines(folder)
    try:
        engines.run("start")
        engines.play(HERE / "schema.sql")
        for phase in EXPECTED:
            engines.play(HERE / f"{phase}.sql")
            if phase == "00-snapshot":
                for source in SOURCES:
                    engines.register(source)
            records = capture_phase(engines, phase)
            lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records]
            (CHANGES / f"{phase}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{phase}: {len(lines)} records")
    finally:
        engines.run("stop")


def check() -> list[str]:
    """What is wrong with the files; nothing when they are as the story wants them."""
    faults: list[str] = []
    last: Counter[str] = Counter()
    for phase, wanted in EXPECTED.items():
        text = (CHANGES / f"{phase}.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        for number, record in enumerate(records, 1):
            json.loads(record["key"] or "null")
            if set(record) - {"headers"} != FIELDS:
                faults.append(f"{phase}:{number}: has the fields {sorted(record)}")
            if record["offset"] != last[record["topic"]]:
                faults.append(f"{phase}:{number}: offset {record['offset']} is not the topic's next")
            last[record["topic"]] = record["offset"] + 1
        if rows(records) != wanted:
            faults.append(f"{phase}: holds {rows(records)}, not {wanted}")
        if silent := set(HEARTBEATS) - {record["topic"] for record in records}:
            faults.append(f"{phase}: no heartbeat in {sorted(silent)}")
        if "999.00" in text:
            faults.append(f"{phase}: shows a transaction that was rolled back")
    size = sum(path.stat().st_size for path in CHANGES.glob("*.jsonl"))
    if size > SIZE_MAX:
        faults.append(f"the files have {size} bytes, more than {SIZE_MAX}")
    return faults


def main() -> int:
    """Capture unless told only to check; the exit status is 1 when the files are not as they should be."""
    parser = argparse.ArgumentParser(description="Capture demo/changes/ anew, and check it.")
    parser.add_argument("--check", action="store_true", help="do not capture, only check the files")
    if not parser.parse_args().check:
        folder = Path(tempfile.mkdtemp(prefix="headwater-capture-"))
        capture(folder)
        shutil.rmtree(folder)  # kept, with its logs, when the capture failed
    faults = check()
    print("\n".join(faults) or "demo/changes is as it should be")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
