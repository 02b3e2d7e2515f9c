"""Asks a process for its health, for supervisors that run a command: `python -m services.kernel.health [host:port]`.

Without an address it asks where the settings say that gRPC is served. Exit status 0 when every service does its work.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kernel.errors import HeadwaterError, UnavailableError, from_rpc
from services.kernel.settings import address, load

TIMEOUT_S = 3.0


def check(at: str) -> None:
    """Ask once.

    Args:
        at: host:port of gRPC.

    Raises:
        InvalidInputError: that is no address.
        UnavailableError: nothing answers there, or a service cannot do its work.
    """
    address(at, "address")
    with grpc.insecure_channel(at) as channel:
        try:
            found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc(error, at) from error
    if found.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"{at} is not serving: its log says which service fails, and why")


def main() -> None:
    """Run the command."""
    try:
        check(sys.argv[1] if len(sys.argv) > 1 else load().grpc_address)
    except HeadwaterError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
