# Everything installs into .venv; nothing but Python >= 3.11 and make is needed beforehand.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint types readme bench browser clean

demo: $(VENV)/.installed ## Clean the digits: train, attribute, find and drop wrong labels, retrain, report
	$(BIN)/curate clean --config configs/clean_digits.yaml

test: $(VENV)/.installed-dev ## The fast tests (a few minutes on two cores)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: lint types ## What CI checks besides the tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

browser: $(VENV)/.installed-dev ## Tests that look at pages in headless Chromium
	$(BIN)/python -m pytest -q -m browser tests/browser

readme: $(VENV)/.installed-dev ## Every command and snippet of the README, as a new user would run it
	$(BIN)/python -m pytest -q -m readme tests/test_readme.py

bench: $(VENV)/.installed-dev ## Figures as tables and JSON (peers are installed below build/); DATA=folder of the benchmark data, for those that need it
	$(BIN)/python -m tests.benchmarks $(if $(DATA),--data $(DATA))

clean: ## Remove the environment and build products (not the workspace)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 is needed; none was found on PATH (set PYTHON=/path/to/python3.11)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.installed
