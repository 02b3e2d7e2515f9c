# One command runs the main job, one passes the tests; each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo up cluster test check laws engines bench browser helm kube test-torch clean

help:       ## List the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(shell find protos -name '*.proto')
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headwater needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

setup: $(STAMP) ## Make the virtual environment

demo: $(STAMP) ## Take the tour on shipped data
	$(BIN)/headwater demo

up: $(STAMP) ## Run every service in one process
	$(BIN)/headwater up

cluster: $(STAMP) ## Run every service by itself on real engines, which are fetched and started; DATA=folder keeps them
	$(BIN)/python -m tests.engines.cluster $(if $(DATA),--data $(DATA))

test: $(STAMP) ## Run the quick tests
	$(BIN)/python -m pytest -q

laws: $(STAMP) ## Run the slow tests too: crashes, end-to-end processes
	$(BIN)/python -m pytest -q -m "slow and not engine"

engines: $(STAMP) ## Run the tests that need real engines, which are fetched and started
	HEADWATER_ENGINES=1 $(BIN)/python -m pytest -q -m engine -o timeout=300 -W default::pytest.PytestUnraisableExceptionWarning

browser: $(STAMP) ## Run the page's tests in a real Chromium
	$(BIN)/python -m pytest -q -m browser

helm: $(STAMP) ## Test the Helm chart; builds Helm with Go, minutes the first time
	tests/engines/helm.sh install
	$(BIN)/python -m pytest -q -m slow tests/contract/test_helm_chart.py

kube: $(STAMP) ## Install the chart on a real API server; builds it and Helm with Go, a quarter of an hour the first time
	tests/engines/helm.sh install
	tests/engines/kube.sh install
	$(BIN)/python -m pytest -q -m slow tests/contract/test_helm_release.py

test-torch: $(STAMP) ## Compare with sentence-transformers; installs PyTorch, gigabytes
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[sentence-transformers]'
	$(BIN)/python -m pytest -q -m torch

check: $(STAMP) ## Format, lint, types, layers, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

bench: $(STAMP) ## Measure what the README claims
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.freshness
	$(BIN)/python -m benchmarks.retrieval

clean:      ## Remove what the other targets made
	rm -rf $(VENV) protos/gen .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
