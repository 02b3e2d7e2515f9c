"""A `headwater up` for benchmarks and crash tests: a process of its own, on free ports, watched from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

READY_TIMEOUT_S = 60.0


class Server:
    """A running `headwater up`.

    Attributes:
        process: the process.
        grpc: its gRPC address.
        http: the page's URL.
        ready_s: seconds from the process's start until it answered.
    """

    def __init__(self, data: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        started = time.perf_counter()
        note = data / "server.json"
        note.unlink(missing_ok=True)
        self.log = (data.parent / f"{data.name}.log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "services.cli.main", "up", "--data", str(data),
                "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", *arguments,
            ],
            stdout=self.log, stderr=self.log, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        while not note.exists() or not note.read_text().endswith("}"):
            if self.process.poll() is not None or time.perf_counter() - started > READY_TIMEOUT_S:
                self.kill()
                raise RuntimeError(f"headwater up did not start; see {self.log.name}")
            time.sleep(0.005)
        self.ready_s = time.perf_counter() - started
        addresses = json.loads(note.read_text())
        self.grpc, self.http = addresses["grpc"], addresses["http"]

    def memory_mib(self, what: str = "VmHWM") -> float:
        """Return the peak (VmHWM) or current (VmRSS) resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"no {what} of process {self.process.pid}")

    def cpu_s(self) -> float:
        """Return the processor time that the process has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.log.close()

    def stop(self) -> int:
        """Ask the process to stop; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.log.close()
        return status


@contextlib.contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Server]:
    """Run a server for the length of a block."""
    server = Server(data, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
