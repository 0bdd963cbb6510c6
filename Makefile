# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all set-up themselves; PYTHON chooses the interpreter, ARGS goes to the program.
PYTHON ?= python3
ARGS ?=
# What a target needs installed besides.
GROUPS :=
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
# Tests start Python dozens of times; where bytecode is not kept, each start compiles torch again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all sanitize leaks fuzz wheels lint format bench bench-quick site \
	check-isolated lowest first-contact release gpu-check clean

NATIVE_TESTS := packages/treeops/tests

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

setup:  ## make or refresh .venv (every other target does this first)
	@$(PYTHON) tools/setup.py $(GROUPS)

demo: setup  ## meta-learn to read unseen alphabets (ARGS="--help" lists the options)
	@$(BIN)/python packages/optdiff/examples/few_shot.py $(ARGS)

test: setup  ## every test but the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: GROUPS := torchrl
test-all: setup  ## every test
	@$(PYTEST) $(ARGS)

sanitize: setup  ## treeops and the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(BIN)/python tools/sanitize.py treeops $(ARGS)
	@$(BIN)/python tools/sanitize.py optcore-accel $(ARGS)

leaks: setup  ## repeat every operation of treeops and count references, bytes and lost blocks
	@$(PYTEST) -q $(NATIVE_TESTS)/test_leaks.py $(ARGS)
	@$(BIN)/python tools/sanitize.py --leaks -k "reference or treespecs or cycles" \
		$(NATIVE_TESTS)/test_leaks.py $(NATIVE_TESTS)/test_safety.py

fuzz: setup  ## random trees and damaged pickles, as built and again under the sanitizers
	@$(PYTEST) -q --hypothesis-profile=fuzz $(NATIVE_TESTS)/test_fuzz.py $(ARGS)
	@$(BIN)/python tools/sanitize.py --hypothesis-profile=fuzz $(NATIVE_TESTS)/test_fuzz.py

wheels: setup  ## build and test wheels of treeops and optcore-accel (WHEEL_PYTHONS="python3.10 python3.12" to choose)
	@$(BIN)/python tools/wheels.py $(WHEEL_PYTHONS)

lint: setup  ## style, import layers, workflows, versions and changelogs, forbidden text
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/zizmor --offline --quiet .github
	@$(BIN)/python tools/release.py check
	@$(BIN)/python tools/check_text.py

format: setup  ## apply the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench bench-quick: GROUPS := peers
bench: setup  ## run every benchmark, write out/bench/report.html (ARGS=treeops for one package)
	@$(BIN)/python tools/bench.py $(ARGS)

bench-quick: setup  ## the same with fewer sizes and rounds, in minutes
	@$(BIN)/python tools/bench.py --quick $(ARGS)

site: GROUPS := docs torchrl
site: setup  ## build the documentation into out/site (Python 3.11 or newer)
	@$(BIN)/python tools/site/build.py $(ARGS)

check-isolated: setup  ## install each wheel alone in a clean environment and run its tests there
	@$(BIN)/python tools/check_isolated.py $(ARGS)

lowest: setup  ## test each package with the lowest versions that it declares
	@$(BIN)/python tools/release.py lowest $(ARGS)

first-contact: setup  ## each wheel alone and its README, and how long a stranger waits for first results
	@$(BIN)/python tools/first_contact.py $(ARGS)

release: setup  ## check, bump, try or tag a package (ARGS="bump treeops minor", ARGS=--help)
	@$(BIN)/python tools/release.py $(or $(ARGS),check)

gpu-check:  ## on a machine with a GPU, without network: build optcore-accel with CUDA, test, benchmark
	@$(PYTHON) tools/gpu_check.py $(ARGS)

clean:  ## remove the environment and everything built
	rm -rf .venv .tools out uv.lock .pytest_cache .ruff_cache .import_linter_cache .hypothesis packages/*/build packages/*/dist
