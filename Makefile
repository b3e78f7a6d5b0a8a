# Two commands for a newcomer: `make serve` and `make test`. Everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build where the index offers one; any torch that pyproject.toml admits works.
TORCH ?= torch==2.13.0

.PHONY: serve test check format clean bench

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

serve: $(VENV)/.installed  ## install, then serve the embedded model on the CPU
	$(BIN)/tiercel serve $(ARGS)

test: $(VENV)/.installed  ## all tests that need no GPU
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
