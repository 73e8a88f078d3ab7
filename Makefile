# Everything from a fresh checkout: `make run` shows evometa at work, `make test` checks it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= runs
SOAKS := benchmarks/big_archive.py

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench soak clean

help:
	@echo "make run      install, then the language ladder's demonstration (about 3 minutes)"
	@echo "make test     install what tests need, then lint, types and tests"
	@echo "make lint     lint and types only"
	@echo "make format   put the code into the house's form"
	@echo "make bench    measure again what benchmarks/results holds"
	@echo "make soak     what takes long: ten million rows, 100,000 damaged archives, 1,000 kills"
	@echo "make clean    remove the environment (runs stay)"

# The stamps say what is installed; they age when the files that decide it change.
$(VENV)/created:
	@command -v $(PYTHON) >/dev/null || { echo "evometa needs Python 3.11 or later; try: make PYTHON=python3 ..."; exit 1; }
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@echo "installing evometa ..."
	@$(PIP) --editable '.[tasks,reports]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml constraints.txt
	@echo "installing what tests need ..."
	@$(PIP) --editable '.[tasks,reports,dev]'
	@touch $@

run: $(VENV)/installed
	@$(BIN)/evometa demo --out $(OUT)
	@echo "(evometa is installed in $(VENV); first type: . $(BIN)/activate)"

test: lint
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq strace >/dev/null 2>&1; } \
		|| echo "note: without strace the crash drills at every system call are skipped"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright --level error

format: $(VENV)/installed-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	@for script in $(filter-out $(SOAKS),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What takes long: each a line of its own, and the first that fails ends it.
soak: $(VENV)/installed-dev
	$(BIN)/python benchmarks/big_archive.py
	$(BIN)/python tests/fuzzing.py soak 100000
	$(BIN)/python tests/fire_workload.py soak 1000
	for first in 1 2; do EVOMETA_TEST_FIRST_ERROR=$$first $(BIN)/python -m pytest tests/test_crash_*.py -k error || exit 1; done

clean:
	rm -rf $(VENV)
