# Every target makes .venv by itself, and mends it when the pinned requirements have changed.
# PYTHON=python3.12 make … picks the interpreter that .venv is made with (3.11 or newer).

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
BENCH  := .venv/.bench
UV     := uv==0.13.9
ARGS   ?=
MINUTES ?= 8
SEED   ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run demo test faults check format bench bench-quick bench-expiry lock

help: ## Show this help
	@echo "tcc: reserve several things safely, or not at all. Usage: make <target> [ARGS='…']"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

run: $(READY) ## The whole service on real PostgreSQL and Valkey, no Docker; data is kept under .tcc/
	@$(BIN)/tcc dev $(ARGS)

demo: $(READY) ## Play orders that confirm, sell out, are declined, expire and crash, and check the invariants
	@$(BIN)/tcc demo $(ARGS)

test: $(READY) ## Run the tests, on real servers; ARGS='-k name' for some of them
	$(BIN)/python -m pytest $(ARGS)

faults: $(READY) ## Break everything on purpose, under load: about 10 minutes; MINUTES=30 SEED=7 for another run
	@$(BIN)/python -m tests.faults --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(READY) ## Formatting, lint, types, and the layers between modules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Put formatting and imports right
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(BENCH) ## Measure everything, next to what others would build, and write docs/performance.md: about 15 minutes
	@$(BIN)/python -m bench.run $(ARGS)

bench-quick: $(READY) ## Throughput as a ratio to a no-op endpoint, in under a minute
	@$(BIN)/python -m bench.quick $(ARGS)

bench-expiry: $(READY) ## How long 100,000 abandoned tries take to be given back, while the API serves
	@$(BIN)/python -m bench.expiry $(ARGS)

PIN = $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
	--universal --python-version 3.11 pyproject.toml

lock: $(READY) ## Pin the requirements anew after a change of pyproject.toml; ARGS=--upgrade for newer releases
	$(BIN)/python -m pip install --quiet '$(UV)'
	$(PIN) $(ARGS) --output-file requirements.txt
	$(PIN) $(ARGS) --extra dev --constraint requirements.txt --output-file requirements-dev.txt
	$(PIN) $(ARGS) --extra bench --constraint requirements-dev.txt --output-file requirements-bench.txt

# Modules are compiled when they are first imported, not all at once now: that is a third of the install's time.
$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tcc needs Python 3.11 or newer: install it, or name it, as in  make PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv (about half a minute, once) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH): requirements-bench.txt $(READY)
	@echo "Installing what is compared with, and what draws, into .venv (once) …"
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --require-hashes -r requirements-bench.txt
	@touch $@
