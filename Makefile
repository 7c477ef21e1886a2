# Two commands are for everybody: `make up` and `make test`. Both set themselves up first.

.PHONY: help setup up check test lock format mutants
ARGS ?=
JOBS ?= 2
# Tests with real parts wait more than they work.
REAL_JOBS ?= 3

help:
	@echo "make up      start Sublet in the foreground   (ARGS=\"--data DIR\", see sublet up --help)"
	@echo "make test    every check: style, types, imports, all tests"
	@echo "make check   the fast part of it, under a minute"
	@echo "make format  let ruff format the code"
	@echo "make mutants change the code that moves money, and see that a test fails (hours, by hand)"
	@echo "make lock    write requirements.lock anew"

setup:
	@scripts/setup

up:
	@scripts/setup && exec .venv/bin/sublet up $(ARGS)

check: setup
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache | tail -n 5
	@.venv/bin/pytest -q -n $(JOBS) -m "not real and not e2e"

test: check
	@.venv/bin/pytest -q -n $(REAL_JOBS) --dist loadfile --durations 40 -m "real or e2e"

lock: setup
	@scripts/lock

format: setup
	@.venv/bin/ruff format
	@.venv/bin/ruff check --fix --quiet

mutants: setup
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --group mutants
	@.venv/bin/python scripts/mutants python && .venv/bin/python scripts/mutants sql
