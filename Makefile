# One environment, .venv, made on first use; `make demo ARGS="--rtt 30"` passes flags on.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DELETE_ON_ERROR:
.PHONY: demo test check coverage bench figures clean

demo: $(INSTALLED)  ## two processes and an emulated WAN, on this machine
	$(BIN)/wanspec demo $(ARGS)

test: check  ## everything: format, lint, types, layers, tests
	$(BIN)/python -m pytest --quiet $(ARGS)

check: $(INSTALLED)  ## format, lint, types, layers
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo

coverage: $(INSTALLED)  ## every branch of the pure rooms, by their own tests
	$(BIN)/python -m pytest --quiet tests/speculation tests/policy tests/protocol --deselect tests/protocol/test_exactness.py \
	  --cov=wanspec.speculation --cov=wanspec.policy --cov=wanspec.protocol --cov-branch --cov-report=term-missing --cov-fail-under=100

bench: $(INSTALLED)  ## the cost of our own code
	$(BIN)/python bench/overhead.py $(ARGS)
	$(BIN)/python bench/simulation.py

figures: $(INSTALLED)  ## the figures of the docs that follow from the code alone, written into their pages; docs/figures has the dear ones
	$(BIN)/python docs/figures $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'WANSpec needs Python 3.11 or later, and "$(PYTHON)" is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Installing WANSpec and its dependencies into .venv (about a minute, once) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --prefer-binary --editable '.[dev]'
	@touch $@
