"""Runs the embedder alone: `python -m services.embedder`."""

from services.embedder.app import build
from services.kernel.runner import main

if __name__ == "__main__":
    main(build)
