"""Runs the identity graph alone: `python -m services.identity_graph`."""

from services.identity_graph.app import build
from services.kernel.runner import main

if __name__ == "__main__":
    main(build)
