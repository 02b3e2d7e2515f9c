"""Runs the service alone: `python -m services.ingest`."""

from services.ingest.app import build
from services.kernel.runner import main

if __name__ == "__main__":
    main(build)
