# Each target makes its own environment in .venv; all that is needed is make and Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
OUT ?= lungwave-demo
PYTEST_FLAGS ?= -n 2

BIN := $(VENV)/bin
SECONDS_SINCE = echo "$(1): $$(( $$(date +%s) - start )) s"

.PHONY: demo test lint model clean

demo: $(VENV)/.core
	@start=$$(date +%s); $(BIN)/lungwave demo --out $(OUT) && $(call SECONDS_SINCE,demo)

test: lint
	@start=$$(date +%s); OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) && $(call SECONDS_SINCE,tests)

lint: $(VENV)/.dev
	@start=$$(date +%s); $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(call SECONDS_SINCE,lint)

# The shipped ridge model and its test on lungs of another seed: about half an hour on two cores.
model: $(VENV)/.core
	$(BIN)/lungwave generate --preset tiny --seed 1 --cases 0:4000 --out data/train
	$(BIN)/lungwave fit data/train --out src/lungwave/assets/models/ridge-tiny
	$(BIN)/lungwave generate --preset tiny --seed 2 --cases 0:600 --out data/test
	$(BIN)/python benchmarks/ridge.py data/test

clean:
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "lungwave needs Python 3.11 or newer; say which: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) cannot make an environment; install its venv module (Debian: python3-venv)" >&2; exit 2; }

# A stamp per set of packages, so that a second make installs nothing.
$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@start=$$(date +%s); $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
	  && touch $@ && $(call SECONDS_SINCE,install)

$(VENV)/.dev: $(VENV)/.core
	@start=$$(date +%s); $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  && touch $@ && $(call SECONDS_SINCE,install of the test tools)
