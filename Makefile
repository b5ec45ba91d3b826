# `make` alone lists the targets. Needs Python 3.11 or newer with venv; everything else is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MINUTES ?= 10
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.with-embedded ## from nothing to a finished mailing; ARGS="--clients 50000 --exit"
	@$(BIN)/python server.py demo $(ARGS)

test: lint ## everything CI runs: format, lint, types, import contract, tests, coverage; ARGS go to pytest
	@$(BIN)/python -m tests.run $(ARGS)

lint: $(VENV)/.with-test ## format check, ruff, mypy, import contract
	$(BIN)/python -m ruff format --check --quiet .
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: $(VENV)/.with-test ## format the code and mend what ruff can mend
	$(BIN)/python -m ruff check --fix --quiet .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.with-$(if $(filter peers,$(ONLY)),peers,bench) ## the benchmarks, each beside its baseline; ONLY=name, FULL=1
	@ONLY='$(ONLY)' FULL='$(FULL)' $(BIN)/python -m bench

chaos: $(VENV)/.with-test ## every fault, then a storm of them; MINUTES=10, SEED=n replays one, ONLY=3,5 or ONLY=storm
	@$(BIN)/python -m chaos --minutes '$(MINUTES)' --only '$(ONLY)' $(if $(SEED),--seed '$(SEED)')

clean: ## remove what was installed and built; .data stays
	rm -rf $(VENV) build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache

# Each extra has a stamp: installed once, and again when what is pinned changes.
$(VENV)/.with-embedded: EXTRAS = embedded
$(VENV)/.with-bench: EXTRAS = embedded,bench
$(VENV)/.with-peers: EXTRAS = embedded,bench,peers
$(VENV)/.with-test: EXTRAS = embedded,bench,test
$(VENV)/.with-%: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is not one. Name it: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo '*' >$(VENV)/.gitignore
	@echo "Installing into $(VENV) ($(EXTRAS)); this happens once …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
