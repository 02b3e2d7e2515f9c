"""Runs the service alone, with its HTTP API: `python -m services.ingest`."""

from services.ingest.app import build
from services.ingest.http_api import build_http
from services.kernel.runner import main

if __name__ == "__main__":
    main(build, build_http)
