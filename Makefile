# Two commands for a newcomer: `make serve` and `make test`. Everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
# First and by itself, so that a CPU build that is at hand is taken: a plain `torch` may bring
# gigabytes of CUDA packages. Any version that pyproject.toml admits works.
TORCH ?= torch==2.13.0

.PHONY: serve test kernels-compile clients fuzz check format clean bench browser screenshots image-cpu ops-tools

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

kernels-compile: $(VENV)/.installed  ## every kernel for sm_80, sm_86 and sm_90, without a GPU
	env -u TRITON_INTERPRET PYTHONPATH=kernels $(BIN)/python -m tiercel_kernels.compile_all \
	  --write kernels/COMPILED.md $(ARGS)

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --requirement $<
	touch $@

clients: $(CLIENTS)/.installed  ## client libraries that need an environment of their own

browser:  ## Chromium for the tests of the playground, which skip without it
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else echo "No root or no apt-get here: install Chromium by other means"; fi

screenshots: $(VENV)/.installed browser  ## the pictures of the README, from a real server
	PYTHONPATH=server:tests $(BIN)/python tests/playground/screenshots.py docs/images

fuzz: $(VENV)/.installed  ## 300 cases per operation of the OpenAPI description, and as many bodies
	FUZZ_CASES=300 $(BIN)/python -m pytest tests/fuzz $(ARGS)

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
	rm -rf $(VENV) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

image-cpu:  ## the container image without a daemon, and a server from it; needs root, buildah, debootstrap
	deploy/container/build.sh

ops-tools:  ## Prometheus, kubectl and docker-compose for the tests of deploy/, which skip without them
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=""; \
	  command -v promtool >/dev/null || missing="$$missing prometheus"; \
	  command -v kubectl >/dev/null || missing="$$missing kubernetes-client"; \
	  command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
	  [ -z "$$missing" ] || { apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }; \
	else echo "No root or no apt-get here: install them by other means"; fi
