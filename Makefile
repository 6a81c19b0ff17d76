# Every target sets up what it needs: a virtual environment in .venv, kernel sources in ~/.cache/iretrace.
#   TREES=DIR    use the kernel source trees in DIR (or DIR itself) instead of downloading Debian's
#   TREE=DIR     make demo: show it on this Linux source tree
#   LIVE="6.1"   the kernels for make live
#   PYTHON=...   the Python (3.11 or newer) to start from

SHELL := /bin/bash
PYTHON ?= python3
TREES ?=
TREE ?=
PYTEST_ARGS ?=
LIVE ?= 6.1 6.12 7.3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.iretrace-installed
FETCH := $(PYTHON) tools/fetch_trees.py --trees "$(TREES)"

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11) and "iretrace needs Python 3.11 or newer; try make PYTHON=python3.11")

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast live lint bench trees clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: ## a bug of KVM 6.1, step by step, in seconds (no root, no network); TREE=DIR: on that Linux source
	@$(PYTHON) -c '$(NEW_ENOUGH)' && PYTHONPATH=src $(PYTHON) -m iretrace demo $(if $(TREE),"$(TREE)")

test: lint ## everything: lint, the fast tests, and the tests on real kernel trees
	@trees="$$($(FETCH))" || echo "make test: going on without kernel trees; tests that need them are skipped" >&2; \
	IRETRACE_TREES="$$trees" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs $(PYTEST_ARGS)

test-fast: $(STAMP) ## the tests that need neither network nor kernel trees, in under a minute
	@IRETRACE_TREES= $(BIN)/python -m pytest -n 2 -m "not trees and not slow" $(PYTEST_ARGS)

lint: $(STAMP) ## style, types, the restricted Python, the order of the rooms, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m iretrace.subset.check
	$(BIN)/python tools/rooms.py
	$(BIN)/python tools/bugs.py --check
	$(BIN)/python tools/rules.py --check
	$(BIN)/python tools/verdicts.py --check
	$(BIN)/python -m tools.results --check

live: $(STAMP) ## every test that can run on real KVMs (Debian's 6.1, 6.12 and 7.3 under QEMU), beside their models
	@set -o pipefail; for series in $(LIVE); do \
		rm -f $(VENV)/live.txt; tree="$$($(FETCH) --path $$series)" && \
		$(BIN)/python -m iretrace run --on qemu:$$series --compare "$$tree" | tee -i $(VENV)/live.txt; \
		[ $$? -le 1 ] && grep -qs ', 0 beyond the model' $(VENV)/live.txt || exit 1; \
	done

bench: $(STAMP) ## how fast it is here
	@trees="$$($(FETCH) --path 6.1)" && $(BIN)/python -m tools.bench "$$trees"

trees: ## fetch the kernel sources that the tests use; prints the directory
	@$(FETCH)

clean: ## remove the virtual environment and caches in this directory (not the kernel sources)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python cannot make a virtual environment; try: apt install python3-venv" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
