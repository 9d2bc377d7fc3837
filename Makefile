# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := results/quickstart
JOBS ?= 2

.PHONY: demo test lint slow clean

demo: $(VENV)/.run
	$(BIN)/loratory run quickstart --out $(OUT)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "slow or not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache
