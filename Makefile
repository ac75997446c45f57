PYTHON ?= python3
PORT ?= 8000
APP_PORT ?= 8001
CONSOLE_PORT ?= 8002
NETWORK ?=
NAME ?=
ONCE ?=
JSON ?=
INTERACTIONS ?= 1000000 10000000 76892800
KEEP ?=
BIN := .venv/bin

# Modules are compiled when they are first imported, which most never are, and kept so: an environment
# that forbids that would compile them again in every process.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# LightGBM wants the system's OpenMP. Where there is none, it gets the one that scikit-learn brings.
OPENMP := $(CURDIR)/.venv/openmp
export LD_LIBRARY_PATH := $(OPENMP)$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
define lend_openmp
@$(BIN)/python -c 'import lightgbm' 2>/dev/null || { mkdir -p "$(OPENMP)" && \
	ln -sf "$(CURDIR)"/.venv/lib/python3.*/site-packages/scikit_learn.libs/libgomp-* "$(OPENMP)/libgomp.so.1"; }
@$(BIN)/python -c 'import lightgbm'
endef

BENCH_DEMO := $(BIN)/python -m demo --dir .bench
define on_a_network
@trap '$(BENCH_DEMO) stop' EXIT; trap 'exit 1' INT TERM; \
	$(BENCH_DEMO) $(if $(NETWORK),load "$(NETWORK)",simulate --users 20000 --posts 2000 --interactions 1000000) && \
	JSON="$(JSON)" $(BENCH_DEMO) exec $(BIN)/python -m $(1)
endef

.PHONY: help demo demo-dask test quick lint types check bench-scoring bench-night bench-features bench-lists bench-publish bench-ids bench-load bench-scale-out bench-serving bench-console bench-exposures bench-faults clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 17

demo: .venv/demo-ready  ## Run everything on embedded servers (PORT=, APP_PORT=, CONSOLE_PORT=, NETWORK=, NAME=, ONCE=1)
	@$(BIN)/python -m demo up --port $(PORT) --app-port $(APP_PORT) --console-port $(CONSOLE_PORT) \
		$(if $(NETWORK),--network "$(NETWORK)") $(if $(NAME),--name "$(NAME)") $(if $(ONCE),--once)

demo-dask: .venv/demo-ready .venv/dask-ready  ## Run a night on a Dask scheduler and two workers, and the same on threads
	@$(BIN)/python -m demo dask

test: lint types check  ## Lint, types, tests

quick: .venv/dev-ready  ## The unit tests alone: no server, under a minute
	$(BIN)/python -m pytest tests/unit --numprocesses $$(getconf _NPROCESSORS_ONLN) --dist worksteal

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev-ready
	$(BIN)/mypy

# One process more than cores: many tests wait for a server.
check: .venv/dev-ready
	$(BIN)/python -m pytest --numprocesses $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --dist worksteal

bench-scoring: .venv/bench-ready  ## Measure the scorer against LightGBM and lleaves (JSON=FILE)
	@$(PYTHON) -m venv .venv-lleaves && .venv-lleaves/bin/python -m pip install --quiet \
		--disable-pip-version-check -r requirements-lleaves.txt || \
		{ rm -rf .venv-lleaves; echo "lleaves could not be installed; measuring without it" >&2; }
	@JSON="$(JSON)" LLEAVES_PYTHON="$$(ls "$(CURDIR)/.venv-lleaves/bin/python" 2>/dev/null)" $(BIN)/python -m benchmarks.scoring

bench-features: .venv/bench-ready  ## Measure what each part of a model contributes to its lists (NETWORK=, CUTOFFS=, CASES=, JSON=FILE)
	$(call on_a_network,benchmarks.ablation)

# A package that cannot be installed is a line of the table. What is given to make is in the environment too.
bench-lists: export LISTS_PYTHON = $(CURDIR)/.venv-lists/bin/python
bench-lists: .venv/bench-ready  ## Compare our lists with other recommenders' (NETWORK=, CUTOFFS=, MODELS=, BUDGET=, JSON=FILE)
	@$(PYTHON) -m venv .venv-lists
	@for package in $$(grep -o '^[^# ]*' requirements-lists.txt); do \
		.venv-lists/bin/python -m pip install --quiet --disable-pip-version-check "$$package" || \
		echo "$$package could not be installed; measuring without it" >&2; done
	$(call on_a_network,benchmarks.lists)

bench-night: .venv/bench-ready  ## Measure it with the models of a network (NETWORK=, JSON=FILE)
	$(call on_a_network,benchmarks.night)

bench-publish: .venv/demo-ready  ## Measure publishing beside redis-cli --pipe (JSON=FILE)
	@JSON="$(JSON)" $(BIN)/python -m benchmarks.publish

bench-ids: .venv/demo-ready  ## Measure publishing and serving by the kind of ids, by wrk (JSON=FILE)
	@JSON="$(JSON)" $(BIN)/python -m benchmarks.id_kinds

bench-load: .venv/demo-ready  ## Measure loading, nights and refreshes by size (INTERACTIONS="1000000 ...", KEEP=1, JSON=FILE)
	@JSON="$(JSON)" $(BIN)/python -m benchmarks.loading $(INTERACTIONS) $(if $(KEEP),--keep)

bench-scale-out: .venv/bench-ready .venv/dask-ready  ## Measure threads and Dask workers, and compute more (NETWORK=, JSON=FILE)
	$(call on_a_network,benchmarks.scale_out)

bench-serving: .venv/bench-ready .venv/demo-ready  ## Measure serving beside bare Flask, by wrk (NETWORK=, JSON=FILE)
	@command -v wrk >/dev/null || { echo "error: no wrk to put load on serving; on Debian and Ubuntu: apt-get install wrk" >&2; exit 1; }
	$(call on_a_network,benchmarks.serving)

bench-console: .venv/demo-ready  ## Measure the console's pages with 500 runs in the ledger (NETWORK=, JSON=FILE)
	$(call on_a_network,benchmarks.console)

bench-exposures: .venv/demo-ready  ## Measure how much recording exposures slows serving (JSON=FILE)
	@JSON="$(JSON)" $(BIN)/python -m benchmarks.exposures

bench-faults: .venv/dev-ready  ## Measure serving while Redis and workers fail (JSON=FILE)
	@JSON="$(JSON)" $(BIN)/python -m benchmarks.faults

clean:  ## Stop the demo's servers and remove all traces
	@if [ -d .demo ]; then $(BIN)/python -m demo stop || pkill -INT -f "$(CURDIR)/.demo/" || true; fi
	rm -rf .venv .venv-lleaves .venv-lists .demo .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Overnight needs Python 3.11 or newer; choose one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "error: could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/demo-ready: requirements.txt requirements-demo.txt | .venv/bin/python
	$(PIP_INSTALL) -r requirements-demo.txt
	$(lend_openmp)
	@touch $@

.venv/dask-ready: requirements.txt requirements-dask.txt | .venv/demo-ready
	$(PIP_INSTALL) -r requirements-dask.txt
	@touch $@

.venv/dev-ready: requirements.txt requirements-demo.txt requirements-dev.txt | .venv/bin/python
	$(PIP_INSTALL) -r requirements-dev.txt
	$(lend_openmp)
	@touch $@

.venv/bench-ready: requirements.txt requirements-bench.txt | .venv/bin/python
	$(PIP_INSTALL) -r requirements-bench.txt
	$(lend_openmp)
	@touch $@
