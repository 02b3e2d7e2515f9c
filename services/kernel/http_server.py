"""What the HTTP routes of all services share: one application a process, its middleware, metrics and health.

Only requests of the same origin are answered. On a loopback address only loopback host names are, so that a page
elsewhere cannot reach in by a name of its own (DNS rebinding). The tenant is the header `X-Headwater-Tenant`, which
whatever authenticates in front of this server sets; without it the default tenant.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware
from grpc import RpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.kernel.errors import HeadwaterError, UnavailableError, from_rpc
from services.kernel.http_errors import error_response, http_error_response
from services.kernel.service import Platform
from services.kernel.settings import address

BODY_BYTES_MAX = 1 << 20
TENANT = web.RequestKey("headwater_tenant", str)
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AddRoutes = Callable[[web.Application, Platform], None]


def tenant_of(request: web.Request) -> str:
    """Return the tenant that the middleware has found for a request; empty means the default one."""
    tenant: str = request.get(TENANT, "")
    return tenant


def application_of(platform: Platform, service: str) -> web.Application:
    """Return the HTTP application of a process, with `/metrics` and `/healthz`, for an `aiohttp.web.AppRunner`.

    Args:
        platform: where it is to listen, and where the services are reached.
        service: a service of this process, which knows the health of all of it.
    """
    host, _ = address(platform.settings.http_address, "http_address")
    application = web.Application(
        client_max_size=BODY_BYTES_MAX, middlewares=[_answer_errors, _fence(local_only=_is_loopback(host))]
    )
    application.router.add_get("/metrics", _metrics)
    application.router.add_get("/healthz", _health(platform, service))
    return application


@contextlib.asynccontextmanager
async def listening(application: web.Application, http_address: str) -> AsyncIterator[str]:
    """Serve an application for the length of a block; yields its URL.

    Raises:
        UnavailableError: the address is taken.
    """
    host, port = address(http_address, "http_address")
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UnavailableError(
                f"cannot serve the page on {http_address} ({error.strerror}): is another process there? Choose another "
                "address with --http-address or HEADWATER_HTTP_ADDRESS (port 0 takes a free one)"
            ) from error
        yield f"http://{host}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Make every error a JSON document that says what, where and what to do."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = http_error_response(error, request)
    except HeadwaterError as error:
        response = error_response(error)
    except RpcError as error:
        response = error_response(from_rpc(error, request.path))
    if not response.prepared:
        response.headers.update(_HEADERS)
    return response


def _fence(*, local_only: bool) -> Middleware:
    @web.middleware
    async def fence(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse other origins, and host names that are not this machine's; name the tenant."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"requests from {origin} are refused: open the page at its own address")
        if local_only and not _is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            raise web.HTTPForbidden(
                text=f"this server listens on a loopback address and does not answer as {request.host}: use "
                "http://127.0.0.1 or http://localhost, or set http_address to the address that it should answer on"
            )
        request[TENANT] = request.headers.get("x-headwater-tenant", "")
        return await handler(request)

    return fence


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})


def _health(platform: Platform, service: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        """200 while every service does its work, else 503."""
        stub = health_pb2_grpc.HealthStub(platform.peers.channel(service))
        found = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
        serving = found.status == health_pb2.HealthCheckResponse.SERVING
        return web.json_response({"status": "ok" if serving else "not serving"}, status=200 if serving else 503)

    return answer
