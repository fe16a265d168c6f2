# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make train    set up, make the demo dataset, shard it, train a tagger, score it
#   make test     set up, run the tests

PYTHON  ?= python3
DATASET ?= demo
DATA    ?= data/$(DATASET)
CONFIG  ?= configs/$(DATASET).toml
GPUS    ?= $(shell n=$$(nvidia-smi -L 2>/dev/null | grep -c '^GPU'); [ "$$n" -gt 0 ] && echo $$n || echo 1)
ARGS    ?=

# Cached bytecode halves the start of every command that imports torch.
unexport PYTHONDONTWRITEBYTECODE

BIN    := .venv/bin
SHARDS := shards/$(DATASET)
RUN    := runs/$(DATASET)
# torchrun only when there is more than one rank: its start costs seconds.
LAUNCH := $(if $(filter-out 0 1,$(GPUS)),$(BIN)/torchrun --standalone --nproc-per-node $(GPUS),$(BIN)/python)

.DEFAULT_GOAL := help
.PHONY: help setup shards train eval watch dashboard sweep test lint style bench bench-accuracy clean

help: ## this list
	@echo "make TARGET [DATASET=demo] [DATA=folder] [GPUS=N] [FRESH=1] [ARGS=\"...\"]"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(BIN)/.ready ## create .venv and install the pinned dependencies

$(BIN)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"mstag needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}; name another one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# uv installs the set in a third of pip's time; where uv cannot run, pip does.
	$(BIN)/python -m pip install -q --disable-pip-version-check uv || true
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[demo,dev]' \
		|| $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	$(BIN)/mstag doctor --quiet
	@touch $@

shards: setup ## the dataset, made or fetched when missing -> shards/DATASET, verified
	@$(BIN)/shard-tools fetch --config $(CONFIG) --to $(DATA)
	@$(BIN)/shard-tools pack --config $(CONFIG) --data $(DATA) --out $(SHARDS)

train: shards ## train a tagger -> runs/DATASET (goes on where it stopped; FRESH=1 starts anew)
	@$(LAUNCH) train.py --config $(CONFIG) --shards $(SHARDS) --out $(RUN) $(if $(FRESH),--fresh) $(ARGS)

eval: setup ## score the run's best weights on the test split
	@$(LAUNCH) eval.py $(RUN) --shards $(SHARDS) $(ARGS)

watch: setup ## follow a training and score each new checkpoint on the validation split
	@$(BIN)/python eval.py $(RUN) --shards $(SHARDS) --watch $(ARGS)

dashboard: setup ## open what there is to look at: W&B online, else its terminal viewer
	@$(BIN)/mstag dashboard $(RUN) $(ARGS)

sweep: shards ## try settings of configs/sweep.yaml, drawn at random -> runs/DATASET-sweep
	@$(BIN)/mstag sweep configs/sweep.yaml --config $(CONFIG) --shards $(SHARDS) --out $(RUN)-sweep $(ARGS)

test: setup ## run the tests
	@$(BIN)/python -m pytest -n auto $(ARGS)

lint: setup ## check style and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup .venv-bench/.ready ## run the benchmarks -> bench/results (installs the peers: .venv-bench)
	@for name in stream shards scale train tag export finetune; do $(BIN)/python bench/$$name.py $(ARGS) || exit 1; done

# The peers live apart: one of them needs an older xxhash than ours.
.venv-bench/.ready: pyproject.toml constraints.txt $(BIN)/.ready
	$(PYTHON) -m venv .venv-bench
	@grep -v '^xxhash==' constraints.txt > .venv-bench/constraints.txt
	$(BIN)/uv pip install --python .venv-bench/bin/python -c .venv-bench/constraints.txt -e '.[bench]'
	@touch $@

bench-accuracy: setup ## train networks on the larger demo set, compare scores and costs (QUICK=1: hours of CPU, not days)
	@$(BIN)/python bench/accuracy.py --folder runs/bench-accuracy $(if $(QUICK),--quick) $(ARGS)

clean: ## remove .venv and caches; data, shards and runs stay
	rm -rf .venv .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './data/*' -prune -exec rm -rf {} +
