# Every target sets up what it needs in .venv, once.
#   make demo    demosaic a photograph and write demosaic.png
#   make test    run the tests
#   make docs    build the documentation in docs/_build
#   make bench   measure speed and memory; ARGS='--device cuda' on a GPU
# Other builds of PyTorch: make test TORCH='torch==2.8.0'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
STAMP := $(VENV)/.torch-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)

.PHONY: setup demo docs test test-sparse lint format bench clean

setup: $(STAMP)-dev

$(STAMP): pyproject.toml
	@echo 'Setting up $(VENV) (a few minutes the first time) ...'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip setuptools wheel
	@$(PIP) install '$(TORCH)'
	@$(PIP) install -e '.[images,viz]' 'numba>=0.61'
	@rm -f $(VENV)/.torch-*
	@touch $@

$(STAMP)-dev: $(STAMP)
	@$(PIP) install -e '.[dev]'
	@touch $@

$(STAMP)-docs: $(STAMP)
	@$(PIP) install -e '.[docs]'
	@touch $@

# These two are compiled from source against the torch in the environment.
$(STAMP)-sparse: $(STAMP)-dev
	@echo 'Compiling torch-scatter and torch-sparse (up to half an hour) ...'
	@$(PIP) install --no-build-isolation -e '.[sparse]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demosaic.py --out demosaic.png

test: $(STAMP)-dev
	@$(BIN)/python -m pytest

test-sparse: $(STAMP)-sparse
	@$(BIN)/python -m pytest

docs: $(STAMP)-docs
	@$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build
	@echo 'Wrote docs/_build/index.html'

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

clean:
	@rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
