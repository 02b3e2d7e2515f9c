"""Runs the service alone, with its HTTP API: `python -m services.ingest`."""

from services.ingest.app import build
from services.ingest.http_api import build_http
from services.kernel.runner import serve_http

if __name__ == "__main__":
    serve_http(build, build_http)
