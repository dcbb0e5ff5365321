# The two commands of a new user are `make run` and `make test`; each makes .venv first if it must.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Made again when what is to be installed changes, and not otherwise.
STAMP  := $(VENV)/.installed
NEEDS  := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A caller who wants no bytecode would have each Python that the tests start compile everything anew.
export PYTHONDONTWRITEBYTECODE :=

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

.PHONY: run test quick check lint format bench soak fuzz clean
run: $(STAMP)
	$(BIN)/ptrain run --plugin dactbert

# Everything; mypy is among the tests. DURATIONS=1 writes what each costs into build/durations.md.
test: lint
	$(PYTEST) --dist loadfile --no-loadscope-reorder $(if $(DURATIONS),-p tests.durations)

# The core's tests that need no process, no compiler and no pretrained code.
quick: lint
	PTRAIN_KERNELS=off $(PYTEST) --dist worksteal -p tests.no_processes -m "not process and not slow" tests --ignore=tests/acceptance

check: lint
	$(BIN)/mypy plugin_trainer $(wildcard plugins/*/ptrain_*)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-enable

# Kills, signals, full disks and corruption at random, for 20 minutes; then compares every bit.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/soak.py --minutes 20

# Damaged files and hostile input: 5,000 new cases of each, where `make test` has hundreds.
fuzz: $(STAMP)
	FUZZ=5000 $(PYTEST) --dist load --timeout 3600 tests/reliability/test_damage.py tests/cli/test_fuzz.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache

$(STAMP): $(NEEDS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[tensorboard,dev]' $(foreach plugin,$(wildcard plugins/*/pyproject.toml),--editable ./$(dir $(plugin)))
	touch $@
