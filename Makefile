# Every target does its own set-up: a virtual environment with what pyproject.toml names, pinned by constraints.txt,
# and the system's libturbojpeg. Needed beforehand: Python 3.11 or newer, make, a package registry.
#
#   make run         the demo: photographs are drawn, stored, and learnt through all four stages
#   make test        the tests, without the slow ones         make test-all   all of them
#   make test-faults two hundred faults at random moments: the same bytes, or a stop in words
#   make lint        ruff and mypy                            make bench      the pipeline against raw decoding
#   make test-fuzz   a million hostile cases for every handler of a peer's bytes, an hour or less (FUZZ=... for others)
#   make images      the two container images                 make up         the demo in containers (compose.yaml)
#
# TORCH_INDEX=URL takes PyTorch from another index, for example its CPU-only one, which saves gigabytes. Images have that
# one by default; TORCH_INDEX= with nothing behind it gives them CUDA's build. PYTHON_IMAGE, PIP_INDEX_URL and
# BUILD_NETWORK are .env.example's.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN ?= runs/demo
STORE ?= stores/demo
FUZZ ?= --cases 1000000
SEEDS ?= 230

BIN := $(VENV)/bin
# Lazily: only what uses it asks git and docker.
IMAGE_BUILD = docker build --file docker/Dockerfile $(BUILD_NETWORK:%=--network %) $(PYTHON_IMAGE:%=--build-arg PYTHON_IMAGE=%) \
  $(PIP_INDEX_URL:%=--build-arg PIP_INDEX_URL=%) --build-arg REVISION=$(shell git rev-parse --short HEAD 2>/dev/null)
COMPOSE = $(if $(shell docker compose version 2>/dev/null),docker compose,docker-compose)
TORCH_GIVEN = $(filter command environment,$(origin TORCH_INDEX))
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test test-all test-fuzz test-faults lint bench images up clean

run: $(READY)
	$(BIN)/fourstage demo --store $(STORE) --run-dir $(RUN)

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m "slow or not slow"

test-faults: $(READY)
	$(BIN)/python -m tests.faults --seeds $(SEEDS)

test-fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.pipeline

images:
	$(IMAGE_BUILD) --target cpu --tag fourstage .
	$(IMAGE_BUILD) --target trainer $(if $(TORCH_GIVEN),--build-arg TORCH_INDEX_URL=$(TORCH_INDEX)) --tag fourstage-trainer .

up:
	$(COMPOSE) up --detach
	@echo "fourstage trains: $(COMPOSE) logs --follow trainer"

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
