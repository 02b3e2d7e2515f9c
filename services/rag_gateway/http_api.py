"""The gateway's HTTP edge: the page, its JSON endpoints and the OpenAI-compatible API."""

from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from services.kernel.http_server import AddRoutes, Handler, application_of
from services.kernel.service import Platform
from services.rag_gateway.conversations import SERVICE
from services.rag_gateway.openai_api import OpenAiRoutes
from services.rag_gateway.page_api import PageRoutes

PAGE = Path(__file__).parent / "page"
_FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def build_http(platform: Platform, extra_routes: Sequence[AddRoutes] = ()) -> web.Application:
    """Return the HTTP application of a process, for an `aiohttp.web.AppRunner`.

    Args:
        platform: where the services are reached by gRPC, and the log.
        extra_routes: each mounts routes of another service; its handlers find the tenant with `tenant_of`.
    """
    application = application_of(platform, SERVICE)
    for name, media_type in _FILES.items():
        handler = _file((PAGE / name).read_bytes(), media_type)
        application.router.add_get("/" if name == "index.html" else f"/{name}", handler)
    OpenAiRoutes(platform).add_to(application.router)
    PageRoutes(platform).add_to(application.router)
    for add in extra_routes:
        add(application, platform)
    return application


def _file(body: bytes, media_type: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=media_type, charset="utf-8", headers={"cache-control": "no-cache"})

    return answer
