# Every target sets up .venv first, once; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.installed
# The extension is built into the checkout (editable install), so its sources decide about a rebuild.
SETUP  := pyproject.toml setup.py constraints.txt tools/install_torch.py $(wildcard csrc/*)

.PHONY: help install demo test lint docs packages bench gpu clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1|/' \
	  | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

install: $(STAMP) ## .venv with torch (pinned, no CUDA where there is no GPU) and everything else

$(STAMP): $(SETUP)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "pip>=23.1" "setuptools>=77" wheel ninja numpy
	$(BIN)/python tools/install_torch.py
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(STAMP) ## train from initial weights of five scales, SGD beside scale-amended SGD (a minute or two)
	$(BIN)/python -m lhkernels train --data digits --validation 300 --init-scale 0.1,0.3,1,3,10 \
	  --seeds 0,1,2 --out runs/demo --overwrite

test: $(STAMP) ## all tests that need no GPU, a worker for each core
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## pages and docstrings as a site, docs/_build/html; a dead link fails; examples run
	$(BIN)/python -m sphinx -E -a -n -W --keep-going -q -c docs . docs/_build/html
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_doctests.py

packages: $(STAMP) ## build wheel and sdist, install each in an environment of its own, take a step there
	$(PIP) install --quiet -c constraints.txt build
	$(BIN)/python tools/check_packages.py

bench: $(VENV)/.peers ## steps, norms, Hessian products, spectra and growth of cost beside peers (20 minutes)
	$(BIN)/python -m lhkernels bench step --seconds 5 --save
	$(BIN)/python -m lhkernels bench hvp --seconds 5 --save
	$(BIN)/python -m lhkernels bench scaling --save
	$(BIN)/python -m lhkernels bench suite --save
	machine=$$($(BIN)/python -c "from lhkernels.environment import machine; print(machine())") \
	  && $(BIN)/python -m lhkernels bench report --machine $$machine --plots bench/results/$$machine
	$(BIN)/python -m lhkernels bench report

$(VENV)/.docs: $(STAMP)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[docs]"
	@touch $@

$(VENV)/.peers: $(STAMP)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[bench]"
	@touch $@

# A GPU machine may have no network: what it needs is there already, in .venv or in $(PYTHON).
gpu: ## everything that needs a GPU, in parts (docs/gpu.md); writes bench/results/<device>/
	$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) bench/gpu.py $(ARGS)

clean: ## remove .venv, builds and runs
	rm -rf $(VENV) build dist docs/_build runs *.egg-info lhkernels/*.so
