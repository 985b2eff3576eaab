# Two commands for everyone: `make demo` and `make test`. The rest is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
SYSTEM := libfluidsynth3 chromium
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow system lint fuzz bench bench-models bench-render bench-seams clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo  ## loops from the example songs, new ones, and audio of those that is checked
	@rm -rf $(BUILD)/songbook $(BUILD)/loops $(BUILD)/new $(BUILD)/audio
	@$(BIN)/python datasets/songbook/prepare.py $(BUILD)/songbook --check
	$(BIN)/midiloop extract $(BUILD)/songbook -o $(BUILD)/loops
	$(BIN)/midiloop inspect $(BUILD)/loops
	$(BIN)/midiloop plot $(BUILD)/loops -o $(BUILD)/loops.png
	$(BIN)/midiloop generate -n 8 -o $(BUILD)/new
	$(BIN)/audioloop render $(BUILD)/new/midi -o $(BUILD)/audio
	$(BIN)/audioloop check $(BUILD)/audio

test: lint system  ## everything that CI checks
	$(BIN)/python -m pytest -q

# The tests that need them skip where they are absent, but not in CI.
system:  ## a FluidSynth and a browser from Debian's packages, where there is apt and root
	@if command -v chromium >/dev/null && ldconfig -p | grep -q libfluidsynth; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update -qq; apt-get install -y -qq --no-install-recommends $(SYSTEM); } \
			> /dev/null || echo "could not install $(SYSTEM)"; \
	else echo "not installed: $(SYSTEM); tests that need them will skip"; fi

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

bench-render: $(VENV)/.dev  ## speed and memory of rendering
	$(BIN)/python tests/benchmarks/render.py

bench-seams: $(VENV)/.dev  ## how seamless 200 generated loops are at random tempi
	$(BIN)/python tests/benchmarks/seams.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "midiloop needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[plot,models,audio]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache
