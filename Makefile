# Each target makes its own environment in .venv; all that is needed is make and Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
OUT ?= lungwave-demo
PYTEST_FLAGS ?= -n 2

BIN := $(VENV)/bin
SECONDS_SINCE = echo "$(1): $$(( $$(date +%s) - start )) s"

.PHONY: demo test lint browser docs bench model paper priors copies posterior clean

demo: $(VENV)/.core
	@start=$$(date +%s); $(BIN)/lungwave demo --out $(OUT) && $(call SECONDS_SINCE,demo)

test: lint
	@start=$$(date +%s); OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) && $(call SECONDS_SINCE,tests)

# The browser that the viewer's tests drive; without one they are skipped. Installed where apt-get may.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update \
	  && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	  || echo "no Chromium here, and apt-get cannot install it; the viewer's browser tests will be skipped" >&2

lint: $(VENV)/.dev
	@start=$$(date +%s); $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(call SECONDS_SINCE,lint)

# The pages, with every tutorial executed; a warning is an error. LUNGWAVE_TUTORIALS=0 leaves the tutorials out.
docs: $(VENV)/.docs
	@start=$$(date +%s); $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html \
	  && echo "docs/_build/html/index.html" && $(call SECONDS_SINCE,docs)

# The tables that need neither training nor other people's programs, one after another: hours on two cores that do nothing
# else. `make BENCH="generate scale" bench` makes some of them.
BENCH ?= generate crosscheck bmode_sets phantom_statistics twins frechet evaluate scale scaling memory faults cluster_cost \
	newcomer release
bench: $(VENV)/.dev
	@for name in $(BENCH); do \
	  start=$$(date +%s); $(BIN)/python benchmarks/$$name.py && $(call SECONDS_SINCE,$$name) || exit 1; \
	done

# The shipped ridge model and its test on lungs of another seed: about half an hour on two cores.
model: $(VENV)/.core
	$(BIN)/lungwave generate --preset tiny --seed 1 --cases 0:4000 --out data/train
	$(BIN)/lungwave fit data/train --out src/lungwave/assets/models/ridge-tiny
	rm src/lungwave/assets/models/ridge-tiny/folds.safetensors
	$(BIN)/lungwave generate --preset tiny --seed 2 --cases 0:600 --out data/test
	$(BIN)/python benchmarks/ridge.py data/test

# The shipped ridge of single events of the paper preset, a case of that preset, and views of the report reconstructed with
# it: two hours on two cores.
paper: export OMP_NUM_THREADS = 1
paper: $(VENV)/.dev
	$(BIN)/lungwave generate --config benchmarks/paper_event.toml --cases 0:600 --shard-size 10 --out data/paper_events
	$(BIN)/lungwave fit data/paper_events --out src/lungwave/assets/models/ridge-paper
	rm src/lungwave/assets/models/ridge-paper/folds.safetensors
	$(BIN)/python benchmarks/paper_case.py
	$(BIN)/python benchmarks/paper_view.py

# The size of all shipped networks.
SIZE := --held-out 0.05 --channels 32 --mult 1 2 2 --blocks 1 --heads 2

# The shipped priors and how they compare with lungs of another seed: about four hours on two cores. One core each.
STRIP := --preset paper --set wall.pleura_depth=[0.015,0.0155] --set grid.depth=0.02 --set map.rows=8 \
	--set map.bands=[0,0.0008] --view seed
SMALL := $(SIZE) --lr 0.002 --warmup 5000 --storage float16
priors: export OMP_NUM_THREADS = 1
priors: $(VENV)/.core
	$(BIN)/lungwave maps --preset tiny --seed 1 --cases 0:12000 --out data/maps_tiny.npz
	$(BIN)/lungwave maps --preset tiny --seed 2 --cases 0:1000 --out data/maps_tiny_test.npz
	$(BIN)/lungwave maps $(STRIP) --seed 1 --cases 0:3200 --out data/maps_strip.npz
	$(BIN)/lungwave maps $(STRIP) --seed 2 --cases 0:600 --out data/maps_strip_test.npz
	$(BIN)/lungwave train data/maps_tiny.npz --out data/prior-tiny $(SMALL) --images 145600 --patch 4 4 \
	  --attention 1 2 --dropout 0 --p-mean 0 --p-std 1.8 --decay-images 30000
	$(BIN)/lungwave train data/maps_strip.npz --out data/prior-strip $(SMALL) --images 62400 --patch 2 2 \
	  --attention 2 --dropout 0.05 --p-mean -0.3 --p-std 1.7 --decay-images 20000
	for name in tiny strip; do \
	  rm -rf src/lungwave/assets/models/prior-$$name && \
	  cp -r data/prior-$$name/model src/lungwave/assets/models/prior-$$name && \
	  $(BIN)/python benchmarks/prior.py src/lungwave/assets/models/prior-$$name data/maps_$$name.npz \
	    data/maps_$${name}_test.npz --count 600 && \
	  $(BIN)/lungwave model card src/lungwave/assets/models/prior-$$name --results docs/results/prior_prior-$$name.json \
	    || exit 1; \
	done
	$(BIN)/python benchmarks/sample.py src/lungwave/assets/models/prior-tiny data/maps_tiny_test.npz --count 300 \
	  --report-count 64 --rows "100 steps" Heun DPM UniPC

