# Every target does its own set-up: a virtual environment with what pyproject.toml names, pinned by constraints.txt,
# and the system's libturbojpeg. Needed beforehand: Python 3.11 or newer, make, a package registry.
#
#   make run         the demo: photographs are drawn, stored, and learnt through all four stages
#   make test        the tests, without the slow ones         make test-all   all of them
#   make lint        ruff and mypy                            make bench      the pipeline against raw decoding
#
# TORCH_INDEX=URL takes PyTorch from another index, for example its CPU-only one, which saves gigabytes.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN ?= runs/demo
STORE ?= stores/demo

BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test test-all lint bench clean

run: $(READY)
	$(BIN)/fourstage demo --store $(STORE) --run-dir $(RUN)

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.pipeline

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fourstage needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("turbojpeg") is None)' \
	  || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	       apt-get update -qq && apt-get install -y -qq libturbojpeg0; \
	     else \
	       echo "libturbojpeg is missing: the decoder 'turbojpeg' and its tests need it; the default decoder does not."; \
	       echo "Install it with: sudo apt-get install libturbojpeg0 (Debian), dnf install turbojpeg (Fedora)"; \
	     fi
	@touch $@

clean:
	rm -rf $(VENV) runs stores
