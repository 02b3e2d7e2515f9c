"""The entry point: `headwater`."""

import os

import click

# The core of gRPC writes to standard error what our own errors say better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from services.cli import ask, demo, feedback, ingest, operations, people, up
from services.cli.session import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="headwater", message="headwater %(version)s")
def main() -> None:
    """Headwater keeps the context of generative-AI applications live.

    Start with `headwater demo`, or `headwater up` and then `headwater ingest FILE`.
    """


for module in (demo, up, ingest, ask, people, feedback, operations):
    module.add_to(main)

if __name__ == "__main__":
    main()
