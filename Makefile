# Every target sets up what it needs in .venv, once.
#   make demo    demosaic a photograph and write demosaic.png
#   make test    run the tests
#   make test-sparse   run those of graph layouts with torch-sparse
#   make docs    build the documentation in docs/_build
#   make bench   measure speed and memory; ARGS='--device cuda' on a GPU
#   make dist    build the sdist and the wheel
#   make smoke   try the wheel in a new environment without extras
#   make test-oldest   run the tests with the oldest releases of all packages
# Other builds of PyTorch: make test TORCH='torch==2.12.1'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := python -m pip -qq --disable-pip-version-check
STAMP := $(VENV)/.torch-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)

.PHONY: setup demo docs test test-sparse test-oldest lint format bench \
	dist smoke clean

setup: $(STAMP)-dev

$(STAMP): pyproject.toml
	@echo 'Setting up $(VENV) (a few minutes the first time) ...'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/$(PIP) install --upgrade pip setuptools wheel
	@$(BIN)/$(PIP) install '$(TORCH)'
	@$(BIN)/$(PIP) install -e '.[images,viz]' 'numba>=0.61'
	@rm -f $(VENV)/.torch-*
	@touch $@

$(STAMP)-dev: $(STAMP)
	@$(BIN)/$(PIP) install -e '.[dev]'
	@touch $@

$(STAMP)-docs: $(STAMP)
	@$(BIN)/$(PIP) install -e '.[docs]'
	@touch $@

# These two are compiled from source against the torch in the environment.
$(STAMP)-sparse: $(STAMP)-dev
	@echo 'Compiling torch-scatter and torch-sparse (up to half an hour) ...'
	@$(BIN)/$(PIP) install --no-build-isolation -e '.[sparse]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demosaic.py --out demosaic.png

test: $(STAMP)-dev
	@$(BIN)/python -m pytest

# The test files that see layouts of torch-sparse, or loaders that sample by it.
SPARSE_TESTS = $(shell grep -rlE 'SparseTensor|TORCH_SPARSE|LAYOUTS' \
	--include='test_*.py' tests)

test-sparse: $(STAMP)-sparse
	@$(BIN)/python -m pytest $(SPARSE_TESTS)

docs: $(STAMP)-docs
	@$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build
	@echo 'Wrote docs/_build/index.html'

# An environment of its own; Python 3.11 or 3.12, for which there are wheels.
OLDEST := .venv-oldest

$(OLDEST)/.stamp: pyproject.toml .ci/oldest.txt
	@echo 'Setting up $(OLDEST) (a few minutes the first time) ...'
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/$(PIP) install --upgrade pip setuptools wheel
	@$(OLDEST)/bin/$(PIP) install -e '.[dev]' -c .ci/oldest.txt
	@touch $@

test-oldest: $(OLDEST)/.stamp
	@$(OLDEST)/bin/python -m pytest

lint: $(STAMP)-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)-dev
	@$(BIN)/python benchmarks/operators.py --write $(ARGS)
	@$(BIN)/python benchmarks/layers.py --write $(ARGS)
	@$(BIN)/python benchmarks/scaling.py --write $(ARGS)

# The wheel is made from the sdist.
dist: $(STAMP)-dev
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null

SMOKE := .venv-smoke

smoke: dist
	@$(PYTHON) -m venv --clear $(SMOKE)
	@$(SMOKE)/bin/$(PIP) install '$(TORCH)' dist/*.whl
	@cd $(SMOKE) && bin/python -I '$(CURDIR)/.ci/smoke.py'

clean:
	@rm -rf $(VENV) $(OLDEST) $(SMOKE) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
