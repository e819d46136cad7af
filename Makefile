# Two commands for a newcomer: `make demo`, then the README's snippet. The rest is for the team.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8080
DATA ?= .ghub
CASES ?= 1000000
SEED ?= 0
SECONDS ?= 1500
HOUR ?= 3600
RATE ?= 10
KEEP ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: setup demo test alone quick lint long fuzz chaos soak bench bench-consumer lock clean

setup: $(VENV)/.demo          ## .venv with everything that the demo needs

# A Python that is named is used, and one that is not is found; a .venv that fits is kept, and one that does not is made
# anew: of another Python, or of one that is gone.
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
HAVE := $(shell $(VENV)/bin/python $(VERSION) 2>/dev/null)
WANT := $(shell $(PYTHON) $(VERSION) 2>/dev/null)
OLD := 2.% 3.0 3.1 3.2 3.3 3.4 3.5 3.6 3.7 3.8 3.9 3.10
FITS := $(filter-out $(OLD),$(HAVE))
ifneq ($(origin PYTHON),file)
FITS := $(filter $(WANT),$(FITS))
endif
ifeq ($(FITS),)
.PHONY: $(VENV)/.demo         # its mark goes with the old one
endif

.PHONY: python
python:
ifeq ($(FITS),)
ifeq ($(filter-out $(OLD),$(WANT)),)
	@echo "GeekHub needs Python 3.11 or later, and $(PYTHON) is $(or $(WANT),not there): name one, such as make demo PYTHON=python3.12" >&2; exit 1
endif
	@rm -rf $(VENV)
	@echo "making $(VENV) with Python $(WANT) …"
	@$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.demo: requirements/demo.txt pyproject.toml | python
	@echo "what the demo needs, once:"
	@$(VENV)/bin/python requirements/install.py requirements/demo.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(VENV)/bin/python -m pip --disable-pip-version-check check
	@touch $@

$(VENV)/.test: $(VENV)/.demo requirements/test.txt requirements/binaries.py
	@echo "what the tests need, once:"
	@$(VENV)/bin/python requirements/install.py requirements/test.txt
	@$(VENV)/bin/python requirements/binaries.py
	@$(VENV)/bin/python -m pip --disable-pip-version-check check
	@touch $@

demo: $(VENV)/.demo           ## the whole system on this machine; PORT=8080 DATA=.ghub
	@exec $(VENV)/bin/ghub demo --port "$(PORT)" --data "$(DATA)"

lint: $(VENV)/.test           ## ruff, mypy strict, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

quick: lint                   ## lint, types, import rules, unit tests: the daily loop, under 45 s on 2 cores
	QUICK=1 $(PYTEST) -q -n 2 tests/unit

# Six on two cores, because most tests wait; by file, because a file's servers are started once by who has all of it.
test: lint                    ## everything; under 12 minutes on 2 cores
	$(PYTEST) -n 6 --dist loadfile --no-loadscope-reorder tests || { [ $$? -eq 1 ] && $(MAKE) --no-print-directory alone; }

# A test that a machine full of others made late is told apart from one that found a fault: that fails alone too.
alone: $(VENV)/.test          ## what failed last, with nothing beside it, up to the first that fails again
	$(PYTEST) --last-failed --last-failed-no-failures none --maxfail 1 tests

long: $(VENV)/.test           ## what `make test` runs in a short version, whole: an hour on 2 cores
	LONG=1 $(PYTEST) -o faulthandler_timeout=7200 tests/e2e tests/doors tests/integration/test_cluster_failover.py tests/integration/test_dockerfile.py tests/integration/test_setup.py tests/integration/test_suspension.py tests/integration/test_export_memory.py tests/integration/test_recipe_*.py tests/integration/test_reload.py

fuzz: $(VENV)/.test           ## pictures in JSON against json.loads; CASES=1000000 SEED=0, 2 minutes on 2 cores
	$(VENV)/bin/python -m tests.fuzz.inline --cases $(CASES) --seed $(SEED) --jobs 2

chaos: $(VENV)/.test          ## random faults under load, and a judge; SEED=0 SECONDS=1500, on 2 cores
	LONG=1 $(PYTEST) -o faulthandler_timeout=7200 tests/e2e/test_chaos.py
	$(VENV)/bin/python -m tests.chaos --seed $(SEED) --seconds $(SECONDS)

soak: $(VENV)/.test           ## an hour of steady load: does anything grow? HOUR=3600 RATE=10 KEEP=folder, and two pictures
	$(VENV)/bin/python -m tests.soak --seconds $(HOUR) --rate $(RATE) $(if $(KEEP),--keep $(KEEP))

bench: $(VENV)/.test          ## every figure with its goal, on idle cores; ONLY=job,memory runs some, ROUNDS=1 is short
	$(VENV)/bin/python -m bench

bench-consumer: $(VENV)/.test ## how a backlog drains after an outage of the ledger, and the consumer's memory; 3 minutes
	$(VENV)/bin/python -m bench.consumer

# Maintainers: write the hash locks anew from pyproject.toml. Needs `uv` on the PATH.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet --no-config
LOCK := $(COMPILE) pyproject.toml
# The extras of the production image.
SHIPPED := --extra s3 --extra xlsx --extra nats --extra otel
lock:
	$(LOCK) $(SHIPPED) --output-file requirements/gateway.txt
	$(LOCK) $(SHIPPED) --group demo --constraint requirements/gateway.txt --output-file requirements/demo.txt
	$(LOCK) $(SHIPPED) --extra parquet --extra pdf --group demo --group sbom --group test --constraint requirements/demo.txt --output-file requirements/test.txt
	$(COMPILE) --group build --group sbom --constraint requirements/test.txt --output-file requirements/build.txt

clean:
	rm -rf $(VENV) .ghub .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
