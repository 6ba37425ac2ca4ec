# Everything a clone needs: Python 3.11 or newer and a C compiler. `make run` and `make test` set up the rest.

VENV ?= .venv
BIN := $(VENV)/bin
# MILLPOND_PURE=1 builds the same source uncompiled.
PURE := $(filter-out 0,$(MILLPOND_PURE))
BUILT := $(VENV)/.built-$(if $(PURE),pure,compiled)
# The first interpreter that is new enough. Override with `make PYTHON=python3.13 ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
SOURCES := $(shell find src -name '*.py' -not -path '*/__pycache__/*') src/millpond/py.typed pyproject.toml setup.py \
	$(wildcard tools/*.py)

# The tests of the hot modules: they run a second time on the uncompiled source.
HOT_TESTS := $(wildcard tests/base tests/storage tests/broker tests/protocols)
PYTEST := $(BIN)/python -m pytest -q
# Half of what the tests do is to wait: one more at once than there are cores, within reason, as each has brokers of its
# own.
AT_ONCE = -n $(shell $(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
BENCH := $(BIN)/python -m bench

.PHONY: run test lint interop faults levelling bench patterns build clean
.DEFAULT_GOAL := test

# --- Set up -----------------------------------------------------------------------------------------------------------

# One line for what the machine lacks, before anything is downloaded.
define CHECK_PYTHON
	test -n "$(PYTHON)" || \
		{ echo "millpond: Python 3.11 or newer is needed, and none was found on the PATH" >&2; exit 1; }; \
	test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "millpond: $(PYTHON) cannot make virtual environments (Debian: apt install python3-venv)" >&2; exit 1; }
endef

$(VENV)/.runtime: pyproject.toml tools/requirements.py
	@$(CHECK_PYTHON)
	@test -n "$(PURE)" || $(PYTHON) tools/toolchain.py
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing what Millpond needs into $(VENV)"
	@$(BIN)/python tools/requirements.py build runtime >$(VENV)/runtime.txt
	@$(PIP) install -r $(VENV)/runtime.txt
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime
	@echo "Installing what the tests need into $(VENV)"
	@$(BIN)/python tools/requirements.py dev >$(VENV)/dev.txt
	@$(PIP) install -r $(VENV)/dev.txt
	@touch $@

# An ordinary, not an editable, install: the compiled modules live in the virtual environment only, so that `src` always
# is the uncompiled source (`PYTHONPATH=src` runs it) and no stale extension can ever stand in front of it.
$(BUILT): $(VENV)/.runtime $(SOURCES)
	@echo "Building Millpond$(if $(PURE), uncompiled, (compiles the hot modules; the first time takes a minute or two))"
	@$(PIP) install --no-deps --no-build-isolation .
	@rm -f $(VENV)/.built-*
	@touch $@

build: $(BUILT)

# --- Use --------------------------------------------------------------------------------------------------------------

# Further options by ARGS: make run ARGS="--amqp 127.0.0.1:0 --log-level debug"
run: $(BUILT)
	@exec $(BIN)/millpond serve --data ./data --kafka 127.0.0.1:9092 --welcome $(ARGS)

lint: $(BUILT) $(VENV)/.tests
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run '$(BIN)/ruff format .'" >&2; exit 1; }
	@$(BIN)/mypy
	@PYTHONPATH=$(CURDIR)/src $(BIN)/lint-imports --no-logo 2>/dev/null || PYTHONPATH=$(CURDIR)/src $(BIN)/lint-imports
	@$(BIN)/python tools/check_compiled.py $(if $(PURE),pure,compiled)

test: lint
	@$(PYTEST) $(AT_ONCE) $(ARGS)
	@echo "Once more, the hot modules' tests on the uncompiled source"
	@PYTHONPATH=$(CURDIR)/src $(BIN)/python tools/check_compiled.py pure
	@PYTHONPATH=$(CURDIR)/src $(PYTEST) $(AT_ONCE) $(HOT_TESTS) $(ARGS)

# Each of these prints how long it took.
interop: $(BUILT) $(VENV)/.tests
	@start=$$(date +%s); MILLPOND_TEST_INTEROP=1 $(PYTEST) tests/interop $(ARGS); code=$$?; echo "interop took $$(($$(date +%s) - start)) s"; exit $$code

# The tests that take long, then a campaign of faults; about 25 minutes. make faults SEED=7 MINUTES=60, or ARGS="kills"
# for a part of it.
faults: $(BUILT) $(VENV)/.tests
	@start=$$(date +%s); \
	test -n "$(ARGS)" || MILLPOND_TEST_BACKLOG=1 $(PYTEST) tests/faults/test_backlog.py tests/broker/test_delays.py; code=$$?; \
	$(BIN)/python -m faults $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS) || code=$$?; \
	echo "faults took $$(($$(date +%s) - start)) s"; exit $$code

# 10,000 messages a second in and 500 out, for ten minutes, then the drain: 11 minutes, on a machine that does nothing
# else. Fails when a promise is broken. make levelling MINUTES=1 for a look.
levelling: $(BUILT) $(VENV)/.tests
	@$(BIN)/python -m faults.levelling $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

bench: $(BUILT) $(VENV)/.tests
	@start=$$(date +%s); $(BENCH) $(ARGS); code=$$?; echo "bench took $$(($$(date +%s) - start)) s"; exit $$code

# What consumers that are many, slow or killed do to others: make patterns ARGS="competing --peer millpond"
patterns: $(BUILT) $(VENV)/.tests
	@start=$$(date +%s); $(BENCH).patterns $(ARGS); code=$$?; echo "patterns took $$(($$(date +%s) - start)) s"; exit $$code

# Leaves ./data alone: what a broker keeps is not ours to delete.
clean:
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
