"""What the HTTP routes of all services share: they are mounted into one application, behind one middleware."""

from aiohttp import web

TENANT = web.RequestKey("headwater_tenant", str)


def tenant_of(request: web.Request) -> str:
    """Return the tenant that the middleware has found for a request; empty means the default one."""
    tenant: str = request.get(TENANT, "")
    return tenant
