PYTHON ?= python3
NAME ?=

# Everything is installed from hashed locks into .venv; a stamp file per lock makes the second time quick.
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps
PEERS := .venv-peers/bin/python

.PHONY: help demo test runners test-runners lint types bench soak bench-peers lock clean

help: ## list the chores
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

demo: .venv/demo ## predict MovieLens 100k and learn from it; results go to out/demo
	$(BIN)/contbatch personalize --out out/demo

test: .venv/dev ## run the tests, real runners in short (10 minutes)
	$(BIN)/python -m pytest -m "not slow"

runners: .venv/dev ## fetch and build Prism and Flink, and start each once
	$(BIN)/python -m tests.runners

test-runners: .venv/dev ## run the tests of real runners at length
	$(BIN)/python -m pytest -m slow

lint: .venv/dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev build/typing ## check types
	MYPYPATH=build/typing $(BIN)/mypy -p contbatch

bench: .venv/dev ## run one benchmark: make bench NAME=deadlines; without NAME, all of them
	@failed=; for name in $(or $(NAME),$(basename $(filter-out harness.py figures.py models.py soak.py,$(notdir $(wildcard benchmarks/*.py))))); do \
		$(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "goals missed in:$$failed"; exit 1; }

soak: .venv/dev ## run inference and a trainer for 20 minutes on Prism, then on Flink
	$(BIN)/python -m benchmarks.soak both

bench-peers: .venv-peers/done ## install what the benchmarks compare with

lock: $(BIN)/uv ## solve the dependencies again
	for lock in demo dev data tools ci peers; do $(MAKE) --no-print-directory lock-$$lock; done

clean: ## remove what was installed and built
	rm -rf .venv .venv-peers build out

$(BIN)/uv: requirements/tools.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(not ok and f"contbatch needs Python 3.11 to 3.13, and $(PYTHON) is {sys.version.split()[0]}: give another, as in make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "installing into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.lock
	@touch $@

.venv/demo: $(BIN)/uv requirements/demo.lock requirements/data.lock pyproject.toml
	@$(INSTALL) --require-hashes -r requirements/demo.lock -r requirements/data.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

.venv/dev: $(BIN)/uv requirements/dev.lock requirements/data.lock pyproject.toml
	@echo "installing what the tests need"
	@$(INSTALL) --require-hashes -r requirements/dev.lock -r requirements/data.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch .venv/demo $@

.venv/ci: $(BIN)/uv requirements/ci.lock
	@$(INSTALL) --require-hashes -r requirements/ci.lock
	@touch $@

.venv-peers/done: $(BIN)/uv benchmarks/peers/requirements.lock
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-peers
	@$(BIN)/uv pip install --quiet --python $(PEERS) --no-deps --require-hashes -r benchmarks/peers/requirements.lock
	@touch $@

# mypy follows links where it cannot follow the package-dir mapping.
build/typing: pyproject.toml
	@mkdir -p $@/contbatch
	@for part in transforms pipelines templates; do ln -sfn $(CURDIR)/$$part $@/contbatch/$$part; done
	@touch $@

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header

lock-demo:
	$(COMPILE) pyproject.toml -o requirements/demo.lock
lock-dev:
	$(COMPILE) pyproject.toml --all-extras --group dev --override requirements/overrides.txt -o requirements/dev.lock
lock-data:
	$(COMPILE) --no-deps requirements/data.in -o requirements/data.lock
lock-tools:
	$(COMPILE) requirements/tools.in -o requirements/tools.lock
lock-ci:
	$(COMPILE) requirements/ci.in -o requirements/ci.lock
lock-peers:
	$(COMPILE) benchmarks/peers/requirements.in -o benchmarks/peers/requirements.lock
