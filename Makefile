# `make` alone lists the targets. Needs Python 3.11 or newer with venv; everything else is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
ifdef PREFIX
VENV := $(PREFIX)
endif
ARGS ?=
MINUTES ?= 10
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo install test lint format bench chaos lock advisories clean always

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.with-embedded ## from nothing to a finished mailing; ARGS="--clients 50000 --exit"
	@$(BIN)/python server.py demo $(ARGS)

install: $(VENV)/.with-server ## what a server needs, into .venv; PREFIX=/opt/notifier: there, independent of this folder
	@echo "Installed: $(BIN)/notifier --help"

test: lint ## what CI runs: format, lint, types, import contract, tests; ARGS go to pytest
	@$(BIN)/python -m tests.run $(ARGS)

lint: $(VENV)/.with-test ## format check, ruff, mypy, import contract
	$(BIN)/python -m ruff format --check --quiet .
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: $(VENV)/.with-test ## format the code and mend what ruff can mend
	$(BIN)/python -m ruff check --fix --quiet .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.with-$(if $(filter peers,$(ONLY)),peers,embedded) ## the benchmarks, each beside its baseline; ONLY=name, FULL=1
	@ONLY='$(ONLY)' FULL='$(FULL)' $(BIN)/python -m bench

chaos: $(VENV)/.with-test ## every fault, then a storm of them; MINUTES=10, SEED=n replays one, ONLY=3,5 or ONLY=storm
	@$(BIN)/python -m chaos --minutes '$(MINUTES)' --only '$(ONLY)' $(if $(SEED),--seed '$(SEED)')

lock: $(VENV)/.with-pins ## write requirements/*.txt anew after a change of setup.cfg; UPGRADE=1 takes the newest of everything
	$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

advisories: $(VENV)/.with-pins ## ask whether anything pinned has a known vulnerability (needs the Internet)
	$(BIN)/pip-audit --disable-pip --require-hashes $(patsubst %,-r %,$(wildcard requirements/*.txt))

clean: ## remove what was installed and built; .data stays
	rm -rf $(VENV) build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache

# Each has a stamp: installed once, and again when what is pinned changes. A copy elsewhere is made anew each time.
$(VENV)/.with-server: LAYERS = server build
$(VENV)/.with-embedded: LAYERS = server build embedded
$(VENV)/.with-test: LAYERS = server build embedded test
$(VENV)/.with-peers: LAYERS = server build embedded test peers
$(VENV)/.with-pins: LAYERS = server build embedded test pins
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
$(VENV)/.with-%: setup.cfg setup.py pyproject.toml $(wildcard requirements/*.txt) $(if $(PREFIX),always)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is not one. Name it: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) ($(LAYERS)) …"
	@$(PIP) install --no-deps --require-hashes $(LAYERS:%=-r requirements/%.txt)
	@rm -rf build
	@$(PIP) install --no-deps --no-build-isolation $(if $(PREFIX),,-e) .
	@rm -rf build
	@touch $@
