"""A TCP proxy between services and an engine, whose traffic can stand still: a network that is interrupted."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

CHUNK_BYTES = 64 << 10


class Proxy:
    """Hands on what comes in at `port` of loopback to another port, and the answers back, in a thread of its own."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ended = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError(f"the proxy at port {port} does not start")

    def pause(self) -> None:
        """Hand nothing on: both sides see a peer that is silent. Connections stay, new ones are accepted and silent."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        """Hand on again, beginning with what was held back."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self) -> None:
        """End every connection, as a machine between them that starts anew would."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """Stop listening, and end every connection."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, started: threading.Event) -> None:
        async with await asyncio.start_server(self._connect, "127.0.0.1", self.port):
            started.set()
            await self._ended.wait()
            self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._kept(writer):
            await self._flows.wait()
            try:
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return  # nobody is there: the client sees its connection end
            with self._kept(back):
                ways = [asyncio.ensure_future(self._hand_on(*way)) for way in ((reader, back), (there, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    @contextlib.contextmanager
    def _kept(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
