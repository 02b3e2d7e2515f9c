"""How benchmarks tell what they found: a line a figure, and the last result as JSON beside them."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the maximum, by nearest rank."""
    ordered = sorted(values)
    ranks = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[max(0, -(-int(len(ordered) * rank * 100) // 100) - 1)], 2) for name, rank in ranks.items()
    }


def report(name: str, figures: Mapping[str, Any]) -> None:
    """Print the figures and keep them as the benchmark's last result."""
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    for key, value in figures.items():
        print(f"{key}: {value}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
