# Two commands for a newcomer: `make serve` and `make test`. Everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
RAY := .venv-ray
# First and by itself, so that a CPU build that is at hand is taken: a plain `torch` may bring
# gigabytes of CUDA packages. Any version that pyproject.toml admits works.
TORCH ?= torch==2.13.0

.PHONY: serve test test-all ranks collectors kernels-compile clients ray ray-test fuzz check format clean bench browser screenshots image-cpu ops-tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

serve: $(VENV)/.installed  ## install, then serve the embedded model on the CPU
	$(BIN)/tiercel serve $(ARGS)

# Three parts. First what starts no server and takes no times, on all cores, one thread each. Then
# what only waits for servers, a file at a time on two cores or more. Last what measures, has
# deadlines, or wants the whole machine for a moment, by itself.
SIDE_BY_SIDE := attention cache gpu kernels layers model parity plan quantization sampling scheduler \
  structure text worker
SIDE_BY_SIDE := $(SIDE_BY_SIDE:%=tests/%)
BY_ITSELF := api bench e2e/test_disconnect.py e2e/test_lifecycle.py e2e/test_processes.py \
  e2e/test_ranks.py e2e/test_scrapers.py e2e/test_startup.py e2e/test_traced_server.py \
  e2e/test_two_hosts.py faults guidance parallel/test_watch.py playground ray sandbox telemetry
BY_ITSELF := $(BY_ITSELF:%=tests/%)
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest
define THREE_PARTS
	$(if $(ARGS),$(error ARGS are for make test))failed=0; \
	$(ONE_THREAD) $(PYTEST) -q -n auto --maxprocesses 8 --dist worksteal $(SELECTED) \
	  $(SIDE_BY_SIDE) || failed=1; \
	$(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile $(SELECTED) \
	  $(SIDE_BY_SIDE:%=--ignore=%) $(BY_ITSELF:%=--ignore=%) || failed=1; \
	$(PYTEST) $(SELECTED) $(BY_ITSELF) || failed=1; \
	exit $$failed
endef

test: SELECTED := -m "not slow"
test: $(VENV)/.installed  ## the tests that need no GPU, without the slow ones; ARGS="tests/x -k y" for some
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(THREE_PARTS)
endif

test-all: $(VENV)/.installed  ## all tests that need no GPU, as CI runs them; twice as long
	$(THREE_PARTS)

ranks: $(VENV)/.installed  ## every variant on 2, 4 and 8 ranks; make test-all takes a part of them
	ALL_WORLDS=1 $(PYTEST) tests/parallel/test_engine.py $(ARGS)

collectors: $(VENV)/.installed  ## requests beside dead collectors, enough for a p95 (R-30); five minutes
	ALL_PAIRS=1 $(PYTEST) -s tests/e2e/test_traced_server.py $(ARGS)

kernels-compile: $(VENV)/.installed  ## every kernel for sm_75 to sm_120, without a GPU
	env -u TRITON_INTERPRET PYTHONPATH=kernels $(BIN)/python -m tiercel_kernels.compile_all \
	  --write kernels/COMPILED.md $(ARGS)

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --requirement $<
	touch $@

clients: $(CLIENTS)/.installed  ## client libraries that need an environment of their own

$(RAY)/.installed: tests/ray/requirements.txt
	$(PYTHON) -m venv --clear $(RAY)
	$(RAY)/bin/pip install --quiet --requirement $<
	touch $@

ray: $(RAY)/.installed  ## Ray Serve for deploy/ray, and for its tests, which skip without it

ray-test: $(VENV)/.installed ray  ## deploy/ray with a real Ray; not a part of make test
	$(PYTEST) tests/ray $(ARGS)

browser:  ## Chromium for the tests of the playground, which skip without it
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else echo "No root or no apt-get here: install Chromium by other means"; fi

screenshots: $(VENV)/.installed browser  ## the pictures of the README, from a real server
	PYTHONPATH=server:tests $(BIN)/python tests/playground/screenshots.py docs/images

fuzz: $(VENV)/.installed  ## 300 cases per operation of the OpenAPI description, as many bodies; 1,000 schemas
	FUZZ_CASES=300 $(PYTEST) tests/fuzz $(ARGS)
	SCHEMA_CASES=1000 $(PYTEST) tests/guidance/test_engine.py -k random_schemas $(ARGS)

check: $(VENV)/.installed  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A scenario that misses a limit ends with 1; the others are measured all the same.
bench: $(VENV)/.installed  ## every measurement of the README; wants an otherwise idle machine
	-$(BIN)/tiercel bench throughput $(ARGS)
	-$(BIN)/tiercel bench throughput --model random-150m $(ARGS)
	-$(BIN)/tiercel bench prefix --model random-150m $(ARGS)
	-$(BIN)/tiercel bench prefix $(ARGS)
	-$(BIN)/tiercel bench interference $(ARGS)
	-$(BIN)/tiercel bench disconnect $(ARGS)
	-GOMP_SPINCOUNT=10000 $(BIN)/tiercel bench grammar

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CLIENTS) $(RAY) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

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

# On a GPU host: nothing is installed, the environment that is there is used. It needs torch, triton,
# transformers, safetensors, numpy, pytest and msgspec. PYTHONPATH may name more folders.
GPU_PYTHON ?= $(PYTHON)
GPU_PATHS := kernels:server:tests$${PYTHONPATH:+:$$PYTHONPATH}
# A part of them where time is short: most of it goes into compiling each kernel for the first time.
GPU_TESTS ?= tests/gpu tests/kernels
# Seconds for the ops and for the engine.
OPS_S ?= 420
ENGINE_S ?= 420

.PHONY: gpu-test gpu-bench gpu-bench-ops gpu-bench-engine gpu-sweep

gpu-test:  ## kernels compiled, engine against transformers, graphs, overlap
	PYTHONPATH=$(GPU_PATHS) $(GPU_PYTHON) -m pytest -c tests/gpu/pytest.ini --rootdir . \
	  -m gpu $(GPU_TESTS) $(ARGS)

gpu-bench:  ## peaks of the card, every op, then the engine and transformers beside it
	failed=0; $(MAKE) gpu-bench-ops || failed=1; $(MAKE) gpu-bench-engine || failed=1; exit $$failed

gpu-bench-ops:
	PYTHONPATH=$(GPU_PATHS) $(GPU_PYTHON) -m benchmarks.run --budget-s $(OPS_S) $(ARGS)

gpu-bench-engine:
	PYTHONPATH=$(GPU_PATHS) $(GPU_PYTHON) -m tiercel.bench.gpu --budget-s $(ENGINE_S) $(ARGS)

gpu-sweep:  ## launch parameters for the tuning tables: make gpu-sweep OP=decode_attention OPS_S=500
	PYTHONPATH=$(GPU_PATHS) $(GPU_PYTHON) -m benchmarks.$(OP) --sweep $(OPS_S) $(ARGS)
