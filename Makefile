# kvmeta: `make` prints what can be made. Everything runs in .venv, which `make venv` fills.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed

.PHONY: help venv demo test test-system bench-engine bench-engine-full lint types layers format check clean

help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

venv: $(MARK) ## make .venv with the package and what its tests need

$(MARK): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(MARK) ## the main job on real files: pack, index, look up, read back, verify
	$(BIN)/python -m bench.demo

test: $(MARK) ## every test that needs no root and no Debian package (under 10 minutes)
	$(BIN)/python -m pytest

test-system: $(MARK) ## tests that need root, a mount or a Debian package; each skips with its reason
	$(BIN)/python -m pytest -m system tests

bench-engine: $(MARK) ## the engine's figures, quick form (under 2 minutes)
	$(BIN)/python -m bench.engine --quick

bench-engine-full: $(MARK) ## the engine's figures with 60M rows
	$(BIN)/python -m bench.engine --full
	$(BIN)/python -m bench.readme

lint: $(MARK) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK) ## mypy, strict
	$(BIN)/mypy

layers: $(MARK) ## imports point one way
	$(BIN)/lint-imports

format: $(MARK) ## let ruff lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint types layers ## everything but the tests

clean: ## remove what was made here
	rm -rf $(VENV) demo bench/data .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
