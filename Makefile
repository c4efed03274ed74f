# make compare   what to do on this machine, and over which links, with a report   (ARGS="--help" lists the options)
# make test      lint, types and tests
# make identical BASE=<commit>   whether that commit and the tree as it stands train, say and write the very same
#                (ARGS="--quick" for a part in two minutes, ARGS="--help" lists the options)
# make docs      the documentation, into site/
# make clean     removes everything the others made, .venv included
#
# All of them need python3 (3.11 or newer, with its venv module) and nothing else; PYTHON=... names another one.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A stamp is touched when its installation has succeeded, and is out of date when what it was made from changes.
SOURCES := pyproject.toml constraints.txt

.PHONY: help compare test identical docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' Makefile

# With ARGS the comparison is the one that they ask for.
compare: $(VENV)/.installed-run
	@$(BIN)/syngrad compare --html syngrad-report.html $(if $(strip $(ARGS)),$(ARGS),--answer)

# The whole suite in two parts, side by side: two at a time, the tests that start processes or wait by the clock for a peer;
# and all others, one more at a time than there are cores, up to four, as some wait for a browser. The second part and the
# types have what time the first leaves, which waits for half of its own; so their limit by the clock is a long one. What
# the first part said is shown when the second is through. PYTEST_ARGS chooses some tests, which run as pytest alone would
# run them. tests/_support/quick_start makes the processes of tests start faster; and so do compiled modules, without which
# each of them would compile all of Syngrad anew: they are written even where the environment forbids it.
test: export PYTHONPATH := $(CURDIR)/tests/_support/quick_start$(if $(PYTHONPATH),:$(PYTHONPATH))
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
ifneq ($(strip $(PYTEST_ARGS)),)
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@failed=0; began=; said=; \
	trap 'kill $$began 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	nice $(BIN)/mypy >$(VENV)/mypy.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -m distributed -n auto --maxprocesses 2 --dist loadfile >$(VENV)/distributed.log 2>&1 & \
	first=$$!; began="$$types $$first"; \
	several=$$($(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))'); \
	nice $(BIN)/python -m pytest -m 'not distributed' -n $$several --dist worksteal --timeout 600 || failed=1; \
	wait $$first || { failed=1; said="; of them some failed"; }; \
	wait $$types || { cat $(VENV)/mypy.log; failed=1; }; \
	began=; echo "the tests that start processes$$said:"; cat $(VENV)/distributed.log; \
	exit $$failed
endif

# Of the environment it only asks that it is there, so that worktrees may share one by VENV=.
identical:
	@test -n "$(BASE)" || { echo "Name the commit to hold the tree against: make identical BASE=HEAD" >&2; exit 1; }
	@test -x $(BIN)/python || $(MAKE) $(VENV)/.installed-test
	@$(BIN)/python benchmarks/identical/main.py --base $(BASE) $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
	  { echo "Syngrad needs Python 3.11 or newer, and '$(PYTHON)' was not found. Name yours: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Syngrad needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || \
	  { echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu install the package python3-venv, then run make again." >&2; exit 1; }
	@touch $@

$(VENV)/.installed-run: $(VENV)/.python $(SOURCES)
	@echo "Installing PyTorch and what else Syngrad needs into $(VENV): once, a few minutes."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.python $(SOURCES)
	@echo "Installing PyTorch and the test tools into $(VENV): once, a few minutes."
	@$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-docs: $(VENV)/.python $(SOURCES)
	@echo "Installing PyTorch and the documentation's tools into $(VENV): once, a few minutes."
	@$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.installed-run
