# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all set-up themselves; PYTHON chooses the interpreter, ARGS goes to the program.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format bench check-isolated clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

setup:  ## make or refresh .venv (every other target does this first)
	@$(PYTHON) tools/setup.py

demo: setup  ## meta-learn to read unseen alphabets (ARGS="--help" lists the options)
	@$(BIN)/python packages/optdiff/examples/few_shot.py $(ARGS)

test: setup  ## every test but the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: setup  ## every test
	@$(PYTEST) $(ARGS)

lint: setup  ## style, import layers, forbidden text
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python tools/check_text.py

format: setup  ## apply the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## run every benchmark and print its tables
	@$(BIN)/python tools/bench.py $(ARGS)

check-isolated: setup  ## install each wheel alone in a clean environment and run its tests there
	@$(BIN)/python tools/check_isolated.py $(ARGS)

clean:  ## remove the environment and everything built
	rm -rf .venv .tools out uv.lock .pytest_cache .ruff_cache .import_linter_cache .hypothesis packages/*/build packages/*/dist
