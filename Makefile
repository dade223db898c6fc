# `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := --editable '.[dev,test]' --editable './clients/python[sqlalchemy,psycopg,langgraph,directus]'

# Each process has a PostgreSQL of its own; one that is given is shared, and its roles are everybody's.
PYTEST_ARGS ?= $(if $(TEST_DATABASE_URL),,--numprocesses 3 --dist worksteal)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench mutants lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready ## set up .venv with everything

$(VENV)/ready: pyproject.toml clients/python/pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --constraint requirements.lock $(INSTALLED); \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock $(INSTALLED); \
	fi
	@touch $@

demo: setup ## start a database, the hub and a pipeline that writes rows; prints an address
	@$(BIN)/rowcast dev

test: setup ## run the tests (PYTEST_ARGS=… passes arguments)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## lint, types, and which module may import which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

bench: setup ## measure, side by side in one run
	@$(BIN)/python bench/run.py

mutants: setup ## break each invariant on purpose, and see a test fail
	@$(BIN)/python tests/mutants.py

lock: setup ## pin what the tests passed with
	@$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean: ## remove .venv and caches; .rowcast (data of the demo) stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
