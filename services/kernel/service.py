"""What a service is made of, and what it is given: the two halves of `build(platform) -> Service`."""

import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from headwater.common.v1 import operations_pb2
from services.kernel.log import Log, Record
from services.kernel.processor import Processor
from services.kernel.settings import Settings
from services.kernel.sqlite import Database

MESSAGE_BYTES_MAX = 32 << 20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)


# Where a name stands for several addresses (`dns:///profile.ns.svc:7070`), calls go to each in turn. They are looked up
# again whenever a connection ends, and servers end theirs now and then (`grpc_server.CONNECTION_AGE_S`).
PEER_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin"))


class Peers:
    """Channels to the other services, which may be in this process or elsewhere."""

    def __init__(self, addresses: Callable[[str], str]) -> None:
        self._addresses = addresses
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, service: str) -> grpc.aio.Channel:
        """Return the channel to a service, for example `profile`."""
        address = self._addresses(service)
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=PEER_OPTIONS)
        return self._channels[address]

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


@dataclass(frozen=True, slots=True)
class Platform:
    """What every service is given.

    Attributes:
        log: the log.
        database: the embedded installation's database.
        settings: the whole configuration.
        clock: the time, in seconds since the epoch.
        peers: channels to the other services.
    """

    log: Log
    database: Database
    settings: Settings
    clock: Callable[[], float]
    peers: Peers


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A store that can be dropped and made again from the log.

    Attributes:
        name: the store's name, as `headwater rebuild` takes it.
        groups: the consumer groups that build it, upstream first.
        reset: empties it, within the open unit of work.
        hash: the hash of its state as of a snapshot; functions of the history alone, not of when or how often.
        internal_topics: topics from one of the groups to another: these are published again in a rebuild.
        seed_topic: the service's own compacted output that a rebuild reads first, for what the inputs alone do not
            tell once they have been compacted (generations, first sightings).
        seed: takes records of `seed_topic`, within the open unit of work.
        reload: called after a rebuild, for caches.
        settled: waits until background work that builds the store is done too.
    """

    name: str
    groups: tuple[str, ...]
    reset: Callable[[], Awaitable[None]]
    hash: Callable[[sqlite3.Connection], Awaitable[str]]
    internal_topics: tuple[str, ...] = ()
    seed_topic: str | None = None
    seed: Callable[[Sequence[Record]], Awaitable[None]] | None = None
    reload: Callable[[], Awaitable[None]] | None = None
    settled: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """What `build(platform)` of a service returns.

    Attributes:
        name: the service's name.
        register: adds its servicers to a server.
        service_names: the full names of its gRPC services, for health and reflection.
        processors: its consumer groups.
        background: long-running work; each is started as a task, restarted when it fails, cancelled at the end.
        stores: its read models.
        start: called once before anything runs.
        stop: called once after everything has stopped.
        waiting: per consumer group, how many inputs wait for a retry just now.
        checks: what `headwater verify` asks of the service beside the laws that hold for all.
        erases: whether it takes part in erasures and acknowledges them.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    service_names: Sequence[str]
    processors: Sequence[Processor[Any]] = ()
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    stores: Sequence[ReadModel] = ()
    start: Callable[[], Awaitable[None]] | None = None
    stop: Callable[[], Awaitable[None]] | None = None
    waiting: Callable[[], Awaitable[Mapping[str, int]]] | None = None
    checks: Callable[[], Awaitable[Collection[operations_pb2.Check]]] | None = None
    erases: bool = True
