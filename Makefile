# The two commands of a new user are `make run` and `make test`; each makes .venv first if it must.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Made again when what is to be installed changes, and not otherwise.
STAMP  := $(VENV)/.installed
NEEDS  := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check format bench soak clean
run: $(STAMP)
	$(BIN)/ptrain run --plugin dactbert

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard plugins/*/ptrain_*)

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-enable

# Kills, signals, full disks and corruption at random, for 20 minutes; then compares every bit.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/soak.py --minutes 20

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache

$(STAMP): $(NEEDS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[tensorboard,dev]' $(foreach plugin,$(wildcard plugins/*/pyproject.toml),--editable ./$(dir $(plugin)))
	touch $@
