# One entrance. Every target sets up what it needs in .venv; the second time nothing is installed and no network used.
#   PYTHON=python3.12    the interpreter that makes .venv (3.11 or newer)
#   PIP_ARGS="..."       more options for pip; on Linux away from a local CPU wheel of torch, for example
#                        PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" spares 5 GB of CUDA
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo demo-prompts demo-sound test diffusers check docs examples bench mutants build clean format lint types layers budget doctest blocks methods methods-check which

PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BASE := .venv/.stamp
DEV := .venv/.stamp-dev
# --no-compile: byte code of what is imported comes at its first import; all of it would take half a minute more.
PIP := $(BIN)/python -m pip install -qq --no-compile --prefer-binary -c constraints.txt $(PIP_ARGS)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "flowmaps needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)." \
       "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
endef

$(BASE): pyproject.toml constraints.txt
	$(venv)
	@echo "Setting up .venv (about a minute, once)..."
	@$(PIP) -e .
	@touch $@

# A superset of the base: one install serves both stamps.
$(DEV): pyproject.toml constraints.txt
	$(venv)
	@echo "Setting up .venv with the developers' tools (about a minute, once)..."
	@$(PIP) -e ".[dev]"
	@touch $(BASE) $@

demo: $(BASE)  ## train, sample and measure a small flow map; the report lands in demo/
	$(BIN)/flowmaps demo --out demo

demo-prompts: $(BASE)  ## the same for pictures of prompts, in a quarter of an hour; the report lands in demo-prompts/
	$(BIN)/flowmaps demo prompts --out demo-prompts

demo-sound: $(BASE)  ## the same for a second of sound by its name, in a quarter of an hour; the report lands in demo-sound/
	$(BIN)/flowmaps demo sound --out demo-sound

# A process per core, of one thread each: small tensors gain nothing from more.
test: $(DEV)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadgroup -m "not slow" tests

diffusers: $(DEV)  ## install the extras of Hugging Face diffusers and ONNX and run their tests (make test skips them without)
	@$(PIP) -e ".[dev,diffusers,onnx]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadgroup tests/adapters tests/data/test_text.py

check: format lint types layers budget docs examples  ## format, lint, types, imports, sizes, and every document that runs

methods: $(DEV)  ## write docs/methods.md from the recipes
	$(BIN)/python tools/methods_page.py

methods-check: $(DEV)
	$(BIN)/python tools/methods_page.py --check

which: $(DEV)  ## write docs/which.md from the stored arenas
	$(BIN)/python tools/which_page.py

docs: doctest blocks methods-check  ## run the doctests and the Python blocks of README.md and docs/

format: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV)
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/pyright

layers: $(DEV)
	$(BIN)/lint-imports --no-cache --no-logo

budget: $(DEV)
	$(BIN)/python tools/budget.py

# Modules of extras that are not installed are left out; each has its own target.
doctest: $(DEV)
	$(BIN)/python -m pytest -q --doctest-modules --doctest-ignore-import-errors src/flowmaps

blocks: $(DEV)
	$(BIN)/python tools/readme_blocks.py

examples: $(DEV)  ## run every example with its fast switch (FLOWMAPS_FAST=1)
	@shopt -s nullglob; for f in examples/*.py; do \
	  echo "$$f"; FLOWMAPS_FAST=1 $(BIN)/python -W error::DeprecationWarning:__main__ "$$f"; done

# The classifier is the ruler of the others: a new one would make new figures of old models. `make bench-fashion_classifier` trains one.
bench: $(BASE)  ## run every benchmark (about two hours on two cores) but the classifier's training; results lie beside the scripts
	@echo "About two hours on two cores: fashion 70 minutes, step costs 20, the rest 15. make bench-fashion runs one of them."
	@shopt -s nullglob; for f in $(filter-out benchmarks/fashion_classifier.py,$(wildcard benchmarks/*.py)); do \
	  echo "$$f"; $(BIN)/python "$$f"; done

bench-%: $(BASE)  ## run one benchmark: bench-fashion, bench-step_cost, bench-sampling, ...
	$(BIN)/python benchmarks/$*.py

mutants: $(DEV)  ## plant faults in core and learn and list those that no test sees (an hour or two; goes on where it stopped)
	$(BIN)/python tools/mutants.py

build: $(BASE)  ## build the wheel, install it in an empty environment, try it
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv build/venv
	build/venv/bin/python -m pip install -qq --no-compile --prefer-binary -c constraints.txt $(PIP_ARGS) dist/flowmaps-*.whl
	cd build && venv/bin/flowmaps --help >/dev/null && venv/bin/python -c 'import flowmaps; print(flowmaps.__file__)'

clean:  ## remove everything that make made
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
