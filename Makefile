PYTHON ?= python3
PORT ?= 8000
NETWORK ?=
ONCE ?=
BIN := .venv/bin

.PHONY: help demo test lint types check clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 14

demo: .venv/demo-ready  ## Run everything on embedded servers (PORT=, NETWORK=, ONCE=1)
	@$(BIN)/python -m demo up --port $(PORT) $(if $(NETWORK),--network "$(NETWORK)") $(if $(ONCE),--once)

test: lint types check  ## Lint, types, tests

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev-ready
	$(BIN)/mypy

check: .venv/dev-ready
	$(BIN)/python -m pytest

clean:  ## Stop the demo's servers and remove all traces
	@if [ -x $(BIN)/python ] && [ -d .demo ]; then $(BIN)/python -m demo stop; fi
	rm -rf .venv .demo models .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Overnight needs Python 3.11 or newer; choose one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "error: could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/demo-ready: requirements.txt requirements-demo.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-demo.txt
	@touch $@

.venv/dev-ready: requirements.txt requirements-demo.txt requirements-dev.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
