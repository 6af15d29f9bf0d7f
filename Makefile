# The whole project from a new machine: Python 3.11 or later with venv, a C++ compiler, and a package index.
#   make demo        an embedded model in four encodings, what each costs  make lint       ruff
#   make test        the tests, with a rotating 24th of the slow ones      make typecheck  strict mypy
#   make test-all    every test                                               make clean      all that was built here
#   make peers       an environment of their own for OpenVINO and llama.cpp's tools, which benchmarks compare with
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test processes side by side, and the seed that picks the slow tests of the day.
JOBS ?= 2
export TW_SLOW_SEED ?= $(shell date -u +%j)

# They ask for other versions of transformers: installed beside Tilewright, they would break it.
PEERS ?= .venv-peers

.PHONY: setup demo test test-all lint typecheck peers clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tilewright needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes on a new machine) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile,vision,triton,dev]'
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --slow sample

test-all: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --slow all

lint: setup
	$(BIN)/ruff check .

typecheck: setup
	$(BIN)/python tests/typetree.py

peers: setup
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "Installing into $(PEERS) …"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt -e .
	@# optimum asks for torchvision; one built for another PyTorch breaks every vision model of transformers
	@$(PEERS)/bin/python -c "import torchvision" 2>/dev/null || \
	  $(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision

clean:
	rm -rf build tilewright.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(PEERS)/*' -prune -exec rm -rf {} +
