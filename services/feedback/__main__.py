"""`python -m services.feedback`: this service alone."""

from services.feedback.app import build
from services.kernel.runner import main

if __name__ == "__main__":
    main(build)
