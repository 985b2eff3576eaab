# Two commands for everyone: `make demo` and `make test`. The rest is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint fuzz bench bench-models clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo  ## extract loops from the example songs, write new ones, and draw both
	@rm -rf $(BUILD)/songbook $(BUILD)/loops $(BUILD)/new
	@$(BIN)/python datasets/songbook/prepare.py $(BUILD)/songbook --check
	$(BIN)/midiloop extract $(BUILD)/songbook -o $(BUILD)/loops
	$(BIN)/midiloop inspect $(BUILD)/loops
	$(BIN)/midiloop plot $(BUILD)/loops -o $(BUILD)/loops.png
	$(BIN)/midiloop generate -n 8 -o $(BUILD)/new

test: lint  ## everything that CI checks
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.dev  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -q tests/test_fit.py --slow

fuzz: $(VENV)/.dev  ## 20,000 damaged files, each of which must end as loops or as a reject
	$(BIN)/python -m pytest -q tests/test_fuzz.py --mutations 20000

bench: $(VENV)/.dev  ## speed and memory on a corpus: make bench CORPUS=folder
	$(BIN)/python tests/benchmarks/extract.py $(CORPUS)

bench-models: $(VENV)/.dev  ## speed and memory of models: make bench-models LOOPS=dataset
	$(BIN)/python tests/benchmarks/models.py $(LOOPS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "midiloop needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[plot,models]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache
