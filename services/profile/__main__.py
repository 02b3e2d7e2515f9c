"""Runs the profile service alone: `python -m services.profile`."""

from services.kernel.runner import main
from services.profile.app import build

if __name__ == "__main__":
    main(build)
