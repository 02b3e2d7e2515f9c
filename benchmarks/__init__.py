"""A command per claim: `python -m benchmarks.<name>`; each keeps its last result in `benchmarks/results/`."""
