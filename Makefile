# Two commands for a newcomer: `make serve` and `make test`. Everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# First and by itself, so that a CPU build that is at hand is taken: a plain `torch` may bring
# gigabytes of CUDA packages. Any version that pyproject.toml admits works.
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

bench: $(VENV)/.installed  ## every measurement of the README; wants an otherwise idle machine
	$(BIN)/tiercel bench throughput $(ARGS)
	$(BIN)/tiercel bench throughput --model random-150m $(ARGS)
	$(BIN)/tiercel bench prefix --model random-150m $(ARGS)
	$(BIN)/tiercel bench prefix $(ARGS)
	$(BIN)/tiercel bench interference $(ARGS)
	$(BIN)/tiercel bench disconnect $(ARGS)

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
