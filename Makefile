# setup   environment in .venv, with everything that demo, tests and export need
# demo    the whole chain on generated street scenes: search, decode, train, evaluate, export, predict
# test    all tests that fit in CI; test-slow runs the others
# check   formatting, lint, types, plain words
# coverage lines of the package and of export that the tests run, in commands' processes too
# wheel   builds the wheel, installs it into a fresh environment, runs --help of every command
# mutants mutation tests of the modules without TensorFlow; run again, it continues (about an hour)
# bench   ten minutes of measurements, into benchmarks/results and docs/performance.md

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(USABLE)' 2>/dev/null && { echo $$p; break; }; done)
# xdist would begin with the files of most tests, which are not the slow ones: tests/conftest.py
# orders the files.
PYTEST := $(BIN)/python -m pytest -q -rs --durations=15 -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-slow check coverage wheel mutants bench clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found;" \
	  "install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c '$(USABLE)' || { echo "error: PYTHON=$(PYTHON) is not Python 3.11 to 3.13" \
	  "with venv" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV): several minutes where the packages are not cached"
	@# Of 21,000 files those that are imported are compiled then.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --constraint constraints.txt --editable '.[export,references,media,ray,dev]'
	@touch $@

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_words.py

coverage: setup
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=90

wheel: setup
	bash tools/check_wheel.sh $(BIN)/python

MUTMUT := .venv-mutants/bin/mutmut

$(MUTMUT): constraints.txt
	"$(PYTHON)" -m venv .venv-mutants
	.venv-mutants/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt numpy pytest mutmut==3.8.1
	@touch $@

mutants: $(MUTMUT)
	PYTHONPATH= nice $(MUTMUT) run --max-children 1
	$(MUTMUT) results

bench: setup
	$(BIN)/python -m benchmarks.run_all

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
