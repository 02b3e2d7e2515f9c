"""`python -m services.rag_gateway`: the gateway alone, on the log and database of its configuration."""

from services.kernel.runner import main
from services.rag_gateway.app import build

if __name__ == "__main__":
    main(build)