# The report's memorisation figure: for the shipped prior, and for one that was made to learn 28 maps by heart. Half an
# hour on one core.
FEW := $(SIZE) --patch 4 4 --attention 1 2 --batch 16 --lr 0.002 \
	--p-mean 0 --p-std 1.8 --dropout 0 --augment 0 --no-flip --init prior-tiny --warmup 2000 --decay-images 30000
copies: export OMP_NUM_THREADS = 1
copies: $(VENV)/.core
	$(BIN)/lungwave maps --preset tiny --seed 1 --cases 0:12000 --out data/maps_tiny.npz
	$(BIN)/lungwave maps --preset tiny --seed 2 --cases 0:1000 --out data/maps_tiny_test.npz
	$(BIN)/lungwave sample prior-tiny --count 1000 --seed 3 --out data/samples_tiny
	$(BIN)/lungwave evaluate memorisation data/samples_tiny/samples.npz --train data/maps_tiny.npz \
	  --held-out data/maps_tiny_test.npz --out data/copies_tiny
	$(BIN)/lungwave maps --preset tiny --seed 1 --cases 0:30 --out data/maps_few.npz
	$(BIN)/lungwave train data/maps_few.npz --out data/prior-few $(FEW) --images 60000 --samples 0
	$(BIN)/lungwave sample data/prior-few --count 1000 --seed 3 --out data/samples_few
	$(BIN)/lungwave evaluate memorisation data/samples_few/samples.npz --train data/maps_few.npz \
	  --held-out data/maps_tiny_test.npz --out data/copies_few
	for name in tiny few; do \
	  cp data/copies_$$name/distances.png docs/images/copies_$${name}_distances.png && \
	  cp data/copies_$$name/nearest.png docs/images/copies_$${name}_nearest.png && \
	  cp data/copies_$$name/memorisation.json docs/results/copies_$$name.json && \
	  sed -E "s#\((distances|nearest)#(../images/copies_$${name}_\1#" data/copies_$$name/memorisation.md \
	    > docs/results/copies_$$name.md || exit 1; \
	done

# The shipped posterior, its baselines of equal size and time, and its tests on lungs of other seeds: about five hours on
# two cores.
NET := --echoes $(SIZE) --attention 1 2 --patch 4 4 --lr 0.0015 \
	--batch 16 --warmup 3000 --storage float16 --check-images 8000 --images 60000
ECHOES := $(NET) --decay-images 30000 --paths images --center data/ridge --init prior-tiny --levels 2 --dropout 0.1 \
	--p-mean 0 --p-std 1.8
MODELS := --model posterior-tiny --model data/ridge --model data/unet --model data/fno
posterior: export OMP_NUM_THREADS = 1
posterior: $(VENV)/.core
	$(BIN)/lungwave generate --preset tiny --seed 1 --cases 0:12000 --out data/cases
	$(BIN)/lungwave fit data/cases --out data/ridge
	$(BIN)/lungwave train data/cases $(ECHOES) --out data/posterior
	rm -rf src/lungwave/assets/models/posterior-tiny
	cp -r data/posterior/model src/lungwave/assets/models/posterior-tiny
	$(BIN)/lungwave train data/cases $(NET) --decay-images 30000 --method unet --paths images --dropout 0.05 \
	  --out data/unet
	$(BIN)/lungwave train data/cases $(NET) --decay-images 15000 --method fno --dropout 0.05 --minutes 22 --out data/fno
	$(BIN)/lungwave generate --preset tiny --seed 2 --cases 0:300 --out data/test
	$(BIN)/lungwave evaluate reconstruction data/test $(MODELS) --out data/judged
	$(BIN)/lungwave model card src/lungwave/assets/models/posterior-tiny --results data/judged/reconstruction.json
	$(BIN)/python benchmarks/reconstruct.py src/lungwave/assets/models/posterior-tiny data/test
	$(BIN)/python benchmarks/transfer.py $(MODELS)

clean:
	rm -rf $(VENV) $(OUT) build dist docs/_build docs/tutorials docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache .hypothesis
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

$(VENV)/.docs: $(VENV)/.core
	@start=$$(date +%s); $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]' \
	  && touch $@ && $(call SECONDS_SINCE,install of the documentation tools)
