"""Runs the gateway alone, with its page and HTTP APIs: `python -m services.rag_gateway`."""

from services.kernel.runner import main
from services.rag_gateway.app import build
from services.rag_gateway.http_api import build_http

if __name__ == "__main__":
    main(build, build_http)
