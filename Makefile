# make demo and make test need only python3 (3.11+), make and pip; uv is used when it is there. A second call installs nothing.
SHELL  := /bin/sh
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements.lock
UV     := $(shell command -v uv 2>/dev/null)

.PHONY: help setup demo test test-fast cluster fuzz lint lock clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## the environment in .venv, exactly as locked

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; use make PYTHON=python3.11"; exit 1; }
ifneq ($(UV),)
	"$(UV)" venv -q --python $(PYTHON) --seed $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.ready: $(BIN)/python $(LOCK) pyproject.toml
ifneq ($(UV),)
	"$(UV)" pip install -q --python $(BIN)/python --require-hashes -r $(LOCK)
	"$(UV)" pip install -q --python $(BIN)/python --no-deps -e .
else
	$(BIN)/python -m pip install -q --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install -q --no-deps -e .
endif
	@touch $@

demo: setup      ## the whole method on generated shapes, with a page of results (10 CPU minutes)
	$(BIN)/python src/train.py experiment=demo $(if $(tracking),tracking=$(tracking))

test: setup      ## every test; the same as CI
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not cluster"

test-fast: setup ## the tests that take seconds
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not cluster"

cluster: setup   ## runs, sweeps and nodes on a Slurm and on network namespaces of the tests' own (Linux, root, slurm-wlm, munge)
	$(BIN)/python -m pytest -q -s -m cluster tests/cluster

fuzz: setup      ## all options, inside and outside their ranges, for MINUTES (30) from seed FIRST (0); then damaged data and weights files
	LDMLAB_FUZZ_MINUTES=$(or $(MINUTES),30) LDMLAB_FUZZ_FIRST=$(or $(FIRST),0) $(BIN)/python -m pytest -q -s --timeout=0 tests/fuzz/test_fuzz_config.py
	LDMLAB_FUZZ_FILES=2000 $(BIN)/python -m pytest -q --timeout=0 tests/fuzz/test_fuzz_files.py

lint: setup      ## ruff, mypy and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

lock: ## requirements.lock from pyproject.toml: hashes, no hosts (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --no-annotate --no-header --generate-hashes -o $(LOCK)

clean: ## caches and the environment; the store stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
