# kvmeta: `make` prints what can be made. Everything runs in .venv, which `make venv` fills.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed
PROTOS_VENV := .venv-protos
PROTOS_MARK := $(PROTOS_VENV)/.installed
TORCH_VENV := .venv-torch
TORCH_MARK := $(TORCH_VENV)/.installed
MINUTES ?= 30
WORK ?= faults
# A process for each of up to 4 cores, which take file after file.
SHARED := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PEER_PACKAGES := redis-server postgresql-15 fio libcurl4 libibverbs1 libnuma1

# every target that is explained
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*## .*/\1/p' Makefile)

help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

venv: $(MARK) ## make .venv with the package and what its tests need

$(MARK): pyproject.toml
	@echo "installing kvmeta and what its tests need into $(VENV); about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

torch-venv: $(TORCH_MARK) ## make .venv-torch with PyTorch, for the data-loader tests of `make test-system`

$(TORCH_MARK): pyproject.toml
	@echo "installing PyTorch into $(TORCH_VENV); some minutes"
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 --editable '.[engine]'
	@touch $@

demo: $(MARK) ## the main job on real files: pack, index, look up, read back, verify
	$(BIN)/python -m bench.demo

test: $(MARK) ## every test that needs no root and no Debian package (under 10 minutes)
	$(BIN)/python -m pytest $(SHARED)

test-quick: $(MARK) ## after each edit: the tests that start no process and take under a second (a minute)
	$(BIN)/python -m pytest $(SHARED) -m 'not system and not slow' tests/unit tests/contract

test-system: $(MARK) ## tests that need root, a mount or a Debian package; each skips with its reason
	$(BIN)/python -m pytest -m system tests

flips: $(MARK) ## damage every byte of every kind of file (a quarter of an hour on two cores of its own; resumable)
	$(BIN)/python -m tests.crash.flips
power-cuts: $(MARK) ## cut the power 1,000 times under ext4 and xfs, and without syncs as the control (root; resumable)
	$(BIN)/python -m tests.system power-cuts --work $(WORK)/power-cuts --json $(WORK)/power-cuts.json

syscalls: $(MARK) ## fail, kill or cut short each system call of a workload, over 4,000 points (root, strace; resumable)
	$(BIN)/python -m tests.system syscalls --work $(WORK)/syscalls --json $(WORK)/syscalls.json

bench-engine: $(MARK) ## the engine's figures, quick form (under 2 minutes)
	$(BIN)/python -m bench.engine --quick

bench-engine-full: $(MARK) ## the engine's figures with 60M rows
	$(BIN)/python -m bench.engine --full
	$(BIN)/python -m bench.readme

bench-service: $(MARK) ## the service's figures, quick form (under 2 minutes once its store is built)
	$(BIN)/python -m bench.service --quick

bench-service-full: $(MARK) ## the service's figures with 60M rows
	$(BIN)/python -m bench.service --full
	$(BIN)/python -m bench.readme

bench-peers-install: $(MARK) ## what the comparison and the growth benchmark measure against, from Debian and PyPI
	command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && { apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PEER_PACKAGES); } || \
	echo "not root or not Debian: install $(PEER_PACKAGES) yourself, or those peers are left out"
	@echo "installing what is measured against from PyPI into $(VENV); about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'

bench-compare: $(MARK) ## kvmeta beside its peers, quick form
	$(BIN)/python -m bench.compare --quick

bench-compare-full: $(MARK) ## kvmeta beside its peers with 20M rows
	$(BIN)/python -m bench.compare --full; status=$$?; $(BIN)/python -m bench.readme; exit $$status

bench-scale: $(MARK) ## growth from 1M to 10M rows, warm and cold
	$(BIN)/python -m bench.scale --quick

bench-scale-full: $(MARK) ## growth from 1M to 1B rows (where the disk allows), warm and cold; resumable
	$(BIN)/python -m bench.scale --full; status=$$?; $(BIN)/python -m bench.readme; exit $$status

bench-cluster: $(MARK) ## a cluster on this machine: death, growth, routing, no etcd; 500,000 entries
	$(BIN)/python -m bench.cluster --quick

bench-cluster-full: $(MARK) ## the same with 5 M entries, and placement to 1,000 nodes
	$(BIN)/python -m bench.cluster --full; status=$$?; $(BIN)/python -m bench.placement --full && $(BIN)/python -m bench.readme; exit $$status

bench-report: $(MARK) ## make the measured parts of README, operating.md and RESULTS.md, plots and the planner's figures
	$(BIN)/python -m bench.readme

SEEDS ?= 1000
FIRST ?= 1

sim: $(MARK) ## simulate clusters under faults: SEEDS=1000 from FIRST=1 on; a seed that fails prints what replays it
	$(BIN)/python -m kvmeta_server.simulator --first $(FIRST) --seeds $(SEEDS)

sim-release: $(MARK) ## the same with 100,000 seeds; resumable, recorded in bench/data/sim.jsonl
	mkdir -p bench/data && $(BIN)/python -m kvmeta_server.simulator --seeds 100000 --record bench/data/sim.jsonl

mutants: $(MARK) ## plant faults in the cluster's rules and look for the seeds that notice them (half an hour)
	$(BIN)/python -m tests.simulation.mutants

chaos: $(MARK) ## as root: faults on a cluster in network namespaces, for MINUTES=30; resumable by JSON=file; PLANT=one of tests/simulation/mutants.py must be noticed
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(JSON),--json $(JSON)) $(if $(PLANT),--plant $(PLANT))

lint: $(MARK) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK) ## mypy, strict
	$(BIN)/mypy

layers: $(MARK) ## imports point one way
	$(BIN)/lint-imports

protos: $(PROTOS_MARK) $(MARK) ## check the protocol; generate kvmeta/v1 and the page's table of calls from it
	protos/generate.sh $(PROTOS_VENV)/bin
	$(BIN)/python -m protos.table

protos-check: $(PROTOS_MARK) ## the protocol breaks no promise, and kvmeta/v1 is what it generates
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && protos/generate.sh $(PROTOS_VENV)/bin "$$out" && \
	diff -r -x __init__.py -x __pycache__ "$$out/kvmeta/v1" kvmeta/v1 && \
	for file in "$$out"/server/kvmeta_server/cluster/*; do diff "$$file" "$${file#$$out/}"; done

$(PROTOS_MARK): protos/requirements.txt
	@echo "installing what checks and generates the protocol into $(PROTOS_VENV); about half a minute"
	$(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

fuzz: $(MARK) ## fuzz every decoder with atheris, MINUTES=30 for all together; findings stay in build/fuzz
	@echo "installing the fuzzer into $(VENV); about half a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(JSON),--json $(JSON))

hostile: $(MARK) ## every attack on a server at full size, a healthy client beside it (10 minutes)
	$(BIN)/python -m tests.hostile

format: $(MARK) ## let ruff lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint types layers ## everything but the tests

clean: ## remove what was made here
	rm -rf $(VENV) $(PROTOS_VENV) tests/node/node_modules $(TORCH_VENV) demo $(WORK) bench/data .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
