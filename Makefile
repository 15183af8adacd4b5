# Nexus gRPC. `make serve` and `make test` set up what they need; `make help` lists everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find proto -name '*.proto') proto/build.py
# Extra options for the server, the tests or the benchmark: make serve ARGS="--workers 2"
ARGS ?=
# Of the long tests: all, 1 to 8, or today's.
PART ?= all
# COMPILE=0 leaves the hot path as it is in the sources: a quicker set-up, a fifth more CPU per request.
COMPILE ?= 1
override COMPILE := $(if $(filter 0 no off false,$(COMPILE)),0,1)
# What these say is for other environments than .venv, and would lead pip astray.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES

# A .venv that this file made elsewhere, whose Python is gone, or whose making was cut off, is made anew.
$(shell if [ -e $(VENV)/.python ]; then \
  [ "$$(cat $(VENV)/.place 2>/dev/null)" = "$$(pwd -P)" ] && [ ! -e $(VENV)/.installing ] && $(VENV)/bin/python -c '' 2>/dev/null \
  || { echo "$(VENV) was moved, cut off in the making, or its Python is gone: making it anew" >&2; rm -rf $(VENV); }; fi)

.PHONY: help setup serve test test-long test-wheel check format bench tools openapi models lock wheel sbom clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.runtime  ## make .venv with the server, its pinned dependencies and the compiled hot path (COMPILE=0: without)
ifeq ($(COMPILE),1)
	@$(BIN)/python -m nexus_grpc.compiled.build
endif

serve: $(VENV)/$(if $(filter 0,$(COMPILE)),.runtime,.compiled)  ## serve models/: gRPC on 8001, REST on 8080 (ARGS="--help" lists options; COMPILE=0)
	@exec $(BIN)/python -P -m nexus_grpc.cli.main serve $(if $(filter 0,$(COMPILE)),--no-compiled) $(ARGS)

test: $(VENV)/.dev setup tools  ## run the tests and measure coverage (ARGS="tests/unit -k ring" for some)
	@$(BIN)/python tests/run.py $(ARGS)

test-long: $(VENV)/.dev setup tools  ## run soaks, long fuzzing and rare set-ups: an hour (PART=3, PART=today for ten minutes)
	@$(BIN)/python tests/long.py $(PART)

test-wheel: $(VENV)/.dev wheel  ## run the unit tests against the wheel
	@$(BIN)/python tests/wheel.py $(ARGS)

check: $(VENV)/.dev sbom  ## lint, types, import rules, tidiness, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_tidy.py
	@$(BIN)/python tools/audit.py

format: $(VENV)/.dev  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev setup  ## measure against a grpc.aio echo; writes loadtest/RESULTS.md
	$(BIN)/python loadtest/bench.py $(ARGS)

tools:  ## build grpcurl and ghz into .tools/bin (needs Go)
	@if command -v go >/dev/null || [ "$$CI" = true ]; then bash tools/build.sh; \
	else echo "go is not installed: tests that need grpcurl and ghz are skipped"; fi

openapi: $(VENV)/.dev tools  ## make openapi.json anew from proto/ (needs Go)
	$(BIN)/python tools/openapi.py $(ARGS)

models: $(VENV)/.dev  ## rebuild the demo models
	$(BIN)/python examples/build_models.py $(ARGS)

lock: $(VENV)/.dev  ## resolve the dependencies anew into the lock files
	$(BIN)/uv pip compile -q pyproject.toml --extra build --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header -o requirements-dev.lock

wheel: $(VENV)/.runtime  ## make dist/*.whl, with the hot path compiled for this machine's Python (COMPILE=0: for any)
	NEXUS_COMPILE=$(COMPILE) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl

sbom: $(VENV)/.dev  ## make sbom.cdx.json, the bill of materials of what is shipped (CycloneDX)
	@$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
	  -o sbom.cdx.json

clean:  ## remove everything that was built
	rm -rf $(VENV) .tools sbom.cdx.json nexus_grpc/compiled/lib nexus_grpc/compiled/build-* build dist nexus_grpc/pb/inference nexus_grpc/pb/nexus *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@pwd -P >$(VENV)/.place
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.lock pyproject.toml $(PROTOS)
	@touch $(VENV)/.installing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python proto/build.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm $(VENV)/.installing
	@touch $@

# Once: later changes to the sources are compiled by `make setup`, and run as they stand until then.
$(VENV)/.compiled: $(VENV)/.runtime
	@$(BIN)/python -m nexus_grpc.compiled.build
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@touch $(VENV)/.installing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@rm $(VENV)/.installing
	@touch $@
