"""How a command reaches the services, and how it answers: shared by all commands.

A command talks gRPC: to the server that `--address` names, else to the services of the cluster that [peers] of the
configuration names, else to the process that serves the data folder, else to the services started for the length of
the command.
"""

import asyncio
import contextlib
import functools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from services.kernel.errors import HeadwaterError, InvalidInputError, from_rpc
from services.kernel.settings import Settings, load

PIPE_COLUMNS = 120
Command = Callable[..., Coroutine[Any, Any, None]]

_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document."),
    click.option("--address", help="The gRPC address of a running server; by default the one of the data folder."),
    click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder."),
    click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), help="The configuration, headwater.toml."
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """What a command is given.

    Attributes:
        settings: the configuration.
        as_json: whether to answer for machines.
        address: a server's address, where the person named one.
        console: where a person reads; progress goes to standard error.
    """

    settings: Settings
    as_json: bool
    address: str | None
    console: Console
    progress: Console

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        """Yield a channel to the services, wherever they are; failed calls raise HeadwaterErrors."""
        import grpc

        from services.embedded import ephemeral, installation, running_address
        from services.kernel.service import CHANNEL_OPTIONS

        peers = {} if self.address else self.settings.table("peers")
        address = self.address or (", ".join(map(str, peers.values())) or running_address(self.settings.data))
        async with contextlib.AsyncExitStack() as stack:
            if peers:
                from services.cli.cluster import ClusterChannel

                channels = {
                    name: await stack.enter_async_context(grpc.aio.insecure_channel(at, options=CHANNEL_OPTIONS))
                    for name, at in peers.items()
                }
                try:
                    yield ClusterChannel(channels)
                except grpc.aio.AioRpcError as error:
                    raise from_rpc(error, address or "") from error
                return
            if address is None:
                runtime = await stack.enter_async_context(installation(ephemeral(self.settings)))
                address = runtime.address
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
            try:
                yield channel
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, address) from error

    def answer(self, document: Any) -> None:
        """Print the answer for machines."""
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def command(group: click.Group, name: str, **attributes: Any) -> Callable[[Command], click.Command]:
    """Make an async function a command with the common options; it is given a Session first."""

    def wrap(function: Command) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, address: str | None, data: Path | None, config: Path | None, **arguments: Any) -> None:
            from services.kernel import telemetry

            settings = load(config, options={"data": data})
            # Beside an answer, only what is wrong is worth a line.
            telemetry.configure_logging("WARNING", as_json=settings.log_json)
            # Into a file or a pipe, lines are not cut to the 80 columns of a terminal that is not there.
            width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
            console = Console(soft_wrap=True, width=width)
            session = Session(settings, as_json, address, console, Console(stderr=True))
            asyncio.run(function(session, **arguments))

        for option in _OPTIONS:
            run = option(run)
        return group.command(name, **attributes)(run)

    return wrap


class Group(click.Group):
    """A command group that ends with status 1 and one clear line when a request is refused or fails."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except HeadwaterError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


def identifier(text: str) -> Any:
    """Parse kind:value; raises InvalidInputError when it is none."""
    from headwater.common.v1 import common_pb2

    kind, separator, value = text.partition(":")
    if not separator or not kind or not value:
        raise InvalidInputError(
            f"{text!r} is not kind:value, for example email:ada@example.com or record:crm/customers/42"
        )
    return common_pb2.Identifier(kind=kind, value=value)


def document(message: Any) -> Mapping[str, Any]:
    """Return a message as JSON-ready values, with the names of `protos/`."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
